"""Reading: lines, rows, texts and documents of every kind of file; for what cannot be read, a message that names it.

What utils/reading.py and utils/tables.py yield, and the texts that read_files of utils/texts.py makes of it.
"""

import gzip
import json
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from utils.errors import InputError
from utils.reading import find_files, parse_json, read_json, read_lines
from utils.tables import ending_of, find_kind, read_csv, read_table
from utils.texts import Source, has_blank_lines, hash_file, number_documents, read_column, read_files, write_texts


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Function that writes a file into the working folder, which is empty, and gives its name back."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        data = content.encode("utf-8") if isinstance(content, str) else content
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with gzip.open(name, "wb") if name.lower().endswith(".gz") else open(name, "wb") as file:
            file.write(data)
        return name

    return write


def lines_of(path):
    """All lines of read_lines, after a look at their numbers."""
    found = []
    for number, lines in read_lines(path):
        assert number == len(found) + 1
        found += lines
    return found


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


def texts_of(paths, column="text", separator="auto"):
    """Batches of texts, as of a Source, of files whose kinds are found."""
    return read_files(paths, [find_kind(path, [column], "utf-8", print) for path in paths], column, separator)


def read(path, column="text", separator="auto"):
    return documents_of(texts_of([path], column, separator))


def assert_refused(path, *parts, column="text"):
    """Reading ends with an InputError of one line that has the path and all the parts."""
    with pytest.raises(InputError) as refusal:
        list(texts_of([path], column))
    message = str(refusal.value)
    assert "\n" not in message
    for part in (path, *parts):
        assert part in message


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),  # no line end at the end
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),  # byte order mark
        (b"a\n\xef\xbb\xbfb", ["a", "\ufeffb"]),  # not at the beginning, it is a character of the text
        (b"\na\n\n", ["", "a", ""]),
        (b"", []),
        (b"\n", [""]),
        ("é\u2028x\x0b\x0c\x1c\x85y\rz\n中".encode(), ["é\u2028x\x0b\x0c\x1c\x85y\rz", "中"]),  # only LF ends a line
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "A.TXT.GZ"])
def test_lines_are_read_without_their_ends(write, name, content, lines):
    assert lines_of(write(name, content)) == lines


MEGABYTE = b"x" * (2**20 - 1) + b"\n"


def test_lines_beyond_the_first_batch_go_on_with_their_numbers(write):
    path = write("long.txt", MEGABYTE * 20 + b"one\r\ntwo\n\nfour")
    assert lines_of(path)[20:] == ["one", "two", "", "four"]
    assert len(list(read_lines(path))) > 1  # of a file larger than the memory, only a part is in it at a time


def test_only_the_first_line_of_a_file_loses_its_byte_order_mark(write):
    lines = ["\ufeff" + "x" * 2**20] * 20
    assert lines_of(write("long.txt", "\n".join(lines))) == [lines[0][1:], *lines[1:]]


@pytest.mark.parametrize(
    ("content", "line", "byte", "value"),
    [
        (b"caf\xe9", 1, 4, "0xe9"),
        (b"one\ntwo\nthr\xffee\nfour\n", 3, 4, "0xff"),
        (b"one\r\n\xfftwo", 2, 1, "0xff"),
        ("é\nö".encode() + b"\xc3\n", 2, 3, "0xc3"),  # cut off within a character; byte 3, though the second character
        (MEGABYTE * 20 + b"one\ncaf\xe9\n", 22, 4, "0xe9"),  # beyond the first 16 MB
        (MEGABYTE * 16 + b"\xe9\n" + MEGABYTE, 17, 1, "0xe9"),  # around the end of them
        (MEGABYTE * 17 + b"\xe9\n", 18, 1, "0xe9"),
    ],
    ids=["first", "middle", "crlf", "cut", "16 MB", "16 MB end", "17 MB"],
)
def test_a_byte_that_is_not_utf_8_is_named_with_its_line(write, content, line, byte, value):
    place = f"latin.txt, line {line}: byte {byte} of the line ({value}) is not UTF-8"
    assert_refused(write("latin.txt", content), place, "--file_encoding")


