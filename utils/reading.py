"""Reading text from files, with messages that name the place."""

import csv
import glob
import gzip
import hashlib
import itertools
import json
import os
import re
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet


class InputError(ValueError):
    """A mistake in what the user gave. Its message is all they are shown; the exit status is 2."""

    only_here = False  # True where the other processes of the run know that this one has something to say


def find_files(patterns, flag):
    """Expand paths and globs to a list of files, sorted within a glob. InputError where there is none, or a folder."""
    files = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else [p for p in sorted(glob.glob(pattern, recursive=True))
                                                           if not os.path.isdir(p)]
        if not found or os.path.isdir(pattern):
            fault = ("this is a folder, expected a file" if found else "no file matches this pattern"
                     if glob.has_magic(pattern) else "there is no such file")
            raise InputError(f"{flag} {pattern}: {fault} (looked in {os.getcwd()}). Give a file, or a glob like *.txt")
        files += found
    return files


def hash_files(paths):
    """SHA-256 over the endings and contents of files: the same wherever they lie and whenever they were written."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        ending = os.path.splitext(path.lower().removesuffix(".gz"))[1] + ".gz" * path.lower().endswith(".gz")
        digest.update(f"{ending} {content}\n".encode())
    return digest.hexdigest()


def read_chunks(path):
    """Read a UTF-8 file, also .gz, in pieces of whole lines: yields (number of the first line, from 1, and the bytes).

    A byte order mark is taken off. InputError names the line and the byte that is not UTF-8.
    """
    number = 1
    try:
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
            while raw := file.read(1 << 22) + file.readline():
                raw.decode("utf-8")  # only to check it
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                number += raw.count(b"\n")
    except UnicodeDecodeError as error:
        line, byte = number + raw.count(b"\n", 0, error.start), error.start - raw.rfind(b"\n", 0, error.start)
        raise InputError(f"{path}, line {line}: byte {byte} of the line (0x{raw[error.start]:02x}) is not UTF-8. "
                         f"Convert it to UTF-8, for instance with: iconv -f latin1 -t utf-8 {path} > new.txt") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}. Was it cut off, or is it of another kind?") from None


def read_lines(path):
    """Read a UTF-8 file, also .gz, in batches: yields (number of the first line, from 1, and the lines without end)."""
    for number, raw in read_chunks(path):
        yield number, [line.removesuffix("\r") for line in raw.removesuffix(b"\n").decode("utf-8").split("\n")]


def read_json(path, on_fault=None):
    """Read .jsonl, or .json that is a list, an object with a list under `data`, or lines: yields (place, object).

    InputError names line and column of what is not JSON, or what stands there instead of an object; on_fault, if given,
    is called with place and InputError of such a row instead.
    """
    rows = ((f"{path}, line {n}", line) for first, batch in read_lines(path) for n, line in enumerate(batch, first))
    parsed = False
    if path.lower().removesuffix(".gz").endswith(".json"):
        rows = list(rows)
        try:
            value = json.loads("\n".join(line for _, line in rows))
            value = value.get("data", [value]) if isinstance(value, dict) else value
            value = value if isinstance(value, list) else [value]
            rows, parsed = [(f"{path}, entry {n}", row) for n, row in enumerate(value, 1)], True
        except (ValueError, RecursionError) as error:
            if not str(error).startswith("Extra data"):  # otherwise it has one object a line, and is read as such
                line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
                raise InputError(f"{path}, line {line}, column {column}: not JSON: {getattr(error, 'msg', error)}. "
                                 "Was the file cut off?") from None
    for place, row in rows:
        if not (parsed or row.strip()):
            continue
        try:
            row = row if parsed else json.loads(row)
        except (ValueError, RecursionError) as error:
            column, fault = getattr(error, "colno", 1), getattr(error, "msg", error)
            fault = InputError(f"{place}, column {column}: not JSON: {fault} in {row[:40]!r}. Expected one object a "
                               "line.")
        else:
            if isinstance(row, dict):
                yield place, row
                continue
            found = json.dumps(row, ensure_ascii=False)[:40]
            fault = InputError(f"{place}: expected an object such as {{\"text\": …}}, found {found!r}")
        if on_fault is None:
            raise fault from None
        on_fault(place, fault)


def read_csv(path, on_fault=None):
    """Read .csv or .tsv with a header: yields (place, dict of the row). InputError names the line of a faulty row.

    on_fault, if given, is called with place and InputError of a row that has not the columns of the header instead.
    """
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.lower().removesuffix(".gz").endswith(".tsv") else ","
    lines = (f"{line}\n" for _, batch in read_lines(path) for line in batch)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next((row for row in rows if row), [])
        if len(set(header)) < len(header):
            raise InputError(f"{path}, line {rows.line_num}: a column stands there twice: {', '.join(header)}")
        for row in rows:
            place = f"{path}, line {rows.line_num}"
            if row and len(row) != len(header):
                fault = InputError(f"{place}: expected {len(header)} columns ({', '.join(header)}), found {len(row)}. "
                                   "Put a value that holds the separator in double quotes.")
                if on_fault is None:
                    raise fault
                on_fault(place, fault)
            elif row:
                yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not a well-formed table: {error}. Check the quotes.") from None


def read_parquet(path):
    """Read .parquet: yields (place, dict of the row). InputError where the file is damaged."""
    try:
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
            batches = pa.parquet.ParquetFile(file).iter_batches()
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"{path}, row {n}", row) for n, row in enumerate(rows, 1))
    except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())[:100]}") from None


def read_paragraphs(path, separator="auto"):
    """Read plain text, a paragraph a line, as read_texts does: yields (texts, documents).

    A blank line ends a document; a file without blank lines between its lines has one document a line ("auto"). Or one
    of the two, whatever the file has: "blank_line" or "line".
    """
    def read_trimmed():  # without a Python object for each line, which would take most of the time
        for _, raw in read_chunks(path):
            raw = raw.removesuffix(b"\n")
            starts = np.flatnonzero(np.frombuffer(raw, np.uint8) == ord("\n")) + 1
            offsets = pa.py_buffer(np.concatenate([[0], starts, [len(raw)]]))
            lines = pa.LargeStringArray.from_buffers(len(starts) + 1, offsets, pa.py_buffer(raw))
            lines = pa.compute.utf8_trim_whitespace(lines)  # (lines,); line ends, too
            yield lines, pa.compute.binary_length(lines).to_numpy() > 0

    separated, lines, first, filled = separator == "blank_line", 0, None, 0
    for _, has_text in read_trimmed() if separator == "auto" else ():
        places = lines + np.flatnonzero(has_text)
        if len(places):
            first = places[0] if first is None else first
            filled += len(places)
            separated = places[-1] - first >= filled  # a blank line stands between two others
        if separated:
            break
        lines += len(has_text)
    number = 0
    for texts, has_text in read_trimmed():
        ends = ~has_text if separated else np.ones_like(has_text)  # where the next line is another document
        documents = number + np.cumsum(ends) - ends
        number += ends.sum()
        yield texts.filter(pa.array(has_text)), documents[has_text]


def number_rows(texts, first, separator):
    """Number the documents of a table's rows from `first` on: (texts and documents as of read_texts, the next number).

    Each row is a document; where the separator is "blank_line", a row without text ends one.
    """
    texts = [(text or "").strip() for text in texts]
    ends = np.array([separator != "blank_line" or not text for text in texts], dtype=np.int64)
    documents = first + np.cumsum(ends) - ends
    filled = np.array(list(map(bool, texts)), dtype=bool)
    return pa.array([text for text in texts if text], pa.large_string()), documents[filled], first + ends.sum()


def read_texts(path, column, separator="auto"):
    """Read the texts of a file, without the empty ones: paragraphs, or the rows of a table.

    Plain text, which any ending but those of tables is, is read by read_paragraphs. In .jsonl, .json, .csv, .tsv and
    .parquet each row is a document.

    Args:
        path: the file; all kinds also as .gz.
        column: which column or key of a table holds the text.
        separator: what ends a document: "auto", as said above; "blank_line", also a row without text; "line" or "row".

    Yields:
        (texts, documents): an Arrow array of large_string, and the number of the document of each, from 0 (int64).

    Raises:
        InputError: it cannot be read, or a row has no such column, or something else than text in it.
    """
    readers = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet}
    reader = readers.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])
    if reader is None:
        yield from read_paragraphs(path, "line" if separator == "row" else separator)
        return
    rows, number = reader(path), 0
    while batch := list(itertools.islice(rows, 10_000)):
        for place, row in batch:
            if column not in row or not isinstance(row[column], str | None):
                fault = (f"expected text in column {column!r}, found {str(row[column])[:40]!r}" if column in row else
                         f"there is no column {column!r}; the columns are {', '.join(map(str, row))}")
                raise InputError(f"{place}: {fault}. Name the column that holds the text with --text_column_name.")
            if re.search("[\ud800-\udfff]", row[column] or ""):
                raise InputError(f"{place}: column {column!r} holds half a character (a lone surrogate, such as a "
                                 "cut-off emoji leaves). Expected Unicode text; take it out of the file.")
        texts, documents, number = number_rows([row[column] for _, row in batch], number, separator)
        yield texts, documents


def read_all_texts(paths, column, separator="auto"):
    """Read several files as read_texts does, documents numbered through. InputError where none of them has any text."""
    start = rows = 0
    for path in paths:
        last = -1
        for texts, documents in read_texts(path, column, separator):
            yield texts, documents + start
            rows, last = rows + len(texts), documents[-1] if len(documents) else last
        start += last + 1
    if not rows:
        is_table = paths[0].lower().removesuffix(".gz").endswith((".csv", ".tsv", ".json", ".jsonl", ".parquet"))
        fault = "no row with text" if is_table else "nothing but white space"
        fault = fault if sum(map(os.path.getsize, paths)) else "empty, 0 bytes"
        raise InputError(f"{', '.join(paths[:3])}: there is no text in it ({fault}). "
                         "Expected UTF-8 text, a paragraph a line, or a table with a column of texts.")
