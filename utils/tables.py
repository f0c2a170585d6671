"""Rows of tables: JSON, CSV and Parquet, each with its place."""

import csv

import pyarrow as pa
import pyarrow.parquet

from utils.errors import InputError, blame
from utils.reading import ending_of, open_bytes, read_json, read_lines


def read_csv(path):
    """Read .csv or .tsv with a header: yields (place, dict of the row).

    In place of a row that has not the columns of the header stands its InputError. InputError is
    raised where a quote is never closed.
    """
    csv.field_size_limit(2**31 - 1)
    lines = (f"{line}\n" for _, batch in read_lines(path) for line in batch)
    rows = csv.reader(lines, delimiter="\t" if ending_of(path) == ".tsv" else ",", strict=True)
    try:
        header = next(filter(None, rows), [])
        if len({*header}) < len(header):
            raise InputError(f"{path}, line {rows.line_num}: a column stands there twice: "
                             f"{', '.join(header)}")
        for row in filter(None, rows):
            place = f"{path}, line {rows.line_num}"
            values = dict(zip(header, row, strict=False))
            if len(row) != len(header):
                values = InputError(f"{place}: expected {len(header)} columns "
                                    f"({', '.join(header)}), found {len(row)}. Put a value that "
                                    "holds the separator in double quotes.")
            yield place, values
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not a well-formed table: {error}. Check "
                         "the quotes.") from None


def read_parquet(path):
    """Read .parquet: yields (place, dict of the row). InputError where the file is damaged."""
    number = 0
    with (blame(f"{path}: cannot be read as Parquet", "Was it cut off, or is it of another kind?"),
          open_bytes(path) as file):
        for batch in pa.parquet.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


# Ending to reader. A reader yields (place, dict of the row), or (place, InputError) for a faulty
# row. Files of any other ending are no tables.
TABLES = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".tsv": read_csv,
          ".parquet": read_parquet}