def test_a_gz_file_that_was_cut_off_is_named(write):
    path = write("a.txt.gz", "some text\n" * 1000)
    with open(path, "rb") as file:
        whole = file.read()
    for damaged in (whole[:-12], whole[:8], whole[:30] + bytes(10) + whole[40:]):
        with open(path, "wb") as file:
            file.write(damaged)
        assert_refused(path, "cannot be read")


def test_a_file_that_is_not_there_is_named(write):
    assert_refused("never.txt", "cannot be read", "No such file")


# ---------------------------------------------------------------- plain text


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("a\nb\nc\n", [["a"], ["b"], ["c"]]),  # without a blank line: a document a line
        ("a\nb\n\nc\n", [["a", "b"], ["c"]]),
        ("a\nb\n\n\n \t\nc\nd\n\ne", [["a", "b"], ["c", "d"], ["e"]]),
        ("\n\na\nb\n\n\n", [["a"], ["b"]]),  # blank lines before and behind part nothing
        ("\na\n", [["a"]]),
        ("\na\nb\n\nc\n\n", [["a", "b"], ["c"]]),
        ("a\r\n\r\nb\r\nc\r\n", [["a"], ["b", "c"]]),
        ("  a  \n\u3000\n\tb\n", [["a"], ["b"]]),  # white space around a text goes, and alone makes a blank line
        ("\ufeffa\n\nb", [["a"], ["b"]]),
        ("a", [["a"]]),
        ("", []),
        (" \n\n\t", []),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md", "a"])
def test_documents_end_at_blank_lines_or_else_at_each_line(write, name, content, documents):
    assert read(write(name, content)) == documents


def test_a_blank_line_that_comes_late_makes_the_whole_file_separated(write):
    assert read(write("a.txt", MEGABYTE * 17 + b"b\n\nc\n"))[-2:] == [["x" * (2**20 - 1)] * 17 + ["b"], ["c"]]


# ---------------------------------------------------------------- tables


ROWS = [{"text": "One, two.", "id": "1"}, {"text": "", "id": "2"}, {"text": ' "Naïve" 中 ', "id": "3"},
        {"text": "a\n\nb", "id": "4"}]  # fmt: skip
FILLED = [["One, two."], ['"Naïve" 中'], ["a\n\nb"]]
CSV = 'id,text\n1,"One, two."\n2,\n3," ""Naïve"" 中 "\n4,"a\n\nb"\n'
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CONTENTS = {
    "a.jsonl": LINES,
    "lines.json": LINES,
    "list.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "data.json": json.dumps({"version": "1", "data": ROWS}),
    "a.csv": CSV,
    "a.tsv": CSV.replace("One, two.", "One; two.").replace(",", "\t").replace(";", ","),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("change", ["", ".gz", "CRLF", "BOM", "upper case", "no line end"])
def test_each_row_of_a_table_with_text_is_a_document(write, name, change):
    content = CONTENTS[name]
    changed = {"CRLF": content.replace("\n", "\r\n"), "BOM": "\ufeff" + content, "no line end": content.rstrip("\n")}
    content = changed.get(change, content)
    name = {".gz": f"{name}.gz", "upper case": name.upper()}.get(change, name)
    assert read(write(name, content)) == FILLED


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_each_row_of_a_parquet_file_with_text_is_a_document(write, name):
    pa.parquet.write_table(pa.table({"text": [None, *(row["text"] for row in ROWS)], "n": range(5)}), "table")
    with open("table", "rb") as file:
        assert read(write(name, file.read())) == FILLED


def test_null_and_blank_texts_are_left_out(write):
    rows = ['{"text": null}', '{"text": "a"}', '{"text": " \\n "}', '{"text": "b", "other": [1, {"x": null}]}']
    assert read(write("a.jsonl", "\n".join(rows))) == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '\n{"text": "a"}\n\n{"text": "b"}\n\n'),
        ("a.json", '\n{"text": "a"}\n\n{"text": "b"}\n'),
        ("a.csv", "text\n\na\n\nb\n\n"),
        ("a.tsv", "text\tn\n\na\t1\n\nb\t2\n"),
        ("b.csv", "\ntext\na\nb\n"),
    ],
)
def test_empty_lines_between_rows_are_fine(write, name, content):
    assert read(write(name, content)) == [["a"], ["b"]]


