"""Sources: files and data sets give the same texts and documents, or sentences, with a key of their content."""

import json
import os
from argparse import Namespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, config

from utils.errors import InputError
from utils.pairs import split_sentences
from utils.splits import load_splits
from utils.tables import read_table
from utils.texts import Source, find_sources, number_documents, read_column, read_dataset, write_texts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, with a cache of its own."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    os.mkdir(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


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


def source_of(*batches):
    return Source("test", "of a test", lambda: iter(batches))


# ---------------------------------------------------------------- find_sources


def sources_of(separator="auto", column="text", splits=("train", "validation"), say=print, **flags):
    """What find_sources makes of flags: files of splits, or a data set."""
    given = {f"{split}_file": None for split in ("train", "validation", "test")}
    given |= {"dataset_name": None, "dataset_config_name": None, "text_column_name": column}
    args = Namespace(**given | flags, document_separator=separator, file_encoding="utf-8")
    return find_sources(args, splits, say)


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
    source = sources_of(separator, train_file=["*.txt"])["train"]
    assert documents_of(source.read()) == documents_of(source.read()) == documents  # it can be read again
    assert source.name == "a.txt and 1 more files"


def test_there_is_a_source_for_each_split_that_is_wanted_and_given(folder):
    (folder / "deep").mkdir()
    for name in ("a.txt", "deep/b.txt"):
        (folder / name).write_text(name)
    sources = sources_of(validation_file=["deep/b.txt"], test_file=["a.txt"])
    assert list(sources) == ["validation"] and sources["validation"].name == "b.txt"
    assert sources_of() == {}
    with pytest.raises(InputError, match="--validation_file c.txt: there is no such file"):
        sources_of(train_file=["a.txt"], validation_file=["c.txt"])


def test_that_a_file_of_two_splits_has_the_same_content_is_said(folder):
    for name, text in (("a.txt", "one"), ("b.txt", "two"), ("c.txt", "two"), ("d.txt", "three")):
        (folder / name).write_text(text)
    said = []
    sources_of(train_file=["a.txt", "b.txt"], validation_file=["d.txt"], say=said.append)
    assert not said
    sources_of(train_file=["a.txt", "b.txt", "b.txt"], validation_file=["d.txt", "c.txt"], say=said.append)
    assert said == ["  Careful:  --validation_file c.txt has the same content as --train_file b.txt"]
    sources_of(train_file=["b.txt", "c.txt"], say=said.append)
    assert said[1:] == ["  Careful:  --train_file c.txt has the same content as --train_file b.txt"]
    sources_of(train_file=["b.txt", "b.txt"], say=said.append)  # twice on purpose
    assert len(said) == 2


def test_a_column_is_not_named_of_plain_text(folder):
    (folder / "a.txt").write_text("id|body\n1|one\n")
    with pytest.raises(InputError, match="--text_column_name body: a.txt is read as plain text"):
        sources_of(column="body", train_file=["a.txt"])


def test_the_key_tells_content_column_and_separator_apart(folder):
    (folder / "a.txt").write_text("a\n\nb\n")
    (folder / "same.txt").write_text("a\n\nb\n")
    (folder / "a.jsonl").write_text('{"text": "a", "title": "b"}')
    (folder / "other.txt").write_text("a\n\nc\n")
    given = [("auto", "text", "a.txt"), ("line", "text", "a.txt"), ("auto", "title", "a.jsonl"),
             ("auto", "text", "other.txt"), ("auto", "text", "a.jsonl")]  # fmt: skip
    keys = [sources_of(separator, column, train_file=[name])["train"].key for separator, column, name in given]
    assert len(set(keys)) == 5
    assert sources_of(train_file=["same.txt"])["train"].key == keys[0]


def test_a_data_set_is_found_in_a_folder(folder):
    (folder / "set").mkdir()
    rows = {"train": ["a", "b", "", "c"], "validation": ["d"], "test": ["e"]}
    for split, texts in rows.items():
        lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts)
        (folder / "set" / f"{split}.jsonl").write_text(lines)
    sources, keys = {}, set()
    for separator in ("auto", "blank_line"):
        sources[separator] = sources_of(separator, dataset_name="set")
        assert {split: source.name for split, source in sources[separator].items()} == {
            split: f"--dataset_name set, split {split}" for split in ("train", "validation")}  # fmt: skip
        keys |= {source.key for source in sources[separator].values()}
    assert len(keys) == 4
    assert documents_of(sources["auto"]["train"].read()) == [["a"], ["b"], ["c"]]
    assert documents_of(sources["blank_line"]["train"].read()) == [["a", "b"], ["c"]]
    assert documents_of(sources["auto"]["validation"].read()) == [["d"]]
    with pytest.raises(InputError, match="^--dataset_name set, split train: .*'title'.*'text', 'n'.*_column_name"):
        list(sources_of(column="title", splits=["train"], dataset_name="set")["train"].read())


