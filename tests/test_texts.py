"""Sources: files and data sets give the same texts and documents, and what is made of them is kept by content."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, config
from transformers import AutoTokenizer

from utils.errors import InputError
from utils.pairs import Documents, split_sentences
from utils.texts import find_sources, read_dataset, write_texts
from utils.tokenizing import tokenize_source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, with a cache of its own."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    os.mkdir(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


def documents_of(batches):
    """The texts of each document, in their order; numbers of documents only ever rise."""
    grouped, last = {}, -1
    for texts, documents in batches:
        assert len(texts) == len(documents)
        for text, document in zip(texts.to_pylist(), documents, strict=True):
            assert document >= last
            last = document
            grouped.setdefault(document, []).append(text)
    return list(grouped.values())


def batch(texts, documents):
    return pa.array(texts, pa.large_string()), np.array(documents, dtype=np.int64)


def source_of(*batches, fingerprint="of a test"):
    """A source that counts how often it is read."""
    reads = []

    def read():
        reads.append(1)
        yield from batches

    return (fingerprint, read, "test"), reads


# ---------------------------------------------------------------- find_sources


def from_files(separator="auto", column="text", **files):
    files = {"train": None, "validation": None, "test": None} | files
    return find_sources(files, None, None, column, ["train", "validation"], separator)


@pytest.mark.parametrize(
    ("separator", "documents"),
    [
        ("auto", [["a", "b"], ["c"], ["d"], ["e"]]),
        ("blank_line", [["a", "b"], ["c"], ["d", "e"]]),
        ("line", [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ("row", [["a"], ["b"], ["c"], ["d"], ["e"]]),
    ],
)
def test_documents_of_files_end_where_the_separator_says(folder, separator, documents):
    (folder / "a.txt").write_text("a\nb\n\nc\n")
    (folder / "b.txt").write_text("d\ne\n")
    _, read, name = from_files(separator, train=["*.txt"])["train"]
    assert documents_of(read()) == documents_of(read()) == documents  # it can be read again
    assert name == "a.txt and 1 more files"


def test_there_is_a_source_for_each_split_that_is_wanted_and_given(folder):
    (folder / "deep").mkdir()
    for name in ("a.txt", "deep/b.txt"):
        (folder / name).write_text(name)
    sources = from_files(validation=["deep/b.txt"], test=["a.txt"])
    assert list(sources) == ["validation"] and sources["validation"][2] == "b.txt"
    assert from_files() == {}
    with pytest.raises(InputError, match="--validation_file c.txt: there is no such file"):
        from_files(train=["a.txt"], validation=["c.txt"])


def test_the_fingerprint_tells_content_column_and_separator_apart(folder):
    (folder / "a.txt").write_text("a\n\nb\n")
    (folder / "same.txt").write_text("a\n\nb\n")
    (folder / "other.txt").write_text("a\n\nc\n")
    given = [("auto", "text", "a.txt"), ("line", "text", "a.txt"), ("auto", "title", "a.txt"),
             ("auto", "text", "other.txt")]  # fmt: skip
    prints = [from_files(separator, column, train=[name])["train"][0] for separator, column, name in given]
    assert len(set(prints)) == 4
    assert from_files(train=["same.txt"])["train"][0] == prints[0]


def test_a_data_set_is_found_in_a_folder(folder):
    (folder / "set").mkdir()
    rows = {"train": ["a", "b", "", "c"], "validation": ["d"], "test": ["e"]}
    for split, texts in rows.items():
        lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts)
        (folder / "set" / f"{split}.jsonl").write_text(lines)
    sources, prints = {}, set()
    for separator in ("auto", "blank_line"):
        sources[separator] = find_sources({}, "set", None, "text", ["train", "validation"], separator)
        assert {split: name for split, (_, _, name) in sources[separator].items()} == {
            "train": "set (train)", "validation": "set (validation)"}  # fmt: skip
        prints |= {fingerprint for fingerprint, _, _ in sources[separator].values()}
    assert len(prints) == 4
    assert documents_of(sources["auto"]["train"][1]()) == [["a"], ["b"], ["c"]]
    assert documents_of(sources["blank_line"]["train"][1]()) == [["a", "b"], ["c"]]
    assert documents_of(sources["auto"]["validation"][1]()) == [["d"]]
    with pytest.raises(InputError, match="--dataset_name set: there is no column 'title'; the columns are text, n"):
        find_sources({}, "set", None, "title", ["train"])


def test_a_data_set_that_is_nowhere_is_refused_with_its_name(folder):
    with pytest.raises(InputError, match="--dataset_name ./nowhere: cannot be loaded: .*--train_file"):
        find_sources({}, "./nowhere", None, "text", ["train"])


# ---------------------------------------------------------------- read_dataset


@pytest.mark.parametrize("separator", ["auto", "row", "line", "blank_line"])
def test_the_rows_of_a_data_set_are_documents_or_parted_by_empty_ones(separator):
    rows = Dataset.from_dict({"text": ["a ", "b", None, "\t", "c", "", "d", "e"]})
    expected = [["a", "b"], ["c"], ["d", "e"]] if separator == "blank_line" else [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert documents_of(read_dataset(rows, "text", "set", separator)) == expected


def test_a_document_of_a_data_set_goes_on_beyond_the_rows_that_are_read_at_once():
    rows = Dataset.from_dict({"text": ["a"] * 10_005 + [""] + ["b"] * 9_994 + ["", "c"]})
    batches = list(read_dataset(rows, "text", "set", "blank_line"))
    assert len(batches) == 3
    assert documents_of(batches) == [["a"] * 10_005, ["b"] * 9_994, ["c"]]
    assert len(documents_of(read_dataset(rows, "text", "set"))) == 20_000


def test_what_is_no_text_in_a_data_set_is_refused_with_its_row():
    rows = Dataset.from_dict({"text": ["a"], "n": [5]})
    with pytest.raises(InputError, match="^--dataset_name set, row 0: expected text in column 'n', found '5'"):
        list(read_dataset(rows, "n", "--dataset_name set"))
    late = Dataset.from_dict({"lists": [None] * 10_001 + [["a", "b"]]})
    with pytest.raises(InputError, match="^set, row 10001: expected text"):
        list(read_dataset(late, "lists", "set"))


@pytest.mark.parametrize("texts", [[], ["", " ", None]])
def test_a_data_set_without_text_is_refused(texts):
    rows = Dataset.from_dict({"text": texts})
    with pytest.raises(InputError, match="^set: there is no text in column 'text'"):
        list(read_dataset(rows, "text", "set"))


# ---------------------------------------------------------------- split_sentences


def test_paragraphs_become_sentences_of_the_same_document():
    source, _ = source_of(
        batch(["It rained. We stayed in!  Did you? ", "Dr. Smith paid 3.50 dollars. He left."], [0, 0]),
        batch(["No end", "One. Two."], [1, 4]),
    )
    fingerprint, read, name = split_sentences(source, "en", False)
    assert documents_of(read()) == documents_of(read()) == [
        ["It rained.", "We stayed in!", "Did you?", "Dr. Smith paid 3.50 dollars.", "He left."],
        ["No end"],
        ["One.", "Two."],
    ]  # fmt: skip
    assert [documents.tolist() for _, documents in read()] == [[0] * 5, [1, 4, 4]]
    assert [texts.type for texts, _ in read()] == [pa.large_string()] * 2
    assert name == "test" and fingerprint != "of a test"


def test_no_text_is_lost_between_sentences(prose):
    source, _ = source_of(batch(prose[:300], range(300)))
    found = documents_of(split_sentences(source, "en", False)[1]())
    assert len(found) == 300 and sum(map(len, found)) > 400
    for paragraph, sentences in zip(prose, found, strict=False):
        assert "".join("".join(sentences).split()) == "".join(paragraph.split())
        assert all(sentence and sentence == sentence.strip() for sentence in sentences)


def test_sentences_that_stand_one_a_line_are_left_as_they_are():
    source, _ = source_of(batch(["One. Two."], [0]))
    assert split_sentences(source, "en", True) == source


def test_the_language_is_part_of_the_fingerprint():
    source, _ = source_of(batch(["One. Two."], [0]))
    german = batch(["Das gilt z. B. am 3. Mai. Und heute."], [0])
    prints = {split_sentences(source, language, False)[0] for language in ("en", "de")} | {source[0]}
    assert len(prints) == 3
    read = split_sentences(source_of(german)[0], "de", False)[1]
    assert documents_of(read()) == [["Das gilt z. B. am 3. Mai.", "Und heute."]]


def test_a_batch_without_texts_has_no_sentences_either():
    """As a file of white space, or many empty rows of a table, give."""
    source, _ = source_of(batch([], []), batch(["One. Two."], [3]), batch([], []))
    assert documents_of(split_sentences(source, "en", False)[1]()) == [["One.", "Two."]]


# ---------------------------------------------------------------- write_texts


def test_texts_are_written_with_their_documents_and_counted(tmp_path):
    batches = [batch(["one two", "é"], [0, 0]), batch([], []), batch(["one two", "three", "é"], [1, 1, 5])]
    counts = write_texts(iter(batches), tmp_path / "text.arrow")
    # A word more than there are spaces; 7 + 1 + 7 + 5 + 1 characters; "one two" and "é" stand there twice.
    assert counts == {"paragraphs": 5, "words": 7, "characters": 21, "repeated": 2}
    assert Dataset.from_file(str(tmp_path / "text.arrow"))[:] == {
        "text": ["one two", "é", "one two", "three", "é"], "document": [0, 0, 1, 1, 5]}  # fmt: skip
    assert os.listdir(tmp_path) == ["text.arrow"]  # and nothing beside it


def test_an_error_while_texts_are_written_leaves_the_old_file(tmp_path):
    def broken():
        yield batch(["new"], [0])
        raise InputError("a fault in a later file")

    write_texts([batch(["old"], [0])], tmp_path / "text.arrow")
    with pytest.raises(InputError):
        write_texts(broken(), tmp_path / "text.arrow")
    assert Dataset.from_file(str(tmp_path / "text.arrow"))["text"][:] == ["old"]


# ---------------------------------------------------------------- tokenize_source


def tokenized(source, tokenizer, num_proc=None, overwrite=False):
    tokens, counts = tokenize_source(source, tokenizer, num_proc=num_proc, overwrite=overwrite)
    assert set(tokens.column_names) == {"ids", "document"}
    assert tokens.data.schema.field("ids").type.value_type == pa.int32()
    ids = [row.tolist() for row in tokens.with_format("numpy")["ids"]]
    return list(zip(ids, tokens.data["document"].to_pylist(), strict=True)), counts


def kept():
    """The files in the cache, each with its time."""
    return {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(config.HF_DATASETS_CACHE / "bert_scripts")}


def expected_of(tokenizer, texts, documents):
    return [(tokenizer(text, add_special_tokens=False)["input_ids"], document)
            for text, document in zip(texts, documents, strict=True)]  # fmt: skip


TEXTS, NUMBERS = ["The value of an object.", "Some, but not all", "\u200b", "and more"], [0, 0, 2, 7]


def test_each_text_becomes_a_row_of_the_tokenizers_own_ids(folder, tokenizer):
    source, _ = source_of(batch(TEXTS[:2], NUMBERS[:2]), batch(TEXTS[2:], NUMBERS[2:]))
    rows, counts = tokenized(source, tokenizer)
    assert rows == expected_of(tokenizer, TEXTS, NUMBERS)
    assert rows[0][0] and not set(rows[0][0]) & {tokenizer.cls_token_id, tokenizer.sep_token_id}
    assert counts.pop("key") and counts == {"paragraphs": 4, "words": 12, "characters": 49, "repeated": 0}


def test_what_was_made_of_the_same_content_is_found_again_without_reading_it(folder, tokenizer):
    source, reads = source_of(batch(TEXTS, NUMBERS))
    first = tokenized(source, tokenizer)
    files = kept()
    assert tokenized(source, tokenizer) == first and len(reads) == 1 and kept() == files
    assert tokenized(source, tokenizer, overwrite=True) == first and len(reads) == 2


def test_a_file_that_changes_is_noticed_and_one_that_moves_is_found(folder, tokenizer):
    (folder / "a.txt").write_text("one\n\ntwo\n")
    before, counts = tokenized(from_files(train=["a.txt"])["train"], tokenizer)
    shutil.copy("a.txt", "moved.txt")
    (folder / "a.txt").write_text("one\n\nsix\n")  # as long as it was
    os.utime("a.txt", (0, 0))
    after, changed = tokenized(from_files(train=["a.txt"])["train"], tokenizer)
    assert before == expected_of(tokenizer, ["one", "two"], [0, 1])
    assert after == expected_of(tokenizer, ["one", "six"], [0, 1]) and changed["key"] != counts["key"]
    files = kept()
    assert tokenized(from_files(train=["moved.txt"])["train"], tokenizer) == (before, counts) and kept() == files


def test_another_separator_or_sentences_are_made_anew(folder, tokenizer):
    (folder / "a.txt").write_text("One here. Two.\nThree.\n\nFour.\n")
    by_blank, by_line = (from_files(separator, train=["a.txt"])["train"] for separator in ("blank_line", "line"))
    found = [tokenized(source, tokenizer) for source in (by_blank, by_line, split_sentences(by_blank, "en", False))]
    assert [[document for _, document in rows] for rows, _ in found] == [[0, 0, 1], [0, 1, 3], [0, 0, 0, 1]]
    assert found[2][0] == expected_of(tokenizer, ["One here.", "Two.", "Three.", "Four."], [0, 0, 0, 1])
    assert len({counts["key"] for _, counts in found}) == 3


def test_another_vocabulary_is_noticed(folder, tokenizer):
    source, _ = source_of(batch(["zyxwv object"], [0]))
    before, counts = tokenized(source, tokenizer)
    tokenizer.add_tokens(["zyxwv"])
    after, changed = tokenized(source, tokenizer)
    assert after == expected_of(tokenizer, ["zyxwv object"], [0]) != before
    assert changed["key"] != counts["key"]


def test_two_processes_make_the_same_rows_in_the_same_order(folder, tokenizer, prose):
    texts, numbers = prose[:101], [n // 3 for n in range(101)]
    source, reads = source_of(batch(texts, numbers))
    rows, _ = tokenized(source, tokenizer, num_proc=2)
    assert rows == expected_of(tokenizer, texts, numbers)
    files = kept()
    assert tokenized(source, tokenizer, num_proc=2)[0] == rows and len(reads) == 1 and kept() == files
    tokens, _ = tokenize_source(source, tokenizer, num_proc=2, overwrite=False)
    assert len(tokens.data["ids"].chunks) > 1  # a file of each process, out of which sentences are found
    documents = Documents(tokens)
    expected = [[ids for ids, number in rows if number == n] for n in range(33)]  # the 34th has two
    assert [[documents.ids(s, s + 1).tolist() for s in range(first, first + 3)]
            for first in documents.starts[:-2]] == expected  # fmt: skip
    assert len(documents) == 34 and documents.single == 0
    assert tokenized(source, tokenizer)[0] == rows


def test_there_may_be_more_processes_than_texts(folder, tokenizer):
    source, reads = source_of(batch(["The value"], [3]))
    for _ in range(2):
        assert tokenized(source, tokenizer, num_proc=2)[0] == expected_of(tokenizer, ["The value"], [3])
    assert len(reads) == 1


def test_a_source_without_text_ends_with_its_own_message(folder, tokenizer):
    (folder / "blank.txt").write_text(" \n\n")
    source = from_files(train=["blank.txt"])["train"]
    for given in (source, split_sentences(source, "en", False)):
        with pytest.raises(InputError, match="^blank.txt: there is no text in it"):
            tokenize_source(given, tokenizer, num_proc=None, overwrite=False)
    assert all(name.endswith(".tmp") for name in kept())  # nothing that would be found again
