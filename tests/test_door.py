"""The door: files under any name, packed, in any encoding, are read as what they hold, or refused by one message."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import random
import re
import sqlite3
import tarfile
import time
import zipfile
from argparse import Namespace

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

import run_ner
import run_qa
from utils.arguments import encoding as check_encoding
from utils.errors import InputError
from utils.reading import read_json, read_lines
from utils.tables import find_kind, read_table
from utils.texts import find_sources, read_dataset, read_files


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, content):
    with open(name, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return name


def texts_of(path, column="text", encoding="utf-8"):
    """The texts of a file, and what was said of it."""
    said = []
    kind = find_kind(path, [column], encoding, said.append)
    batches = read_files([path], [kind], column, "line", encoding, said.append)
    return [text for texts, _ in batches for text in texts.to_pylist()], said


def refusal(path, column="text", encoding="utf-8"):
    """The one line by which a file is refused."""
    with pytest.raises(InputError) as caught:
        texts_of(path, column, encoding)
    message = str(caught.value)
    assert message.startswith(path) and "\n" not in message
    return message


# ---------------------------------------------------------------- packed files


def zipped(content, *more, name="inner"):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        archive.writestr("__MACOSX/._inner", b"of a Mac")
        archive.writestr("folder/.DS_Store", b"of a Mac")
        archive.writestr(f"folder/{name}", content)
        for other in more:
            archive.writestr(other, b"more")
    return sink.getvalue()


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACKINGS = {
    "gzip": gzip.compress,
    "two members of gzip": lambda content: gzip.compress(content[:1]) + gzip.compress(content[1:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "zstd": zstd,
    "zip": zipped,
    "gzip in zip": lambda content: zipped(gzip.compress(content)),
    "zip in bzip2": lambda content: bz2.compress(zipped(content)),
    "xz in zstd": lambda content: zstd(lzma.compress(content)),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "wiki_00", "a.zip"])
def test_a_packed_file_is_unpacked_whatever_it_is_called(packing, name):
    path = write(name, PACKINGS[packing]("one\ntwö\n".encode()))
    assert [line for _, lines in read_lines(path) for line in lines] == ["one", "twö"]


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_file_is_read_in_pieces(packing):
    lines = [f"{n} " * 250 for n in range(5_000)]
    path = write("a.txt", PACKINGS[packing]("\n".join(lines).encode()))
    pieces = list(read_lines(path))
    assert [line for _, piece in pieces for line in piece] == lines and len(pieces) > 1


def test_a_zip_archive_of_several_files_is_refused_with_their_names():
    message = refusal(write("a.zip", zipped(b"one", "b.txt", "c.txt")))
    assert "zip archive" in message and "folder/inner, b.txt, c.txt" in message
    assert "0 files" in refusal(write("empty.zip", b"PK\5\6" + bytes(18)))


def test_a_zip_archive_with_a_password_is_refused():
    content = bytearray(zipped(b"one"))
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.rindex(mark)
        content[at + place] |= 1  # the bit that says that a member is encrypted
    assert "password" in refusal(write("a.txt", bytes(content)))


# ---------------------------------------------------------------- encodings

MARKED = ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"]


def in_encoding(text, encoding):
    mark = "\ufeff" if encoding.endswith("be") else ""
    return (mark + text).encode(encoding)


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_a_byte_order_mark_says_the_encoding(encoding, end, last):
    lines = ["Grüße", "", "中文 ਅ Ċ", "😀"]  # U+0A05 and U+010A have the byte of a line end in them
    path = write("a.txt", in_encoding(end.join(lines) + end * last, encoding))
    found = list(read_lines(path))
    assert [line for _, piece in found for line in piece] == lines
    assert list(read_lines(path, "cp1252")) == found


@pytest.mark.parametrize("encoding", MARKED)
def test_line_ends_of_windows_and_old_macs_are_one_line_end_over_pieces_too(encoding):
    for end in ("\n", "\r\n", "\r"):
        lines = [f"{n} {'Ċ' * 997}" for n in range(3_000)]
        path = write("a.txt", in_encoding(end.join(lines), encoding))
        assert [line for _, piece in read_lines(path) for line in piece] == lines
    rows = as_csv(ROWS, end="\r")
    assert texts_of(write("a.csv", in_encoding(rows.decode(), encoding)))[0] == TEXTS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "cp1252", "gb18030", "shift_jis"])
def test_an_encoding_is_read_in_pieces_that_tear_no_character(encoding):
    letters = {"cp1252": "é", "gb18030": "中文", "shift_jis": "ソ表"}.get(encoding, "Ċਅ中😀")
    lines = [f"{n} {letters * 400}" for n in range(6_000)]
    path = write("a.txt", "\n".join(lines).encode(encoding))
    number, found = 1, []
    for first, piece in read_lines(path, encoding):
        assert first == number
        number += len(piece)
        found += piece
    assert found == lines


SAMPLES = {
    "cp1252": "He said: “it’s the café” – naïve, wasn’t it?\nDie Füße der Gäste\n",
    "cp1251": "Старый часовщик чинит сломанные весы у реки.\nОна читает письмо.\n",
    "shift_jis": "昔々あるところにおじいさんとおばあさんがいました。\nタクシーで行きます。\n",
    "gb18030": "我们在北京学习中文。\n老钟表匠在市场后面修理坏了的秤。\n",
    "utf-16-le": "plain words\nand café\n",
    "utf-16-be": "plain words\nand café\n",
}


@pytest.mark.parametrize("encoding", SAMPLES)
@pytest.mark.parametrize("before", ["", "Some plain words first.\n\n" * 3])
def test_the_message_proposes_the_encoding_that_fits_and_it_does(encoding, before):
    text = before + SAMPLES[encoding]
    path = write("a.txt", text.encode(encoding))
    message = refusal(path)
    assert f"if that is right, give --file_encoding {encoding}, else" in message
    shown = re.search(f"As {encoding} it would be '(.+)': if", message)[1]
    assert shown in text and len(shown) >= 8
    assert texts_of(path, encoding=encoding)[0] == text.replace("\n\n", "\n").strip().split("\n")


def test_one_damaged_character_makes_no_other_encoding_of_utf_8():
    text = "Die Größe der Straße überrascht.\n" * 9
    for damaged in (text.encode() + "ß".encode()[:1], text.encode() + b"\x92 and on\n"):
        message = refusal(write("a.txt", damaged))
        assert "line 10" in message and "UTF-8: was the file cut off or damaged there?" in message
        assert "--file_encoding" not in message


def test_a_file_in_utf_8_is_not_read_in_another_encoding():
    write("a.txt", "Ein naïver Müller lächelt\n")
    assert "this is UTF-8, not cp1252" in refusal("a.txt", encoding="cp1252")
    assert texts_of(write("a.txt", "plain\n"), encoding="cp1252")[0] == ["plain"]
    both = "模".encode("gb18030")  # two bytes that are a letter in UTF-8, too
    assert both.decode() == "ģ"
    assert texts_of(write("a.txt", both + b" is one\n"), encoding="gb18030")[0] == ["模 is one"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_an_encoding_that_needs_a_mark_asks_for_it(encoding):
    message = refusal(write("a.txt", "one\n".encode(f"{encoding}-le")), encoding=encoding)
    assert "no byte order mark" in message and f"--file_encoding {encoding}-le" in message
    assert texts_of(write("a.txt", "one\n".encode(encoding)), encoding=encoding)[0] == ["one"]


def test_a_nul_is_refused_where_it_stands():
    message = refusal(write("a.txt", "one\ntwo\0three and more words, é\n"))
    assert message.startswith("a.txt, line 2: byte 4 of the line (0x00)") and "it would be" not in message
    late = refusal(write("b.txt", "one\n" * 1_200_000 + "\0"))
    assert late.startswith("b.txt, line 1200001: byte 1 ")


@pytest.mark.parametrize(("encoding", "content", "place"), [
    ("cp1252", b"one\nt\x81wo\n", "line 2: byte 2 of the line (0x81) is not CP1252"),
    ("utf-16-le", "one\ntwo".encode("utf-16-le") + b"\0\xdc", "line 2: byte 7 of the line (0x00) is not UTF-16-LE"),
    ("utf-16-le", "one\ntwo".encode("utf-16-le")[:-1], "line 2: byte 5 of the line (0x6f) is not UTF-16-LE"),
    ("gb18030", "中\n文".encode("gb18030")[:-1], "line 2: byte 1 of the line (0xce) is not GB18030"),
])  # fmt: skip
def test_a_byte_of_no_encoding_is_named_in_that_encoding_too(encoding, content, place):
    assert place in refusal(write("a.txt", content), encoding=encoding)


@pytest.mark.parametrize("name", ["utf8", "UTF-16", "utf-32", "cp1252", "latin1", "shift_jis", "gb18030"])
def test_an_encoding_that_python_knows_is_taken(name):
    assert check_encoding(name) == name


@pytest.mark.parametrize("name", ["", "utf-9", "rot13", "base64", "a\0b", "zlib"])
def test_an_encoding_that_is_none_is_refused(name):
    with pytest.raises(Exception, match="expected an encoding"):
        check_encoding(name)


# ---------------------------------------------------------------- kinds by content

ROWS = [{"id": n, "text": text} for n, text in enumerate(["One, two; three.", "Naïve 中", "four", "five\tsix"])]
TEXTS = [row["text"] for row in ROWS]


def as_csv(rows, delimiter=",", end="\n"):
    sink = io.StringIO()
    writer = csv.DictWriter(sink, ["id", "text"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def as_parquet(rows):
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def as_lines(rows, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


LAYOUTS = {
    "lines.jsonl": as_lines,
    "list.json": lambda rows: json.dumps(rows).encode(),
    "indented.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "data.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "comma.csv": as_csv,
    "semicolon.csv": lambda rows: as_csv(rows, ";"),
    "sep.csv": lambda rows: b"sep=;\n" + as_csv(rows, ";"),
    "tab.tsv": lambda rows: as_csv(rows, "\t"),
    "a.parquet": as_parquet,
}
NAMES = ["a.txt", "wiki_00", "a.csv", "a.tsv", "a.json", "a.jsonl", "a.ndjson", "a.parquet", "a.gz"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_read_by_what_it_holds_under_any_name_and_a_wrong_one_is_said(layout, name):
    texts, said = texts_of(write(name, LAYOUTS[layout](ROWS)))
    assert texts == TEXTS
    kinds = {".jsonl": "JSON", ".json": "JSON", ".ndjson": "JSON", ".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet"}
    kind, expected = (next((kinds[end] for end in kinds if path.endswith(end)), "text") for path in (layout, name))
    assert said == ([] if kind == expected else [f"{name}: read as {kind}, which it holds, whatever its name says"])


@pytest.mark.parametrize("content", [
    "text\nis the first word here\n",  # in one column, a header is a line like others
    "The text, as they say\nis not a table\nof any kind\n",
    "[1] A reference\n[2] Another\n",
    '["No," he said\n"Yes"]\n', "{{Infobox}}\nof a town\n", "PAR1 of the course\nis easy\n", "BZh, he said\n",
    "<3 is a heart\n", "<em>Yes</em>, he said\n", '"One," she said, "text"\nand two,\nand three\n',
])  # fmt: skip
def test_prose_that_begins_like_another_kind_is_text(content):
    lines = [line for line in content.split("\n") if line]
    assert texts_of(write("a.txt", content)) == (lines, [])


def other_kinds():
    table = pa.Table.from_pylist(ROWS)
    arrow, stream, archive = pa.BufferOutputStream(), pa.BufferOutputStream(), io.BytesIO()
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    base = sqlite3.connect("base")
    base.execute("create table texts (text)")
    base.commit()
    base.close()
    with open("base", "rb") as file:
        sqlite = file.read()
    return {
        "Arrow": [arrow.getvalue().to_pybytes(), stream.getvalue().to_pybytes()],
        "pickle": [pickle.dumps(ROWS, protocol) for protocol in (0, 2, 3, 4, 5)],
        "HTML or XML": [
            b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">', b'<doc id="12" url="a">\nOne\n</doc>',
            b"<TEI xmlns='a'>", b"<head><title>One", b"<!-- saved -->\n<!DOCTYPE html>", b"<tmx:a xmlns:tmx=''>",
            b"<!DOCTYPE html>\n<p>one</p>", b"\n<html lang=de>", b"\xef\xbb\xbf<?xml version='1.0'?>"],
        "PDF": [b"%PDF-1.7\n%\xe2\xe3", b"%!PS-Adobe-3.0\n", rb"{\rtf1\ansi One}"],
        "tar": [archive.getvalue()],
        "Office": [zipped(b"one", name) for name in ("[Content_Types].xml", "mimetype")]
        + [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100)],
        "image": [b"\x89PNG\r\n\x1a\n" + bytes(9), b"\xff\xd8\xff\xe0" + bytes(9), b"GIF89a" + bytes(9)],
        "SQLite": [sqlite],
        "Git LFS": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"],
    }


@pytest.mark.parametrize("name", ["a.txt", "wiki_00", "a.csv", "a.jsonl", "a.parquet", "a.xlsx"])
def test_what_is_no_text_is_refused_by_its_true_kind(name):
    for kind, contents in other_kinds().items():
        for content in contents:
            for packed in (content, gzip.compress(content)):
                assert kind in refusal(write(name, packed))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
@pytest.mark.parametrize(("content", "found"), [
    ('{"data": [\n{"text": "one"}\n]}', ["one"]),
    ('[\n{"text": "one"}\n]', ["one"]),
    ('[{"text": "one"},\n{"text": "two"}]', ["one", "two"]),
    ('\n\n{"text": "one", "data": 5}\n\n', ["one"]),
    ('{"text":\n"one"}', ["one"]),
    ('{"text": "one"}\n{"text": "two"}\n{"data": []}', "line 3: expected text"),
    ('{"text": one}\n{"text": "two"}', "line 1, column 10: not JSON"),
    ('{"text": "one"\n{"text": "two"}', "line 1, column 15: not JSON"),
    ('[{"text": "one"},\n{"text": "tw', "line 2, column 10: not JSON"),
    ('{"text": "one', "line 1, column 10: not JSON"),
])  # fmt: skip
def test_lines_of_json_and_json_on_several_lines_are_told_apart(name, content, found):
    path = write(name, content)
    if isinstance(found, list):
        assert texts_of(path)[0] == found
    else:
        assert found in refusal(path)


def test_long_beginnings_take_no_time():
    """Where a cost grew with the square of the length, these would take minutes."""
    since = time.perf_counter()
    for content in ("\n" * 500_000 + "one", " " * 500_000 + "[one", '{"' + "a" * 500_000, "\r" * 500_000 + '"sep=one'):
        texts_of(write("a.txt", content))
    assert time.perf_counter() - since < 5


def test_a_parquet_file_where_text_is_expected_is_named():
    with pytest.raises(InputError, match="a.json: this is a Parquet file"):
        list(read_json(write("a.json", as_parquet(ROWS))))


# ---------------------------------------------------------------- tables


def test_a_quotation_that_spans_rows_is_plain_characters():
    rows = [f"{n}\tSentence {n} of it." for n in range(40)]
    rows[7], rows[10] = '7\t"A baker sharpens', '10\tthe sail."'
    path = write("a.tsv", "id\ttext\n" + "\n".join(rows) + "\n")
    texts, said = texts_of(path)
    assert texts == [row.split("\t")[1] for row in rows]
    assert said == ["a.tsv: quotes are read as plain characters: without them each line is a row"]
    write("a.tsv", "id\ttext\n" + "\n".join(rows) + "\nbroken\n")  # the fault is that of this line alone
    assert refusal("a.tsv").startswith("a.tsv, line 42: expected 2 columns")


@pytest.mark.parametrize("content", ['id,text\n1,"a, b"\n2,"c\nd"\n3,"e ""f"""\n', 'text\n"a, b"\n"c\nd"\n"e ""f"""\n'])
def test_a_quoted_value_that_spans_lines_is_read_and_said(content):
    texts, said = texts_of(write("a.csv", content))
    assert texts == ["a, b", "c\nd", 'e "f"']
    assert said == ["a.csv: rows that span lines, by a quoted value: 1"]


