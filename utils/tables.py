"""Rows of tables: JSON, CSV and Parquet, each with its place."""

import csv
import io
import math
import os
import re

import pyarrow as pa
import pyarrow.parquet

from utils.errors import InputError, blame
from utils.reading import DAMAGED, PARQUET, open_bytes, read_chunks, read_json, read_lines

# What the ending of a name says; of any other, the file is text.
KINDS = {".jsonl": "JSON", ".ndjson": "JSON", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV",
         ".parquet": "Parquet"}


def ending_of(path):
    """The ending of a file's name that tells its kind, in lower case: .csv of data.CSV.gz."""
    return os.path.splitext(re.sub(r"\.(gz|bz2|xz|zst|zip)$", "", path.lower()))[1]


def find_kind(path, columns, encoding, say):
    """Find what a file is by its content, and then by its name: text, JSON, CSV, TSV or Parquet.

    Args:
        path: of a file, packed or not.
        columns: those that are wanted, by one of which a CSV file is known under any name.
        encoding: of text.
        say: called with a line where the content is not what the name says.
    """
    expected = kind = KINDS.get(ending_of(path), "text")
    with open_bytes(path) as file:
        is_parquet = re.match(PARQUET, file.peek())
    text = "" if is_parquet else first_piece(path, encoding)
    _, header = find_header(text, columns)
    if is_parquet:
        kind = "Parquet"
    elif re.match(r'\[?\s*\{\s*("[^"]{0,200}"\s*:|\})|\[\s*"[^"]{0,200}"\s*[],]', text.lstrip()):
        kind = "JSON"
    elif expected not in ("CSV", "TSV") and len(header) > 1 and not {*columns}.isdisjoint(header):
        kind = "CSV"
    if kind != expected:
        say(f"{path}: read as {kind}, which it holds, whatever its name says")
    return kind


def first_piece(path, encoding):
    """Read the first lines of a file, about 64 KB."""
    return next(read_chunks(path, encoding, 1 << 16), (1, ""))[1]


def find_header(text, columns, separators=",;\t"):
    """Find the header of a table by the columns that are wanted, or else by most columns.

    Args:
        text: first lines of the table; a line such as `sep=;` in front says the separator.
        columns: those that are wanted.
        separators: what may part columns, the likely one first.

    Returns:
        (separator, names of the columns).
    """
    said = re.match(r'\s*"?sep=([^\w"])"?\s*\n', text)
    if said:
        separators, text = said[1], text[said.end() :]
    line = text[: 1 << 16].lstrip("\r\n").partition("\n")[0]
    headers = {separator: next(csv.reader([line], delimiter=separator), [])
               for separator in separators}
    best = max(headers, key=lambda separator: (not {*columns}.isdisjoint(headers[separator]),
                                               len(headers[separator])))
    return best, headers[best]


def measure(rows, width):
    """Measure how a table is read: (rows that span lines, rows that have not so many columns).

    The first is infinite, and the second 0, where quotes are not well-formed.
    """
    spanning = faults = end = 0
    try:
        for row in rows:
            spanning += rows.line_num > end + 1
            faults += len(row) not in (0, width)
            end = rows.line_num
    except csv.Error:
        return math.inf, 0
    return spanning, faults


def read_csv(path, columns, encoding, say):
    """Read .csv or .tsv with a header: yields (place, dict of the row).

    In place of a row that has not the columns of the header stands its InputError.

    Args:
        path: of a file, packed or not.
        columns: those that are wanted.
        encoding: of its text.
        say: called with a line on values that span lines, or quotes that do not count.

    Raises:
        InputError: a quote is never closed, or a wanted column stands there twice.
    """
    csv.field_size_limit(1 << 26)
    separators = "\t,;" if ending_of(path) == ".tsv" else ",;\t"
    separator, header = find_header(first_piece(path, encoding), columns, separators)

    def parse(quoting):
        lines = (f"{line}\n" for _, batch in read_lines(path, encoding) for line in batch)
        return csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)

    quoting, width = csv.QUOTE_MINIMAL, len(header)
    spanning, faults = measure(parse(quoting), width)
    # Of one column, any line is a whole row, which proves nothing.
    may_be_torn = spanning == math.inf or (spanning and width > 1)
    is_quoted = '"' in "".join(next(parse(csv.QUOTE_NONE), []))  # the header itself
    if may_be_torn and not is_quoted and measure(parse(csv.QUOTE_NONE), width) <= (0, faults):
        quoting = csv.QUOTE_NONE
        say(f"{path}: quotes are read as plain characters: without them each line is a row")
    elif 0 < spanning < math.inf:
        say(f"{path}: rows that span lines, by a quoted value: {spanning:,}")
    rows = parse(quoting)
    filled = filter(None, rows)
    try:
        header = next(filled, [])
        if header and header[0].startswith("sep="):
            header = next(filled, [])
        twice = [name for name in columns if header.count(name) > 1]
        if twice:
            raise InputError(f"{path}, line {rows.line_num}: a column stands there twice: "
                             f"{', '.join(header)}")
        for row in filled:
            place = f"{path}, line {rows.line_num}"
            values = dict(zip(header, row, strict=False))
            if len(row) != len(header):
                values = InputError(f"{place}: expected {len(header)} columns "
                                    f"({', '.join(header)}), found {len(row)}. Put a value that "
                                    "holds the separator in double quotes.")
            yield place, values
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not a well-formed table: {error}. Check "
                         "the quotes, and line ends within values.") from None


def read_parquet(path, columns):
    """Read the wanted columns of a Parquet file: yields (place, dict of the row).

    Where it has none of them, the only row has all names, without values. InputError where the file
    is damaged.
    """
    number = 0
    with (open_bytes(path) as file, blame(f"{path}: cannot be read as Parquet", DAMAGED)):
        # What zstd packed can only be read from its beginning.
        table = pa.parquet.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
        found = {*table.schema_arrow.names}
        # Of a dotted name, no other part is read.
        names = [name for name in columns if {name, name.partition(".")[0]} & found]
        if not names:
            yield f"{path}, row 1", dict.fromkeys(table.schema_arrow.names)
            return
        for batch in table.iter_batches(50, columns=names):  # a row can be a book
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def read_table(path, kind, columns, encoding, say):
    """Read the rows of a table: yields (place, dict of the row, or InputError of a faulty one).

    Args:
        path: of a file, packed or not.
        kind: as of find_kind, but for text.
        columns: those that are wanted; others may be left out.
        encoding: of its text.
        say: called with lines on how it is read.
    """
    if kind == "Parquet":
        return read_parquet(path, columns)
    if kind == "JSON":
        return read_json(path, encoding)
    return read_csv(path, columns, encoding, say)
