"""Text to train on, out of files and data sets."""

import hashlib
import itertools
import os
import re
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from tqdm import tqdm

from utils.errors import InputError
from utils.reading import ending_of, find_files, read_chunks
from utils.splits import load_splits
from utils.tables import TABLES
from utils.writing import written_aside


class Source(NamedTuple):
    """Where the text of a split comes from: its name, a key of its content, its reader.

    read yields batches of (texts, documents): an Arrow array of large_string without empty ones,
    and the number of the document of each, which only ever rises (int64).
    """

    name: str
    key: str
    read: object


def find_sources(args, splits, separator="auto"):
    """Find the text of each split: dict of split to Source.

    InputError where a file or the data set is not there.

    Args:
        args: Namespace of the flags.
        splits: those that are wanted.
        separator: what ends a document: "auto", in text a blank line, or without any each line, and
            in a table each row; "blank_line", also a row without text; "line" or "row".
    """
    how, sources = (args.text_column_name, separator), {}
    loaded = load_splits(args.dataset_name, args.dataset_config_name) if args.dataset_name else {}
    for split in splits:
        patterns = getattr(args, f"{split}_file")
        if patterns:
            paths = find_files(patterns, f"--{split}_file")
            name = os.path.basename(paths[0]) + (f" and {len(paths) - 1} more files" if paths[1:]
                                                 else "")
            sources[split] = Source(name, f"{hash_files(paths)} {how}",
                                    partial(read_files, paths, *how))
        elif split in loaded:
            name = f"--dataset_name {args.dataset_name}, split {split}"
            sources[split] = Source(name, f"{loaded[split]._fingerprint} {how}",
                                    partial(read_dataset, loaded[split], *how, name))
    return sources


def hash_files(paths):
    """SHA-256 over the endings and contents of files, wherever they lie.

    The same whenever they were written.
    """
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{ending_of(path)} {path.lower().endswith('.gz')} {content}\n".encode())
    return digest.hexdigest()


def read_files(paths, column, separator="auto"):
    """Read the texts of files as those of a Source.

    Those with the ending of a table are tables, all others plain text.
    """
    for number, path in enumerate(paths):
        table = TABLES.get(ending_of(path))
        batches = read_column(table(path), column) if table else read_trimmed(path)
        separated = separator == "blank_line" or (separator == "auto" and not table
                                                  and has_blank_lines(path))
        for texts, documents in number_documents(batches, separated):
            yield texts, documents + (number << 40)  # those of the next file are others


def read_dataset(rows, column, separator, name):
    """Read the texts of a Dataset as those of a Source."""
    if column in rows.column_names:  # no other is decoded
        rows = rows.select_columns([column])
    slices = (rows[start : start + 10_000] for start in range(0, len(rows), 10_000))
    values = (dict(zip(part, row, strict=True)) for part in slices
              for row in zip(*part.values(), strict=True))
    places = ((f"{name}, row {n}", row) for n, row in enumerate(values))
    yield from number_documents(read_column(places, column), separator == "blank_line")


def number_documents(batches, separated):
    """Number the documents of arrays of texts: yields batches as of a Source.

    Args:
        separated: an empty text ends a document, not each text.
    """
    number = 0
    for texts in batches:
        filled = pa.compute.binary_length(texts).to_numpy() > 0  # (texts,)
        ends = ~filled if separated else np.ones_like(filled)
        documents = number + np.cumsum(ends) - ends
        number += ends.sum()
        yield texts.filter(pa.array(filled)), documents[filled]


def read_trimmed(path):
    """Read the lines of plain text: yields arrays of them without the white space around them."""
    # Without a Python object for each line, which would take most of the time.
    for _, raw in read_chunks(path):
        raw = raw.removesuffix(b"\n")
        starts = np.flatnonzero(np.frombuffer(raw, np.uint8) == ord("\n")) + 1
        offsets = pa.py_buffer(np.concatenate([[0], starts, [len(raw)]]))
        lines = pa.LargeStringArray.from_buffers(len(starts) + 1, offsets, pa.py_buffer(raw))
        yield pa.compute.utf8_trim_whitespace(lines)  # line ends, too


def has_blank_lines(path):
    """Whether a blank line stands between two lines of text."""
    lines = filled = 0
    first = None
    for texts in read_trimmed(path):
        places = lines + np.flatnonzero(pa.compute.binary_length(texts).to_numpy())
        if len(places):
            first = places[0] if first is None else first
            filled += len(places)
            if places[-1] - first >= filled:
                return True
        lines += len(texts)
    return False


def read_column(rows, column):
    """Read the texts of a table: yields arrays of them without the white space around them.

    Args:
        rows: yields (place, dict of the row or the InputError of a faulty one).
        column: which of its values is the text; None is an empty one.
    """
    while batch := list(itertools.islice(rows, 10_000)):
        yield pa.array([text_of(row, column, place).strip() for place, row in batch],
                       pa.large_string())


def text_of(row, column, place):
    """Take the text out of a row of a table.

    InputError where the row is at fault, or has something else there.
    """
    if isinstance(row, InputError):
        raise row
    text = row.get(column)
    if column not in row:
        fault = f"the columns are {', '.join(map(str, row))}"
    elif not isinstance(text, str | None):
        fault = f"found {str(text)[:40]!r}"
    elif re.search("[\ud800-\udfff]", text or ""):
        fault = "found half a character (a lone surrogate, such as a cut-off emoji leaves)"
    else:
        return text or ""
    raise InputError(f"{place}: expected text in column {column!r}; {fault}. Name the column that "
                     "holds the text with --text_column_name.")


def write_texts(source, path):
    """Write what a Source reads to an Arrow file, in the columns text and document.

    InputError where there is none.
    """
    schema = pa.schema({"text": pa.large_string(), "document": pa.int64()})
    rows = 0
    with written_aside(path) as aside:
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for texts, documents in tqdm(source.read(), desc="Reading", unit=" batches",
                                         disable=None, leave=False):
                writer.write_batch(pa.record_batch({"text": texts, "document": documents}, schema))
                rows += len(texts)
        if not rows:
            raise InputError(f"{source.name}: there is no text in it, at most white space. "
                             "Expected UTF-8 text, a paragraph a line, or a table with a column "
                             "of texts.")