def test_a_bad_quote_below_a_quoted_header_is_named():
    message = refusal(write("a.csv", '"id","text"\n"1","he said "no" to me"\n"2","two"\n'))
    assert message.startswith("a.csv, line 2: not a well-formed table")


@pytest.mark.parametrize("content", ["id,text\n1,one, two\n", "text\tid\none\n"])
def test_a_table_under_another_name_is_held_to_its_header(content):
    assert "line 2: expected 2 columns" in refusal(write("a.txt", content))


def test_a_column_that_nobody_asked_for_does_no_harm_within_an_object_either(tmp_path):
    far = pa.array([300_000_000_000], pa.timestamp("s"))
    table = pa.table({"body": pa.StructArray.from_arrays([pa.array(["one"]), far], ["text", "date"])})
    pa.parquet.write_table(table, "a.parquet")
    assert texts_of("a.parquet", "body.text") == (["one"], [])
    rows = Dataset(table)
    assert [texts.to_pylist() for texts, _ in read_dataset(rows, "body.text", "auto", "rows")] == [["one"]]
    assert "the columns are body" in refusal("a.parquet", "text")


def test_a_column_that_nobody_asked_for_does_no_harm():
    far = pa.array([300_000_000_000], pa.timestamp("s"))  # beyond the year 9999
    pa.parquet.write_table(pa.table({"text": ["one"], "date": far}), "a.parquet")
    assert texts_of("a.parquet") == (["one"], [])
    assert "the columns are text, date" in refusal("a.parquet", "body")
    assert texts_of(write("a.csv", "text,,\none,,\n"))[0] == ["one"]


