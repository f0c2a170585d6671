"""Text to train on, out of files and data sets."""

import hashlib
import itertools
import os
import re
from functools import partial

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from utils.errors import InputError
from utils.reading import find_files, read_chunks, read_json
from utils.splits import load_splits
from utils.tables import read_csv, read_parquet


def hash_files(paths):
    """SHA-256 over the endings and contents of files: the same wherever they lie and whenever they were written."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        ending = os.path.splitext(path.lower().removesuffix(".gz"))[1] + ".gz" * path.lower().endswith(".gz")
        digest.update(f"{ending} {content}\n".encode())
    return digest.hexdigest()


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


def find_sources(files, dataset_name, dataset_config_name, column, splits, separator="auto"):
    """Find the text of each split: dict of split to (fingerprint of its content, function that yields batches, name).

    Args:
        files: dict of split to paths and globs, or None.
        dataset_name, dataset_config_name: a data set of the Hub, or a folder, instead of files.
        column: the column that holds the text.
        splits: the splits that are wanted.
        separator: what ends a document, as for read_texts.

    Raises:
        InputError: a file, the data set or its column is not there.
    """
    sources = {}
    for split in splits if not dataset_name else ():
        if files[split]:
            paths = find_files(files[split], f"--{split}_file")
            name = os.path.basename(paths[0]) + (f" and {len(paths) - 1} more files" if paths[1:] else "")
            sources[split] = (f"{hash_files(paths)} {column} {separator}",
                              partial(read_all_texts, paths, column, separator), name)
    if not dataset_name:
        return sources
    loaded = load_splits(dataset_name, dataset_config_name)
    for split in splits:
        if split in loaded:
            if column not in loaded[split].column_names:
                raise InputError(f"--dataset_name {dataset_name}: there is no column {column!r}; the columns are "
                                 f"{', '.join(loaded[split].column_names)}. Name one with --text_column_name.")
            name = f"{dataset_name} ({split})"
            sources[split] = (f"{loaded[split]._fingerprint} {column} {separator}",
                              partial(read_dataset, loaded[split], column, f"--dataset_name {name}", separator), name)
    return sources


def read_dataset(rows, column, name, separator="auto"):
    """Read the texts of a Dataset as read_all_texts reads those of files: yields (texts, documents)."""
    found, document = False, 0
    for start in range(0, len(rows), 10_000):
        texts = rows[start : start + 10_000][column]
        for number, text in enumerate(texts, start):
            if not isinstance(text, str | None):
                raise InputError(f"{name}, row {number}: expected text in column {column!r}, found {str(text)[:40]!r}. "
                                 "Name the column that holds the text with --text_column_name.")
        texts, documents, document = number_rows(texts, document, separator)
        found |= bool(len(texts))
        yield texts, documents
    if not found:
        raise InputError(f"{name}: there is no text in column {column!r}. Name another with --text_column_name.")


def write_texts(batches, path):
    """Write batches of (texts, documents) to an Arrow file. Returns counts: paragraphs, repeated, words, characters."""
    schema = pa.schema({"text": pa.large_string(), "document": pa.int64()})
    counts, hashes, aside = {"paragraphs": 0, "words": 0, "characters": 0}, [], f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with pa.OSFile(aside, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for texts, documents in tqdm(batches, desc="Reading", unit=" batches", disable=None, leave=False):
                writer.write_batch(pa.record_batch({"text": texts, "document": documents}, schema))
                strings = texts.to_pylist()
                counts["paragraphs"] += len(strings)
                counts["words"] += len(strings) + sum(map(str.count, strings, itertools.repeat(" ")))
                counts["characters"] += sum(map(len, strings))
                hashes.append(np.fromiter(map(hash, strings), dtype=np.int64, count=len(strings)))
    except BaseException:
        os.unlink(aside)
        raise
    os.replace(aside, path)  # at once, as another run may be preparing the same text
    return counts | {"repeated": counts["paragraphs"] - len(np.unique(np.concatenate(hashes)))}
