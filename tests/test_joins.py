"""Lines that follow each other in an example: decoded, they are the words of the text, joined by blanks."""

import random

import pytest
from helpers import write_lines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import run_mlm
import run_pretraining

TEXT = "near the engine stood a small Boy who had never seen such wheels before it was don't café 42 x-ray"
WORDS = TEXT.split()


def byte_level(prefix):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    return tokenizer, trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]"], show_progress=False)


def unigram(prepend):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" {2,}", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    return tokenizer, trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"],
                                              show_progress=False)  # fmt: skip


def end_of_word():
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    return tokenizer, trainers.BpeTrainer(vocab_size=90, end_of_word_suffix="</w>", special_tokens=["<unk>"],
                                          show_progress=False)  # fmt: skip


def strips():
    tokenizer, trainer = byte_level(False)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    return tokenizer, trainer


KINDS = {
    "WordPiece": word_piece,
    "byte-level BPE": lambda: byte_level(False),
    "byte-level BPE, prefix": lambda: byte_level(True),
    "Unigram": lambda: unigram("always"),
    "Unigram, no prefix": lambda: unigram("never"),
    "BPE with </w>": end_of_word,
    "byte-level BPE that strips": strips,
}


@pytest.fixture(scope="module", params=KINDS)
def wrapped(request, tmp_path_factory):
    """(path of 200 documents of up to five lines, the lines of each, a tokenizer of their words)."""
    raw, trainer = KINDS[request.param]()
    raw.train_from_iterator([TEXT] * 3 + WORDS, trainer)
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **special)
    chance = random.Random(request.param)
    documents = [
        [" ".join(chance.choices(WORDS, k=chance.randint(1, 6))) for _ in range(chance.randint(2, 5))]
        for _ in range(200)
    ]
    path = tmp_path_factory.mktemp("wrapped") / "text.txt"
    return write_lines(path, [line for lines in documents for line in [*lines, ""]]), documents, tokenizer


def arguments(script, path, *more):
    flags = ["--train_file", str(path), "--validation_split_percentage", "0", "--max_seq_length", "32"]
    return script.parse_args([*flags, *more])


def test_blocks_decode_to_the_words_of_the_text(wrapped):
    path, documents, tokenizer = wrapped
    blocks, _ = run_mlm.prepare_data(arguments(run_mlm, path), tokenizer, print)["train"]
    ids = [n for block in blocks["input_ids"] for n in block[1:-1].tolist()]
    texts = [[]]
    for n in ids:
        if n == tokenizer.sep_token_id:
            texts.append([])
        else:
            texts[-1].append(n)
    assert len(texts) > 190  # the last remainder is dropped
    for text, lines in list(zip(texts, documents, strict=False))[:-1]:
        assert tokenizer.decode(text).split() == " ".join(lines).split()


def test_segments_decode_to_the_words_of_their_sentences(wrapped):
    path, documents, tokenizer = wrapped
    args = arguments(run_pretraining, path, "--sentence_per_line", "--short_seq_prob", "0")
    prepared, *_ = run_pretraining.prepare_data(args, tokenizer, ["train"], print, joined=True)["train"]
    collator = run_pretraining.make_collator(args, tokenizer, prepared, "train")
    collator.size = 1_000  # whole documents, of which no word is cut
    texts, followed = [" ".join(lines) for lines in documents], 0
    for number in range(collator.count(0)):
        a, b, label = collator.pair(number)
        sides = [" ".join(tokenizer.decode(side).split()) for side in (a, b)]
        if label:
            assert all(any(side in text for text in texts) for side in sides)
        else:
            followed += any(text.endswith(" ".join(sides)) for text in texts)
    assert followed == sum(collator.plan(0)[:, 3] == 0) > 50