def test_the_top_of_a_dotted_name_is_read():
    pa.parquet.write_table(pa.table({"body": [{"text": "one"}], "n": [1]}), "a.parquet")
    assert [row for _, row in read_table("a.parquet", "Parquet", ["body.text"], "utf-8", print)] == [
        {"body": {"text": "one"}}]  # fmt: skip


# ---------------------------------------------------------------- the key of the cache


def key_of(path, **flags):
    args = Namespace(**{"train_file": [path], "dataset_name": None, "text_column_name": "text",
                        "document_separator": "auto", "file_encoding": "utf-8"} | flags)  # fmt: skip
    return find_sources(args, ["train"], lambda line: None)["train"].key


def test_the_key_changes_with_what_decides_the_reading():
    key = key_of(write("a.txt", as_lines(ROWS)))
    assert key_of(write("wiki_00", as_lines(ROWS))) == key_of(write("a.jsonl", as_lines(ROWS))) == key
    assert key_of(write("b.txt", as_lines(ROWS[:-1]))) != key
    assert key_of(write("c.txt", "x\ty\n")) != key_of(write("c.tsv", "x\ty\n"))
    assert key_of("c.txt") != key_of("c.txt", file_encoding="cp1252")
    assert key_of(write("d.txt", "x\n")) == key_of(write("d.md", "x\n")) != key_of(write("d.csv", "x\n"))


