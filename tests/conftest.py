"""Set up before any test: no network, caches of our own, and a small BERT to train."""

import atexit
import json
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

from functools import partial  # noqa: E402

import pytest  # noqa: E402
from helpers import ALIKE, Run, run_script, write_lines  # noqa: E402
from plain_mlm import CURVE, LENGTH  # noqa: E402


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


@pytest.fixture(scope="session")
def answering_bert(tmp_path_factory, tiny_bert):
    """Folder of the tiny BERT with a head for answers, random but far from uniform. Not to be written to."""
    import torch
    from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoTokenizer

    folder = tmp_path_factory.mktemp("answering_bert")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForQuestionAnswering.from_config(AutoConfig.from_pretrained(tiny_bert))
    model.qa_outputs.weight.data.mul_(4)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qa_files(tmp_path_factory, answering_bert, prose):
    """Files of questions, and the model to train: dict of flags. In global batches of 8, one window is left over."""
    import numpy as np
    from helpers import QA_SIZES, make_squad
    from transformers import AutoTokenizer

    from run_qa import make_windows, read_questions

    folder, tokenizer = tmp_path_factory.mktemp("qa_files"), AutoTokenizer.from_pretrained(answering_bert)
    paragraphs = [text for text in prose[100:400] if len(text.split()) > 8]
    files = {}
    for split, part in (("train", paragraphs[:11]), ("validation", paragraphs[20:32])):
        files[split] = folder / f"{split}.json"
        squad = make_squad(part, np.random.default_rng(len(part)))
        files[split].write_text(json.dumps(squad), encoding="utf-8")
    rows = list(read_questions(str(files["train"]), None))
    while len(make_windows(rows, tokenizer, *QA_SIZES.values())) % 8 != 1:
        rows.pop()
    assert len(rows) > 10
    squad = json.loads(files["train"].read_text(encoding="utf-8"))
    kept = {row["id"] for row in rows}
    for article in squad["data"]:
        article["paragraphs"][0]["qas"] = [qa for qa in article["paragraphs"][0]["qas"] if qa["id"] in kept]
    files["train"].write_text(json.dumps(squad), encoding="utf-8")
    negative = folder / "negative.json"
    squad = make_squad(paragraphs[40:52], np.random.default_rng(5), impossible=0.4)
    negative.write_text(json.dumps(squad), encoding="utf-8")
    return {"model": answering_bert, "train_file": files["train"], "validation_file": files["validation"],
            "negative": negative}  # fmt: skip


@pytest.fixture
def mlm(tiny_bert, tmp_path):
    """run_mlm.py on the tiny model, as a process of its own: mlm(flag=value, …) gives a helpers.Done."""
    defaults = {**ALIKE, "model": tiny_bert, "output_dir": tmp_path / "out", "max_seq_length": LENGTH}
    return partial(run_script, "run_mlm.py", defaults, folder=tmp_path)


@pytest.fixture(scope="session")
def lines57(tmp_path_factory, prose):
    """A file of 57 lines, in global batches of 8 seven whole ones and a last one of a single line."""
    return write_lines(tmp_path_factory.mktemp("train") / "lines57.txt", prose[100:157])


@pytest.fixture(scope="session")
def lines61(tmp_path_factory, prose):
    return write_lines(tmp_path_factory.mktemp("validation") / "lines61.txt", prose[300:361])


@pytest.fixture(scope="session")
def trained_mlm(tmp_path_factory, tiny_bert, lines57, lines61):
    """Output folder of a plain run: 57 lines, twice, in batches of 8, dropout off. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {
        **ALIKE,
        "model": tiny_bert,
        "train_file": lines57,
        "validation_file": lines61,
        "test_file": lines57,
        "max_seq_length": LENGTH,
        "per_device_train_batch_size": 8,
        **CURVE,
        "output_dir": folder / "out",
        "save_strategy": "epoch",
    }
    Run("run_mlm.py", settings, folder).wait().checked()
    return folder / "out"