def test_white_space_only_lines_between_rows_are_fine(write):
    assert read(write("a.jsonl", '{"text": "a"}\n  \n{"text": "b"}\n \t')) == [["a"], ["b"]]


@pytest.mark.parametrize("content", ['{"text": "a", "n": 1}', '{\n"text": "a"\n}\n'])
def test_json_with_one_object_is_one_row(write, content):
    assert read(write("a.json", content)) == [["a"]]


def test_a_table_longer_than_a_batch_keeps_its_rows_apart(write):
    count = 25_000
    rows = read(write("a.csv", "text\n" + "".join(f"{i}\n" for i in range(count))))
    assert rows == [[str(i)] for i in range(count)]


def test_the_column_can_be_chosen(write):
    assert read(write("a.csv", "text,body\nx,y\n"), column="body") == [["y"]]


def test_a_field_may_be_longer_than_the_limit_of_the_csv_module(write):
    assert read(write("a.csv", f"text,n\n{'x' * 200_000},1\n")) == [["x" * 200_000]]


# ---------------------------------------------------------------- rows, and what stands in place of a faulty one


def rows_and_faults(path):
    """What a reader yields, a fault as its words: [(place, row or words)]."""
    rows = read_table(path, find_kind(path, ["text"], "utf-8", print), ["text"], "utf-8", print)
    return [(place, str(row) if isinstance(row, InputError) else row) for place, row in rows]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": b}\n\n{"text": "c"}\n', "line 2"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n\n{"text": "c"}\n', "line 2"),
        ("a.json", '{"text": "a"}\n5\n\n{"text": "c"}\n', "line 2"),
        ("a.json", '[{"text": "a"}, null, {"text": "c"}]', "entry 2"),
        ("a.json", '{"data": [{"text": "a"}, "b", {"text": "c"}]}', "entry 2"),
        ("a.csv", "text\na\nb,d\n\nc\n", "line 3"),
        ("a.tsv", "text\na\nb\td\n\nc\n", "line 3"),
    ],
)
def test_in_place_of_a_faulty_row_stands_its_fault_and_the_rows_around_it_are_read(write, name, content, line):
    found = rows_and_faults(write(name, content))
    assert [row for _, row in (found[0], found[2])] == [{"text": "a"}, {"text": "c"}] and len(found) == 3
    place, words = found[1]
    assert place == f"{name}, {line}" and words.startswith(place) and "expected" in words.lower()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_each_row_stands_with_its_line_or_its_number(write, name):
    places = [place for place, _ in rows_and_faults(write(name, CONTENTS.get(name, CONTENTS["list.json"])))]
    expected = {"a.jsonl": ["line 1", "line 2", "line 3", "line 4"], "a.json": [f"entry {n}" for n in range(1, 5)]}
    ends = expected.get(name, ["line 2", "line 3", "line 4", "line 7"])  # where the row ends: the last one has 3 lines
    assert places == [f"{name}, {place}" for place in ends]