# ---------------------------------------------------------------- tagged sentences and questions

CONLL = "Zoë\tB-PER\nleft\tO\n\nHi\tO\n"
SQUAD = {"data": [{"paragraphs": [{"context": "Zoë left.", "qas": [
    {"id": "a", "question": "Who?", "answers": [{"text": "Zoë", "answer_start": 0}]}]}]}]}  # fmt: skip


def rows_of(script, **flags):
    """What find_rows of a script finds in a --test_file."""
    args = {"do_train": False, "do_eval": False, "do_predict": True, "dataset_name": None, "label_list": None}
    names = ["train_file", "validation_file", "test_file", "text_column_name", "label_column_name", "unlabeled_file"]
    args = Namespace(**args | dict.fromkeys([*names, "questions_file"]) | {"file_encoding": "utf-8"} | flags)
    if script == run_ner:
        return script.find_rows(args, None, lambda line: None)[0]
    return script.find_rows(args, None)


@pytest.mark.parametrize(("content", "encoding"), [
    (bz2.compress(CONLL.encode("utf-16")), "utf-8"), (zipped(CONLL.encode("cp1252")), "cp1252"),
], ids=["UTF-16 in bzip2", "cp1252 in zip"])  # fmt: skip
def test_tagged_sentences_come_packed_and_in_any_encoding(content, encoding):
    for name in ("a.conll", "a.txt.bz2", "a.tsv"):
        found = rows_of(run_ner, test_file=[write(name, content)], file_encoding=encoding)
        sentences = [(row["tokens"], row["tags"]) for row in found["test"][0]]
        assert sentences == [(["Zoë", "left"], ["B-PER", "O"]), (["Hi"], ["O"])]
    unlabeled = write("a.txt.xz", lzma.compress("Zoë left\n".encode(encoding)))
    found = rows_of(run_ner, unlabeled_file=[unlabeled], file_encoding=encoding)
    assert [row["tokens"] for row in found["unlabeled"][0]] == [["Zoë", "left"]]


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.parquet", "a.csv"])
def test_tables_of_tagged_sentences_are_known_by_content(name):
    rows = [{"tokens": ["Zoë", "left"], "ner_tags": ["B-PER", "O"]}]
    for content in (as_lines(rows), json.dumps(rows).encode("utf-16"), as_parquet(rows)):
        [row] = rows_of(run_ner, test_file=[write(name, content)])["test"][0]
        assert (row["tokens"], row["tags"]) == (["Zoë", "left"], ["B-PER", "O"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "squad"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_questions_are_read_under_any_ending_packed_and_in_any_encoding(name, encoding):
    for text in (json.dumps(SQUAD, ensure_ascii=False), json.dumps(SQUAD, ensure_ascii=False, indent=1)):
        path = write(name, PACKINGS["xz in zstd"](text.encode(encoding)))
        [row] = rows_of(run_qa, test_file=[path], file_encoding=encoding)["test"][0]
        assert row["answers"] == [("Zoë", 0)]


# ---------------------------------------------------------------- anything

ALPHABET = ["a", "B", " ", "é", "中", "ß", "😀", "'", ",", ";", ".", '"', "{", "[", "ф", "-", "0"]


def random_texts(rng, more):
    texts = ["".join(rng.choices(ALPHABET + more, k=rng.randint(1, 30))).strip() for _ in range(rng.randint(3, 30))]
    return [text for text in texts if text] + ["end"]


@pytest.mark.parametrize("seed", range(20))
def test_the_same_rows_come_out_equal_in_every_layout_packing_and_name(seed):
    rng = random.Random(seed)
    texts = random_texts(rng, ["\n", "\t"])
    rows = [{"id": n, "text": text} for n, text in enumerate(texts)]
    for layout, write_rows in LAYOUTS.items():
        content = write_rows(rows)
        if rng.random() < 0.5 and not layout.endswith((".json", ".parquet")) and "\n" not in "".join(texts):
            content = content.replace(b"\n", b"\r\n")
        if rng.random() < 0.3 and not layout.endswith(".parquet"):
            content = in_encoding(content.decode(), rng.choice(MARKED))
        for name in (layout, rng.choice(NAMES)):
            for packing in (lambda content: content, PACKINGS[rng.choice([*PACKINGS])]):
                assert texts_of(write(name, packing(content)))[0] == texts


@pytest.mark.parametrize("seed", range(20))
def test_the_same_lines_come_out_equal_in_every_packing_and_encoding(seed):
    rng = random.Random(seed)
    texts = ["Begin", *random_texts(rng, ["\t", "\u2028", "\x85"])]
    for encoding in ("utf-8", *MARKED):
        content = in_encoding(rng.choice(["\n", "\r\n"]).join(texts), encoding)
        name = rng.choice(["a.txt", "b", "c.md.gz", "d.zip"])
        assert texts_of(write(name, PACKINGS[rng.choice([*PACKINGS])](content))) == (texts, [])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_random_or_damaged_is_refused_by_one_message_or_read(seed):
    rng = random.Random(seed)
    texts = random_texts(rng, [])
    rows = [{"id": n, "text": text} for n, text in enumerate(texts)]
    contents = {layout: write_rows(rows) for layout, write_rows in LAYOUTS.items()}
    contents |= {packing: pack(as_lines(rows)) for packing, pack in PACKINGS.items()}
    contents["utf-16"] = "\n".join(texts).encode("utf-16")
    for kind, content in contents.items():
        cut = content[: rng.randint(20, len(content) - 1)]
        spoilt = bytearray(content)
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        for damaged in (cut, bytes(spoilt)):
            path = write(rng.choice(NAMES), damaged)
            try:
                texts_of(path)
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert kind not in PACKINGS or damaged is not cut  # a checksum is missing
    assert refusal(write(rng.choice(NAMES), rng.randbytes(rng.randint(100, 5000))))
