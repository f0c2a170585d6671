"""Reading text from files, with messages that name the place."""

import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet


class InputError(ValueError):
    """A mistake in what the user gave. Its message is all they are shown; the exit status is 2."""

    only_here = False  # True where the other processes of the run know that this one has something to say


def find_files(patterns, flag):
    """Expand paths and globs to a list of files, in the order given and sorted within a glob.

    Raises:
        InputError: nothing is there, a glob matches nothing, or it is a folder; `flag` names where it was asked for.
    """
    files = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found and glob.has_magic(pattern):
            raise InputError(f"{flag} {pattern}: no file matches this pattern in {os.getcwd()}. "
                             "Check the folder and the ending.")
        if not found:
            raise InputError(f"{flag} {pattern}: there is no such file (looked in {os.getcwd()}). Check the path.")
        if os.path.isdir(pattern):
            raise InputError(f"{flag} {pattern}: this is a folder; expected a file. "
                             f"Name the files in it, for instance {os.path.join(pattern, '*.txt')}")
        files += [path for path in found if not os.path.isdir(path)]
    return files


def hash_files(paths):
    """SHA-256 over the kinds and contents of files: hex text, the same wherever they lie and whenever they were made."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            kind = "".join(os.path.basename(path).lower().rpartition(".")[1:])
            digest.update(f"{kind} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def read_lines(path):
    """Read a UTF-8 file, also .gz, in batches: yields (number of the first line, from 1, and the list of lines).

    Line ends, also CRLF, and a byte order mark are taken off.

    Raises:
        InputError: a line is not UTF-8 (line and byte are named), or a .gz file is damaged.
    """
    number = 1
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            while raw := file.readlines(1 << 24):
                try:
                    lines = b"".join(raw).decode("utf-8").split("\n")
                except UnicodeDecodeError as error:
                    found = error.object[error.start]
                    line = error.object.count(b"\n", 0, error.start)
                    byte = error.start - error.object.rfind(b"\n", 0, error.start)
                    raise InputError(f"{path}, line {number + line}: byte {byte} of the line (0x{found:02x}) is not "
                                     "UTF-8. Expected UTF-8 text; convert the file first, for instance with "
                                     f"iconv -f latin1 -t utf-8 {path} > new.txt") from None
                if raw[-1].endswith(b"\n"):
                    lines.pop()
                if number == 1:
                    lines[0] = lines[0].removeprefix("\ufeff")
                yield number, [line.removesuffix("\r") for line in lines]
                number += len(lines)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}). Make it anew with gzip, or give the plain file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_json(path):
    """Read .json (a list of objects, or an object whose `data` is one) or .jsonl: yields (place, object).

    Raises:
        InputError: JSON that does not parse (line and column), or something else than an object.
    """
    lines = ((n, line) for first, batch in read_lines(path) for n, line in enumerate(batch, first))
    if path.lower().removesuffix(".gz").endswith(".json"):
        text = "\n".join(line for _, line in lines)
        try:
            value = json.loads(text)
            rows = value["data"] if isinstance(value, dict) and isinstance(value.get("data"), list) else value
            lines = [(f"{path}, entry {i}", row) for i, row in enumerate(rows if isinstance(rows, list) else [rows], 1)]
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):  # otherwise one object a line, under the name .json
                raise InputError(f"{path}, line {error.lineno}, column {error.colno}: this is not JSON: {error.msg}. "
                                 "Was the file cut off?") from None
            lines = enumerate(text.split("\n"), 1)
    for place, row in lines:
        if isinstance(place, int):
            if not row.strip():
                continue
            place, line = f"{path}, line {place}", row
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{place}, column {error.colno}: this is not JSON: {error.msg} in {line[:40]!r}. "
                                 "Expected one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected an object such as {{\"text\": …}}, found {str(row)[:40]!r}")
        yield place, row


def read_csv(path):
    """Read .csv or .tsv with a header, quoted as spreadsheets do: yields (place, dict of the row).

    Raises:
        InputError: a row with more or fewer columns than the header, or broken quoting.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = itertools.chain.from_iterable(([line + "\n" for line in batch] for _, batch in read_lines(path)))
    rows = csv.reader(lines, delimiter="\t" if ".tsv" in path.lower()[-7:] else ",", strict=True)
    try:
        header = next(rows, [])
        start = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(header):
                raise InputError(f"{path}, line {start}: expected {len(header)} columns ({', '.join(header)}), "
                                 f"found {len(row)}. Put values that hold the separator in double quotes.")
            if row:
                yield f"{path}, line {start}", dict(zip(header, row, strict=True))
            start = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not a well-formed table: {error}. "
                         "Check the double quotes.") from None


def read_parquet(path):
    """Read .parquet: yields (place, dict of the row). Raises InputError where the file is damaged."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            number = 0
            for batch in pa.parquet.ParquetFile(io.BytesIO(file.read()) if path.endswith(".gz") else file).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {str(error)[:100]}") from None


def read_texts(path, column):
    """Read the texts of a file, a paragraph or a table's row at a time, without the empty ones.

    In plain text (any ending but those of tables) a blank line ends a document; without blank lines between its lines,
    a file has one document a line. In .jsonl, .json, .csv, .tsv and .parquet each row is a document. All also as .gz.

    Args:
        path: the file.
        column: which column or key of a table holds the text.

    Yields:
        (texts, documents): lists of strings, and of the number of the document that each belongs to, from 0.

    Raises:
        InputError: as the readers above, and where the column is missing or holds something else than text.
    """
    readers = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet}
    reader = readers.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])
    document = 0
    if reader is None:
        filled = itertools.groupby(bool(line.strip()) for _, lines in read_lines(path) for line in lines)
        separated = sum(is_text for is_text, _ in itertools.islice(filled, 4)) == 2  # text, blank, text
        for _, lines in read_lines(path):
            texts, documents = [], []
            for line in map(str.strip, lines):
                if line:
                    texts.append(line)
                    documents.append(document)
                document += not (line and separated)
            yield texts, documents
        return
    texts, documents = [], []
    for document, (place, row) in enumerate(reader(path)):
        if column not in row:
            raise InputError(f"{place}: there is no column {column!r}; the columns are {', '.join(map(str, row))}. "
                             "Name the one that holds the text with --text_column_name.")
        if not isinstance(row[column], str | None):
            raise InputError(f"{place}: column {column!r} holds {str(row[column])[:40]!r} "
                             f"({type(row[column]).__name__}); expected text. Name another with --text_column_name.")
        if (row[column] or "").strip():
            texts.append(row[column].strip())
            documents.append(document)
        if len(texts) == 10_000:
            yield texts, documents
            texts, documents = [], []
    yield texts, documents


def read_all_texts(files, column):
    """Read several files as read_texts does, with their documents numbered through.

    Raises:
        InputError: as read_texts, and where none of the files holds any text.
    """
    rows = start = 0
    for path in files:
        document = -1
        for texts, documents in read_texts(path, column):
            yield texts, [start + document for document in documents]
            rows, document = rows + len(texts), documents[-1] if documents else document
        start += document + 1
    if not rows:
        size = sum(map(os.path.getsize, files))
        raise InputError(f"{', '.join(files[:3])}: no text in it ({size:,} bytes" + (", white space only" if size else "")
                         + "). Expected UTF-8 text, a paragraph a line, or a table with a column of texts.")