def test_a_row_of_parquet_stands_with_its_number(write):
    pa.parquet.write_table(pa.table({"text": [f"{n}" for n in range(70)]}), "a.parquet", row_group_size=9)
    rows = rows_and_faults("a.parquet")
    assert rows == [(f"a.parquet, row {n + 1}", {"text": f"{n}"}) for n in range(70)]


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ('{"a": }', 7, ["f.jsonl, line 7, column 7: not JSON: Expecting value", "found '{\"a\": }'"]),
        ("[1,\n2", None, ["f.jsonl, line 2, column 2: not JSON", "cut off"]),
        ("", None, ["f.jsonl, line 1, column 1: not JSON"]),
        ("[" * 200_000, 3, ["f.jsonl, line 3, column 1: not JSON: maximum recursion depth"]),
    ],
)
def test_what_is_not_json_becomes_its_fault(text, line, parts):
    fault = parse_json(text, "f.jsonl", line)
    assert isinstance(fault, InputError) and all(part in str(fault) for part in parts)


@pytest.mark.parametrize("value", [{"a": [1, None, "é"]}, [], 5, None, "text"])
def test_json_becomes_its_value(value):
    assert parse_json(json.dumps(value), "f.json") == value


def test_a_table_with_a_column_twice_is_refused(write):
    with pytest.raises(InputError, match="^a.csv, line 1: a column stands there twice: text, n, text"):
        list(read_csv(write("a.csv", "text,n,text\na,1,b\n"), ["text"], "utf-8", print))


def test_a_value_of_a_faulty_row_is_not_read_as_text(write):
    """A reader that goes on after faults must not hide them from one that does not."""
    path = write("a.jsonl", '{"text": "a"}\nnull\n')
    assert len(list(read_json(path))) == 2
    assert_refused(path, "line 2: expected an object", "'null'")


@pytest.mark.parametrize(
    ("path", "ending"),
    [("a.csv", ".csv"), ("b/A.CSV.GZ", ".csv"), ("a.b.jsonl", ".jsonl"), ("a.gz", ""), ("a", ""), ("a.d/b", ""),
     (".jsonl", "")],
)  # fmt: skip
def test_the_ending_tells_the_kind_also_of_a_packed_file(path, ending):
    assert ending_of(path) == ending


# ---------------------------------------------------------------- what is refused, and how


@pytest.mark.parametrize("value", [0, 3, 0.0, 1.5, True, False, {}, {"a": "b"}])
def test_a_value_that_is_no_text_is_refused_whatever_it_is(write, value):
    path = write("a.jsonl", json.dumps({"text": "a"}) + "\n" + json.dumps({"text": value}) + "\n")
    assert_refused(path, "line 2", "expected text in column 'text'", repr(value))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": b}\n', ["line 2, column 10", "not JSON", "'{\"text\": b}'", "one object"]),
        ("a.jsonl", '{"text": "a"}\n\nhello\n', ["line 3, column 1", "not JSON", "'hello'"]),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', ["line 2", "expected an object", "'[\"b\"]'"]),
        ("a.jsonl", '{"text": "a"} {"text": "b"}\n', ["line 1, column 15", "not JSON"]),
        ("a.jsonl", "{\n", ["line 1", "not JSON"]),
        ("a.jsonl", '{"text": "a"}\n{"title": "b", "n": 1}\n',
         ["line 2", "expected text in column 'text'", "the columns are title, n"]),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', ["line 2", "expected text in column 'text'", "'3'"]),
        ("a.jsonl", '{"text": ["a", 3]}\n', ["line 1", "expected text in column 'text'", "3"]),
        ("a.json", '[{"text": "a"},\n {"text":', ["line 2, column 10", "not JSON", "cut off"]),
        ("a.json", '{"text": "a"}\n{"text": "b"\n', ["line 2", "not JSON"]),
        ("a.json", '[{"text": "a"}, 5]', ["entry 2", "expected an object", "'5'"]),
        ("a.json", '{"data": [{"text": "a"}, {"title": "b"}]}',
         ["entry 2", "expected text in column 'text'", "the columns are title"]),
        ("a.json", "null", ["expected", "null"]),
        ("a.json", "3", ["expected", "3"]),
        ("a.json", '"text"', ["expected"]),
        ("a.json", '{"data": null}', ["expected", "None"]),
        ("a.json", '{"data": 5}', ["expected", "5"]),
        ("a.csv", "text,n\na,1\nb\n", ["line 3", "expected 2 columns (text, n), found 1", "double quotes"]),
        ("a.csv", 'text,n\n"a\nb",1\nc,d,2\n', ["line 4", "expected 2 columns (text, n), found 3"]),
        ("a.csv", 'text,n\na,1\n"b,2,3\n', ["line 3", "not a well-formed table", "quotes"]),
        ("a.csv", 'text\n"a"b, c\n', ["line 2", "not a well-formed table", "quotes"]),
        ("a.csv", "title,n\na,1\n",
         ["line 2", "expected text in column 'text'", "the columns are title, n", "--text_column_name"]),
        ("a.tsv", "text\tn\na\n", ["line 2", "expected 2 columns (text, n), found 1"]),
        ("a.csv", b"text\na\ncaf\xe9\n", ["line 3: byte 4", "UTF-8"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', ["line 2: byte 11", "UTF-8"]),
        ("a.json", b'[{"text": "a"},\n{"text": "\xe9"}]\n', ["line 2: byte 11", "UTF-8"]),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place_and_what_was_expected(write, name, content, parts):
    assert_refused(write(name, content), *parts)


@pytest.mark.parametrize("text", ["\\ud83d", "cut \\ud83d off", "\\ude00\\ud83d"])
def test_half_a_character_in_json_is_refused_as_it_is_no_unicode(write, text):
    """JSON can escape one half of a surrogate pair, which no tokenizer and no UTF-8 file can take."""
    assert read(write("whole.jsonl", '{"text": "\\ud83d\\ude00"}\n')) == [["😀"]]
    assert_refused(write("half.jsonl", f'{{"text": "a"}}\n{{"text": "{text}"}}\n'), "line 2")


def parquet(column):
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"text": column}), sink)
    return sink.getvalue().to_pybytes()


