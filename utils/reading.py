"""Files of the user, and their lines and objects, each with its place."""

import glob
import gzip
import json
import os
import zlib

from utils.errors import InputError


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