def test_a_data_set_that_is_nowhere_is_refused_with_its_name(folder):
    with pytest.raises(InputError, match="--dataset_name ./nowhere: cannot be loaded: .*--train_file"):
        sources_of(dataset_name="./nowhere")


# ---------------------------------------------------------------- read_dataset


def documents_in(rows, separator="auto", column="text"):
    return documents_of(read_dataset(rows, column, separator, "set"))


@pytest.mark.parametrize("separator", ["auto", "row", "line", "blank_line"])
def test_the_rows_of_a_data_set_are_documents_or_parted_by_empty_ones(separator):
    rows = Dataset.from_dict({"text": ["a ", "b", None, "\t", "c", "", "d", "e"]})
    expected = [["a", "b"], ["c"], ["d", "e"]] if separator == "blank_line" else [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert documents_in(rows, separator) == expected


def test_a_document_of_a_data_set_goes_on_beyond_the_rows_that_are_read_at_once():
    rows = Dataset.from_dict({"text": ["a"] * 10_005 + [""] + ["b"] * 9_994 + ["", "c"]})
    batches = list(read_dataset(rows, "text", "blank_line", "set"))
    assert len(batches) == 3
    assert documents_of(batches) == [["a"] * 10_005, ["b"] * 9_994, ["c"]]
    assert len(documents_in(rows)) == 20_000


def test_what_is_no_text_in_a_data_set_is_refused_with_its_row():
    rows = Dataset.from_dict({"text": ["a"], "n": [5]})
    with pytest.raises(InputError, match="^--dataset_name set, row 0: expected text in column 'n'; found '5'"):
        list(read_dataset(rows, "n", "auto", "--dataset_name set"))
    late = Dataset.from_dict({"lists": [None] * 10_001 + [[3, 4]]})
    with pytest.raises(InputError, match="^set, row 10001: expected text"):
        documents_in(late, column="lists")


@pytest.mark.parametrize("texts", [[], ["", " ", None]])
def test_a_data_set_without_text_is_refused(texts, tmp_path):
    rows = Dataset.from_dict({"text": texts})
    source = Source("set", "key", lambda: read_dataset(rows, "text", "auto", "set"))
    with pytest.raises(InputError, match="^set: there is no text in it"):
        write_texts(source, tmp_path / "text.arrow")


# ---------------------------------------------------------------- split_sentences


def test_paragraphs_become_sentences_of_the_same_document():
    source = source_of(
        batch(["It rained. We stayed in!  Did you? ", "Dr. Smith paid 3.50 dollars. He left."], [0, 0]),
        batch(["No end", "One. Two."], [1, 4]),
    )
    name, key, read, _ = split_sentences(source, "en")
    assert documents_of(read()) == documents_of(read()) == [
        ["It rained.", "We stayed in!", "Did you?", "Dr. Smith paid 3.50 dollars.", "He left."],
        ["No end"],
        ["One.", "Two."],
    ]  # fmt: skip
    assert [documents.tolist() for _, documents in read()] == [[0] * 5, [1, 4, 4]]
    assert [texts.type for texts, _ in read()] == [pa.large_string()] * 2
    assert name == "test" and key != "of a test"


def test_no_text_is_lost_between_sentences(prose):
    source = source_of(batch(prose[:300], range(300)))
    found = documents_of(split_sentences(source, "en").read())
    assert len(found) == 300 and sum(map(len, found)) > 400
    for paragraph, sentences in zip(prose, found, strict=False):
        assert "".join("".join(sentences).split()) == "".join(paragraph.split())
        assert all(sentence and sentence == sentence.strip() for sentence in sentences)


def test_the_language_is_part_of_the_key():
    source = source_of(batch(["Das gilt z. B. am 3. Mai. Und heute."], [0]))
    assert len({source.key, *(split_sentences(source, language).key for language in ("en", "de"))}) == 3
    assert documents_of(split_sentences(source, "de").read()) == [["Das gilt z. B. am 3. Mai.", "Und heute."]]


def test_a_batch_without_texts_has_no_sentences_either():
    """As a file of white space, or many empty rows of a table, give."""
    source = source_of(batch([], []), batch(["One. Two."], [3]), batch([], []))
    assert documents_of(split_sentences(source, "en").read()) == [["One.", "Two."]]


# ---------------------------------------------------------------- write_texts


def test_texts_are_written_with_their_documents(tmp_path):
    batches = [batch(["one two", "é"], [0, 0]), batch([], []), batch(["one two", "three", "é"], [1, 1, 5 << 40])]
    write_texts(source_of(*batches), tmp_path / "text.arrow")
    assert Dataset.from_file(str(tmp_path / "text.arrow"))[:] == {
        "text": ["one two", "é", "one two", "three", "é"], "document": [0, 0, 1, 1, 5 << 40]}  # fmt: skip
    assert os.listdir(tmp_path) == ["text.arrow"]  # and nothing beside it


def test_an_error_while_texts_are_written_leaves_the_old_file(tmp_path):
    def broken():
        yield batch(["new"], [0])
        raise InputError("a fault in a later file")

    write_texts(source_of(batch(["old"], [0])), tmp_path / "text.arrow")
    with pytest.raises(InputError):
        write_texts(Source("test", "key", broken), tmp_path / "text.arrow")
    assert Dataset.from_file(str(tmp_path / "text.arrow"))["text"][:] == ["old"]
    assert os.listdir(tmp_path) == ["text.arrow"]


@pytest.mark.parametrize("batches", [[], [batch([], [])], [batch([], []), batch([], [])]])
def test_nothing_is_written_where_there_is_no_text(tmp_path, batches):
    with pytest.raises(InputError, match="^test: there is no text in it"):
        write_texts(source_of(*batches), tmp_path / "text.arrow")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- paragraphs of a row, values within objects


def test_a_list_is_the_paragraphs_of_one_document_and_a_dotted_column_is_looked_for_within_objects():
    rows = [{"body": {"text": ["a", "b"]}}, {"body": {"text": "c"}}, {"body": {"text": None}}, {"body": {"text": []}},
            {"body": {"text": ["d", "", "e"]}}]  # fmt: skip
    assert documents_in(Dataset.from_list(rows[:1] + rows[4:]), column="body.text") == [["a", "b"], ["d", "e"]]
    places = [(f"row {n}", row) for n, row in enumerate(rows)]
    batches = number_documents(read_column(iter(places), "body.text"), False)
    [(texts, documents)] = batches
    assert texts.to_pylist() == ["a", "b", "c", "d", "e"]
    assert documents.tolist() == [0, 0, 1, 4, 4]


def test_rows_as_long_as_books_are_read_a_few_at_once(tmp_path):
    books = [f"{n} " * 600_000 for n in range(8)]
    pa.parquet.write_table(pa.table({"text": books * 10}), tmp_path / "books.parquet")
    rows = read_table(str(tmp_path / "books.parquet"), "Parquet", ["text"], "utf-8", print)
    sizes = [len(texts) for texts, _ in read_column(rows, "text")]
    assert sum(sizes) == 80 and max(sizes) <= 2
    data = Dataset.from_dict({"text": books})
    assert max(len(texts) for texts, _ in read_dataset(data, "text", "auto", "books")) <= 2


def test_a_column_whose_name_has_a_dot_comes_before_a_path():
    rows = [("row 0", {"body.text": "named so", "body": {"text": "within"}})]
    [(texts, _)] = read_column(iter(rows), "body.text")
    assert texts.to_pylist() == ["named so"]


@pytest.mark.parametrize("row", [{"body": {}}, {"body": None}, {"body": "text"}, {"text": "t"}, {"body": {"text": {}}}])
def test_a_row_without_the_column_is_at_fault(row):
    with pytest.raises(InputError, match="^there: expected text in column 'body.text'"):
        list(read_column(iter([("there", row)]), "body.text"))


# ---------------------------------------------------------------- the blank that parted two texts


@pytest.mark.parametrize(
    ("texts", "documents", "shown"),
    [
        (["near the", "engine", "end."], [0, 0, 1], ["near the", " engine", "end."]),
        (["彼は", "行った。", "「はい」", "Yes", "です"], [0] * 5, ["彼は", "行った。", "「はい」", " Yes", " です"]),
        (["ไทย", "ลาว", "a"], [3, 3, 4], ["ไทย", "ลาว", "a"]),
        (["한국어", "문장"], [0, 0], ["한국어", " 문장"]),  # Korean parts words by blanks
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_texts_of_a_document_get_back_the_blank_between_them_also_over_batches(texts, documents, shown, at, tmp_path):
    def read():
        for part in (slice(at), slice(at, None)):
            yield pa.array(texts[part], pa.large_string()), np.array(documents[part], dtype=np.int64)

    write_texts(Source("s", "k", read), tmp_path / "t.arrow", joined=True)
    assert Dataset.from_file(str(tmp_path / "t.arrow"))["text"] == shown
    write_texts(Source("s", "k", read), tmp_path / "u.arrow")
    assert Dataset.from_file(str(tmp_path / "u.arrow"))["text"] == texts


# ---------------------------------------------------------------- data sets on the disk


def test_what_save_to_disk_wrote_is_read(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b"]})
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "two")
    assert {split: part["text"] for split, part in load_splits(str(tmp_path / "one"), None).items()} == {
        "train": ["a", "b"]}  # fmt: skip
    assert load_splits(str(tmp_path / "two"), None).keys() == {"train", "validation"}