def not_utf_8():
    column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    return parquet(column)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (lambda: parquet(["a"])[:-20], ["cannot be read as Parquet"]),
        (lambda: b"text\na\n", ["cannot be read as Parquet"]),
        (lambda: b"", ["cannot be read as Parquet"]),
        (lambda: b"PAR1" + bytes(60) + parquet(["a", "b"] * 100)[64:], ["cannot be read as Parquet"]),
        (lambda: parquet(["a", None, b"b"]), ["row 1", "expected text in column 'text'"]),
        (lambda: parquet([1, 2]), ["row 1", "expected text in column 'text'", "'1'"]),
        (lambda: parquet([None, [["a"]]]), ["row 2", "expected text in column 'text'"]),
        (not_utf_8, []),
    ],
    ids=["cut", "csv", "empty", "damaged", "bytes", "numbers", "lists", "not UTF-8"],
)
def test_a_parquet_file_that_has_no_text_is_refused(write, content, parts):
    assert_refused(write("a.parquet", content()), *parts)


def test_a_damaged_gz_of_a_parquet_file_is_refused(write):
    path = write("a.parquet.gz", parquet([f"{i * i} and more" for i in range(1000)]))
    with open(path, "rb") as file:
        whole = file.read()
    damaged = [whole[:at] + bytes(9) + whole[at + 9 :] for at in range(20, len(whole) - 20, len(whole) // 20)]
    for content in (whole[:-30], whole[:8], whole[:-8] + bytes(8), b"PAR1", *damaged):
        with open(path, "wb") as file:
            file.write(content)
        assert_refused(path, "cannot be read")


# ---------------------------------------------------------------- several files


def test_documents_are_numbered_through_several_files(write):
    contents = {
        "a.txt": "a\nb\n\nc\n",
        "empty.txt": "\n",
        "b.jsonl": '{"text": "d"}\n{"text": ""}\n{"text": "e"}\n',
        "c.txt": "\nf\ng\n",
        "d.txt": "\n\nh\ni\n\nj\n",
    }
    documents = documents_of(texts_of([write(*file) for file in contents.items()]))
    assert documents == [["a", "b"], ["c"], ["d"], ["e"], ["f"], ["g"], ["h", "i"], ["j"]]


def test_documents_are_numbered_through_where_a_file_ends_with_many_empty_rows(write):
    paths = [write("a.jsonl", '{"text": "a"}\n' + '{"text": null}\n' * 25_000), write("b.txt", "b\n")]
    assert documents_of(texts_of(paths)) == [["a"], ["b"]]


@pytest.mark.parametrize(
    "contents",
    [
        {"a.txt": " \n\n", "b.txt": ""},
        {"b.txt": ""},
        {"a.csv": "text\n"},
        {"a.csv": ""},
        {"a.jsonl": '{"text": null}\n{"text": " "}\n'},
        {"a.json": "[]"},
        {"a.json": ""},
        {"a.jsonl": ""},
    ],
)
def test_files_without_any_text_are_refused(write, tmp_path, contents):
    paths = [write(*file) for file in contents.items()]
    source = Source("a.txt and more", "key", lambda: texts_of(paths))
    assert documents_of(source.read()) == []
    with pytest.raises(InputError, match=r"^a.txt and more: there is no text in it.*Expected text.*a table"):
        write_texts(source, tmp_path / "text.arrow")
    assert not (tmp_path / "text.arrow").exists()


def test_a_fault_in_a_later_file_names_that_file(write):
    paths = [write("a.txt", "a\n"), write("b.txt", b"b\n\xff\n")]
    with pytest.raises(InputError, match=r"^b.txt, line 2: "):
        list(texts_of(paths))


# ---------------------------------------------------------------- what ends a document


@pytest.mark.parametrize(
    ("content", "by_blank_line", "by_line"),
    [
        ("a\nb\nc\n", [["a", "b", "c"]], [["a"], ["b"], ["c"]]),
        ("a\nb\n\nc\n", [["a", "b"], ["c"]], [["a"], ["b"], ["c"]]),
        ("\n\na\nb\n \t\n\r\n\nc\nd\n\n", [["a", "b"], ["c", "d"]], [["a"], ["b"], ["c"], ["d"]]),
        ("\na\nb\n\n", [["a", "b"]], [["a"], ["b"]]),
        ("a", [["a"]], [["a"]]),
        ("", [], []),
        ("\n \n", [], []),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.md.gz"])
def test_documents_of_plain_text_end_where_the_separator_says(write, name, content, by_blank_line, by_line):
    path = write(name, content)
    assert read(path, separator="blank_line") == by_blank_line
    assert read(path, separator="line") == by_line
    assert read(path, separator="row") == by_line  # the rows of plain text are its lines
    separated = len(by_blank_line) > 1  # a blank line between two others
    assert has_blank_lines(path) == separated
    assert read(path, separator="auto") == (by_blank_line if separated else by_line)


def test_a_document_goes_on_beyond_the_piece_that_is_read_at_once(write):
    path = write("a.txt", MEGABYTE * 6 + b"\n" + MEGABYTE * 5 + b"end")
    line = "x" * (2**20 - 1)
    assert len(list(texts_of([path], "text", "blank_line"))) > 2
    assert read(path, separator="blank_line") == [[line] * 6, [line] * 5 + ["end"]]
    assert read(path, separator="line") == [[line]] * 11 + [["end"]]


BREAKS = ["a", "b", "", "c", None, " \t", "d", "e"]
BY_BLANK, BY_ROW = [["a", "b"], ["c"], ["d", "e"]], [["a"], ["b"], ["c"], ["d"], ["e"]]
SEPARATORS = [("auto", BY_ROW), ("row", BY_ROW), ("line", BY_ROW), ("blank_line", BY_BLANK)]


def tables_of(texts):
    rows = [{"text": text, "n": n} for n, text in enumerate(texts)]
    return {
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "a.json": json.dumps(rows),
        "a.csv": "text,n\n" + "".join(f"{text or ''},{n}\n" for n, text in enumerate(texts)),
        "a.tsv.gz": "text\tn\n" + "".join(f'"{text or ""}"\t{n}\n' for n, text in enumerate(texts)),
        "a.parquet": parquet(texts),
    }


@pytest.mark.parametrize(("separator", "documents"), SEPARATORS)
@pytest.mark.parametrize("name", tables_of(BREAKS))
def test_documents_of_a_table_end_where_the_separator_says(write, name, separator, documents):
    assert read(write(name, tables_of(BREAKS)[name]), separator=separator) == documents


@pytest.mark.parametrize("name", tables_of(BREAKS))
def test_a_row_with_text_ends_no_document_where_blank_lines_do(write, name):
    assert read(write(name, tables_of("abc")[name]), separator="blank_line") == [["a", "b", "c"]]


def test_documents_of_a_table_go_on_beyond_the_rows_that_are_read_at_once(write):
    texts = [*["a"] * 10_005, "", *["b"] * 9_994, "", "", *["c"] * 3]  # the third 10,000 begin with an end
    path = write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert len(list(texts_of([path], "text", "blank_line"))) > 2
    assert read(path, separator="blank_line") == [["a"] * 10_005, ["b"] * 9_994, ["c"] * 3]
    assert read(path, separator="row") == [[text] for text in texts if text]


@pytest.mark.parametrize(("separated", "numbers"), [(False, [[0, 2], [3, 6]]), (True, [[0, 1], [1, 3]])])
def test_documents_are_numbered_through_batches(separated, numbers):
    batches = [(pa.array(texts, pa.large_string()), np.ones(len(texts), dtype=bool))
               for texts in (["a", "", "b"], ["c", "", "", "d"], [], [""])]  # fmt: skip
    found = list(number_documents(batches, separated))
    assert [texts.to_pylist() for texts, _ in found] == [["a", "b"], ["c", "d"], [], []]
    assert all(texts.type == pa.large_string() and documents.dtype == "int64" for texts, documents in found)
    assert [documents.tolist() for _, documents in found] == [*numbers, [], []]


def test_nothing_has_no_documents():
    assert list(number_documents([], True)) == list(number_documents([], False)) == []


def test_a_column_is_read_without_white_space_around_it_and_null_is_empty():
    rows = [("there", {"text": text}) for text in (" a ", "", None, "\n", "b c")]
    [(texts, ends)] = read_column(iter(rows), "text")
    assert ends.tolist() == [True] * 5
    assert texts.type == pa.large_string() and texts.to_pylist() == ["a", "", "", "", "b c"]
    assert list(read_column(iter([]), "text")) == []


@pytest.mark.parametrize("blank", [" ", "\t", "\r", "\x0c", " \t \r", "\u00a0", "\u3000", "\u2003 \u00a0", "\u2028"])
@pytest.mark.parametrize("late", [False, True])
def test_a_line_of_any_white_space_is_a_blank_line_for_each_separator(write, blank, late):
    before = ["a"] + ["x" * (2**20 - 1)] * 5 * late
    path = write("a.txt", "\n".join([*before, blank, "b", "c"]))
    for separator in ("blank_line", "auto"):
        assert read(path, separator=separator) == [before, ["b", "c"]]


@pytest.mark.parametrize("around", ["end", "begin", "line"])
def test_a_long_run_of_blank_lines_or_spaces_takes_no_time(write, around):
    """As a table that was saved as text leaves them. The limit is a hundred times what it takes."""
    runs = {"end": "a\nb" + "\n" * 2_000, "begin": "\n" * 2_000 + "a\nb", "line": "a" + " " * 2_000 + "\nb"}
    path = write("a.txt", runs[around])
    since = time.perf_counter()
    assert not has_blank_lines(path)
    assert time.perf_counter() - since < 2


@pytest.mark.parametrize(
    ("separator", "documents"),
    [
        ("auto", [["a"], ["b"], ["c", "d"], ["e"], ["f"], ["g"], ["h"], ["i"]]),
        ("blank_line", [["a", "b"], ["c", "d"], ["e"], ["f", "g"], ["h"], ["i"]]),
        ("line", [[letter] for letter in "abcdefghi"]),
        ("row", [[letter] for letter in "abcdefghi"]),
    ],
)
def test_the_separator_holds_for_each_of_several_files_and_a_file_ends_a_document(write, separator, documents):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("f", "g", "", "h"))
    files = {"a.txt": "a\nb\n", "b.txt": "c\nd\n\ne", "empty.txt": "\n\n", "c.jsonl": lines, "d.txt": "i"}
    paths = [write(*file) for file in files.items()]
    assert documents_of(texts_of(paths, "text", separator)) == documents


# ---------------------------------------------------------------- finding files


@pytest.fixture
def files(write):
    for name in ("b.txt", "a.txt", "c.md", "texts/d.txt", "texts/deep/e.txt", "x[1].txt"):
        write(name, name)
    os.mkdir("folder.txt")


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["b.txt", "a.txt"], ["b.txt", "a.txt"]),  # in the order given
        (["*.txt"], ["a.txt", "b.txt", "x[1].txt"]),  # sorted, and without folders
        (["c.md", "*.txt"], ["c.md", "a.txt", "b.txt", "x[1].txt"]),
        (["**/*.txt"], ["a.txt", "b.txt", "texts/d.txt", "texts/deep/e.txt", "x[1].txt"]),
        (["[ab].txt"], ["a.txt", "b.txt"]),
        (["x[1].txt"], ["x[1].txt"]),  # a file of that very name
    ],
)
def test_paths_and_globs_are_found(files, patterns, found):
    assert [path.replace(os.sep, "/") for path in find_files(patterns, "--train_file")] == found


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("d.txt", "there is no such file"),
        ("*.jsonl", "there is no such file"),
        ("fold*", "there is no such file"),  # only a folder does
        ("texts", "this is a folder, or a pipe, expected a file"),
        ("", "there is no such file"),
    ],
)
def test_what_is_no_file_is_refused_with_flag_pattern_and_working_folder(files, pattern, fault):
    with pytest.raises(InputError) as refusal:
        find_files(["a.txt", pattern], "--train_file")
    assert str(refusal.value).startswith(f"--train_file {pattern}: {fault} (looked in {os.getcwd()})")


