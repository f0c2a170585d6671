"""Rows of CSV and Parquet files, each with its place."""

import csv
import gzip
import itertools
import zlib

import pyarrow as pa

from utils.errors import InputError
from utils.reading import read_lines


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
