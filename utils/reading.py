"""Files of the user, and their lines and objects, each with its place."""

import glob
import gzip
import json
import os
import zlib

from utils.errors import InputError


def find_files(patterns, flag):
    """Expand paths and globs to a list of files, sorted within a glob.

    InputError where there is none, or a folder.
    """
    files = []
    for pattern in patterns:
        # A file may have that very name, with the signs of a glob in it.
        paths = glob.glob(glob.escape(pattern)) or sorted(glob.glob(pattern, recursive=True))
        paths = [path for path in paths if not os.path.isdir(path)]
        if not paths:
            fault = ("this is a folder, expected a file" if os.path.isdir(pattern)
                     else "there is no such file")
            raise InputError(f"{flag} {pattern}: {fault} (looked in {os.getcwd()}). Give a file, "
                             "or a glob like *.txt")
        files += paths
    return files


def ending_of(path):
    """The ending of a file's name that tells its kind, in lower case: .csv of data.CSV.gz."""
    return os.path.splitext(path.lower().removesuffix(".gz"))[1]


def open_bytes(path):
    """Open a file, also .gz, to read its bytes."""
    opened = gzip.open if path.lower().endswith(".gz") else open
    return opened(path, "rb")


def read_chunks(path):
    """Read a UTF-8 file, also .gz, in pieces of a few MB: yields (number of its first line, text).

    A piece is whole lines, without the end of the last one. Numbers count from 1. A byte order mark
    is taken off. InputError names the line and the byte that is not UTF-8.
    """
    number = 1
    try:
        with open_bytes(path) as file:
            while raw := file.read(1 << 22) + file.readline():
                text = raw.decode("utf-8").removesuffix("\n")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
                number += raw.count(b"\n")
    except UnicodeDecodeError as error:
        line = number + raw.count(b"\n", 0, error.start)
        byte = error.start - raw.rfind(b"\n", 0, error.start)
        raise InputError(f"{path}, line {line}: byte {byte} of the line (0x{raw[error.start]:02x}) "
                         "is not UTF-8. Convert it to UTF-8, for instance with: iconv -f latin1 "
                         f"-t utf-8 {path} > new.txt") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}. Was it cut off, or is it of another "
                         "kind?") from None


def read_lines(path):
    """Read a UTF-8 file in batches of lines: yields (number of the first, from 1, lines)."""
    for number, text in read_chunks(path):
        yield number, [line.removesuffix("\r") for line in text.split("\n")]


def parse_json(text, path, line=None):
    """Parse JSON: the value, or the InputError for what is none.

    Args:
        text: JSON.
        path: of the file that it is from.
        line: number of that line, where the text is one.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line, column = line or getattr(error, "lineno", 1), getattr(error, "colno", 1)
        return InputError(f"{path}, line {line}, column {column}: not JSON: "
                          f"{getattr(error, 'msg', error)}. Expected one object a line, or one "
                          f"list; found {text[:40]!r}. Was the file cut off?")


def read_json(path):
    """Read objects out of .jsonl and .json: yields (place, object).

    A .json file is a list, an object with a list under `data`, or lines. In place of a row that is
    no JSON, or no object, stands the InputError that says so.
    """
    lines = ((n, line) for first, batch in read_lines(path) for n, line in enumerate(batch, first))
    rows = ((f"{path}, line {n}", parse_json(line, path, n)) for n, line in lines if line.strip())
    if ending_of(path) == ".json":
        whole = parse_json("\n".join(text for _, text in read_chunks(path)), path)
        if not isinstance(whole, InputError):
            whole = whole.get("data", whole) if isinstance(whole, dict) else whole
            whole = whole if isinstance(whole, list) else [whole]
            rows = ((f"{path}, entry {n}", row) for n, row in enumerate(whole, 1))
        elif "not JSON: Extra data" not in str(whole):  # else it has one object a line
            raise whole
    for place, row in rows:
        if not isinstance(row, dict | InputError):
            shown = json.dumps(row, ensure_ascii=False)[:40]
            row = InputError(f'{place}: expected an object such as {{"text": …}}, found {shown!r}')
        yield place, row