# ---------------------------------------------------------------- hashes


def hash_files(paths):
    return [hash_file(path) for path in paths]


@pytest.mark.parametrize("name", ["a.txt", "noending", "two.dots.txt", "a.jsonl.gz"])
def test_the_hash_is_the_same_wherever_and_under_whatever_name_the_files_lie(write, tmp_path, name):
    write(name, "one\n")
    write(f"v1.0/sub/{name}", "one\n")
    os.replace(name, f"copy-{name}")  # gzip notes the time
    write(name, "two\n")
    with open(name, "wb") as file, open(f"v1.0/sub/{name}", "rb") as same:
        file.write(same.read())
    os.utime(name, (0, 0))
    here = hash_files([name])
    assert hash_files([f"v1.0/sub/{name}"]) == here
    assert hash_files([str(tmp_path / name)]) == here
    assert hash_files([os.path.join(".", name)]) == here


def test_another_name_has_the_same_hash(write):
    assert hash_files([write("a.txt", "one")]) == hash_files([write("b.md", "one")])


@pytest.mark.parametrize(
    "other",
    [
        {"a.txt": "onf", "b.txt": "two"},
        {"b.txt": "two", "a.txt": "one"},
        {"a.txt": "one"},
        {"a.txt": "onetwo"},
        {"a.txt": "on", "b.txt": "etwo"},
        {"a.txt": "one", "b.txt": "two", "c.txt": ""},
    ],
)
def test_a_changed_byte_or_another_order_changes_the_hash(write, other):
    before = hash_files([write("a.txt", "one"), write("b.txt", "two")])
    assert hash_files([write(f"other/{name}", content) for name, content in other.items()]) != before
