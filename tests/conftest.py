"""Set up before any test: no network, caches of our own, and a small BERT to train."""

import atexit
import os
import shutil
import tempfile

# Here, and not in a fixture: the libraries read their environment when they are first imported.
CACHES = tempfile.mkdtemp(prefix="caches-of-tests-")
atexit.register(shutil.rmtree, CACHES, ignore_errors=True)
for name in list(os.environ):
    if name.startswith(("ACCELERATE_", "HF_", "WANDB_", "TRACKIO_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        del os.environ[name]
os.environ |= {"HF_HOME": CACHES, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TRACKIO_DIR": f"{CACHES}/trackio"}
os.environ["OMP_NUM_THREADS"] = "1"  # for small tensors, threads that wait for each other on busy cores are no help

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def prose():
    """Paragraphs of English that every Python carries: what `python -m tools.python_reference` writes."""
    from pydoc_data.topics import topics

    from tools.python_reference import documents

    return [paragraph for document in documents(topics) for paragraph in document]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, prose):
    """Folder of a BERT with a WordPiece tokenizer: 2 layers, 32 wide, 64 tokens long, some 600 in its vocabulary.

    Its random weights are large enough for scores far from those of a uniform model.
    """
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(prose, vocab_size=600, show_progress=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *sorted(trained.get_vocab().keys() - special)]  # sorted: the trainer numbers them by chance
    tokenizer = BertTokenizerFast(vocab={token: n for n, token in enumerate(tokens)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.15,
        )
        BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory, tiny_bert, prose):
    """A tiny BERT with heads for masked tokens and pairs, and two texts of short documents: dict of the flags."""
    from helpers import add_pair_head, write_documents

    folder = tmp_path_factory.mktemp("pair_files")
    train, validation = ([prose[at : at + 5] for at in range(*bounds, 5)] for bounds in ((100, 140), (300, 320)))
    return {
        "model": add_pair_head(folder / "model", tiny_bert),
        "train_file": write_documents(folder / "train.txt", train),
        "validation_file": write_documents(folder / "validation.txt", validation),
    }
