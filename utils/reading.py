"""Files of the user, and their lines and objects, each with its place."""

import bz2
import codecs
import glob
import gzip
import io
import itertools
import json
import lzma
import os
import re
import zipfile
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pyarrow as pa

from utils.errors import InputError, blame

# What files begin with, as regular expressions. First those that are packed, and what unpacks them.
PACKED = {
    rb"\x1f\x8b\x08": gzip.open,
    rb"BZh[1-9](1A|1?\Z|\x17r)": bz2.open,
    rb"\xfd7zXZ|\]\0\0": lzma.open,
    rb"\x28\xb5\x2f\xfd|[P-_]\x2aM\x18": partial(pa.CompressedInputStream, compression="zstd"),
    rb"PK[\3\5]": zipfile.ZipFile,
}
MARKS = {  # byte order marks; that of UTF-16 begins one of UTF-32
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
PARQUET = rb"PAR1([\0-\x08\x0e-\x1f]|\Z)"
NO_TEXT = {  # what is no text
    PARQUET: "a Parquet file. Save its table as JSON lines.",
    rb"ARROW1\0|FEA1|\xff{4}": "an Arrow file. Save its table as Parquet or JSON lines, or give the "
                               "folder of the data set with --dataset_name.",
    rb"\x80[\2-\5]|\([dlt]p0\n|ccopy_reg\n": "a pickle, which could run code when it is read. Save "
                                            "what is in it as JSON lines.",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!|\?xml|(html|head|body|mediawiki|doc|tei|text)[\s>]|[\w:-]+ xmlns)":
        "HTML or XML. Take the text out of it; wikiextractor writes text with --json.",
    rb"%PDF-|%!PS|\{\\rtf": "a PDF, PostScript or RTF document. Take the text out of it.",
    rb"\xd0\xcf\x11\xe0": "an Excel workbook, or a document of another old Office program. Save it "
                          "as CSV, or as text.",
    rb"(?s)\x89PNG|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF.{4}WEBP": "an image. Give text.",
    rb"SQLite format 3": "an SQLite database. Save its table as CSV.",
    rb"(?s).{257}ustar": "a tar archive. Unpack it, and give its files.",
    rb"Rar!\x1a|7z\xbc\xaf|\x04\"M\x18": "packed as RAR, 7z or lz4. Unpack it.",
    rb"version https://git-lfs": "a pointer of Git LFS in place of a file. Fetch it: git lfs pull",
}
# What bytes that are not UTF-8 look like in words: Western, Russian, Japanese, Chinese.
WORDS = {
    "utf-16-le": rb"(?:[\n\r -~]\0){4,}",
    "utf-16-be": rb"(?:\0[\n\r -~]){4,}\0?",
    "cp1252": rb"(?<![\x80-\xff])(?:[\x80-\xff]|[\xc0-\xff]{2}(?=[a-z]))(?![\x80-\xff])",
    "cp1251": rb"[\xe0-\xff]{2,}",
    "shift_jis": rb"(?:\x82[\x9f-\xf1]|\x83[\x40-\x96])+",
    "gb18030": rb"(?:[\xb0-\xd7][\xa1-\xfe])+",
}
DAMAGED = "Was it cut off, or is it of another kind?"


def find_files(patterns, flag):
    """Expand paths and globs to a list of files, sorted within a glob.

    InputError where there is none, or a folder.
    """
    files = []
    for pattern in patterns:
        # A file may have that very name, with the signs of a glob in it.
        paths = glob.glob(glob.escape(pattern)) or sorted(glob.glob(pattern, recursive=True))
        paths = [path for path in paths if os.path.isfile(path)]  # pipes can be read but once
        if not paths:
            fault = ("this is a folder, or a pipe, expected a file" if os.path.exists(pattern)
                     else "there is no such file")
            raise InputError(f"{flag} {pattern}: {fault} (looked in {os.getcwd()}). Give a file, "
                             "or a glob like *.txt")
        files += paths
    return files


def look_up(head, table):
    """Find what a table of regular expressions has for the first bytes of a file, or None."""
    return next((table[magic] for magic in table if re.match(magic, head)), None)


def unpack(file, path):
    """Open what a packed file holds, to read its bytes; None where it is not packed.

    Args:
        file: a BufferedReader at its beginning.
        path: of the file, for messages.

    Raises:
        InputError: it is damaged, or a zip archive that has not just one file in it.
    """
    opener = look_up(file.peek(), PACKED)
    packed = opener and opener(file)
    if not isinstance(packed, zipfile.ZipFile):
        return packed
    # Neither folders nor what macOS adds.
    names = [name for name in packed.namelist() if not re.search(r"(^|/)\.[^/]*$|/$", name)]
    if len(names) == 1:
        return packed.open(names[0])
    kind, advice = "a zip archive", "Unpack it, and give its files."
    if {"[Content_Types].xml", "mimetype"} & {*names}:
        kind, advice = "an Office document, or a book", "Save it as text, or a workbook as CSV."
    raise InputError(f"{path}: this is {kind}, with {len(names)} files in it, expected one: "
                     f"{', '.join(names[:5])}. {advice}")


@contextmanager
def open_bytes(path):
    """Open a file to read its bytes, unpacked as often as it is packed, whatever it is called."""
    with ExitStack() as layers:
        with blame(f"{path}: cannot be read", DAMAGED):
            file = layers.enter_context(open(path, "rb"))
            while packed := unpack(file, path):
                file = layers.enter_context(io.BufferedReader(packed))
        yield file


def read_chunks(path, encoding="utf-8", size=1 << 22):
    """Read a file of text in pieces: yields (number of its first line, text).

    A piece is whole lines, without the end of the last one. Numbers count from 1. A byte order mark
    is taken off.

    Args:
        path: of a file, packed or not.
        encoding: what it is read in, unless it begins with a byte order mark.
        size: bytes of a piece, about.

    Raises:
        InputError: names the line and the byte that is of another encoding, or the kind of a file
            that is no text.
    """
    number, rest, is_of_old_mac = 1, "", False
    with open_bytes(path) as file:
        kind = look_up(file.peek(), NO_TEXT)
        if kind:
            raise InputError(f"{path}: this is {kind}")
        encoding = look_up(file.peek(), MARKS) or encoding
        if codecs.lookup(encoding).name in ("utf-16", "utf-32"):
            raise InputError(f"{path}: it has no byte order mark, which {encoding} needs. Give "
                             f"--file_encoding {encoding}-le, or {encoding}-be.")
        decoder = codecs.getincrementaldecoder(encoding)()
        while True:
            with blame(f"{path}: cannot be read", DAMAGED):
                # In UTF-16 a line end may be torn: the decoder keeps what is half a character.
                raw = file.read(size) + file.readline()
            is_last = not raw.endswith(b"\n")
            if number == 1 and not encoding.startswith("utf") and not raw.isascii():
                with suppress(UnicodeDecodeError):
                    if len(re.findall(r"[^\0-\x7f]", raw.decode())) > 2:  # fewer can be by chance
                        raise InputError(f"{path}: this is UTF-8, not {encoding}. Give it without "
                                         "--file_encoding, or convert the files that are not "
                                         "UTF-8.")
            try:
                text = rest + decoder.decode(raw, is_last)
            except UnicodeDecodeError as error:
                raw = error.object
                before = rest + raw[: error.start].decode(encoding)
                raise explain_byte(path, number, before, encoding, raw[error.start :]) from None
            if b"\0" in raw and "\0" in text:  # the first is the faster one
                before, raw = text.partition("\0")[0], raw[raw.index(0) :]
                raise explain_byte(path, number, before, encoding, raw)
            is_of_old_mac |= number == 1 and "\n" not in text
            if is_of_old_mac:  # where no line feed is, carriage returns end the lines
                text = text.replace("\r", "\n")
            end = len(text) if is_last else text.rfind("\n") + 1
            text, rest = text[:end], text[end:]
            if text:
                text = text.removesuffix("\n")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
                number += text.count("\n") + 1
            if not raw:
                return


def explain_byte(path, number, before, encoding, raw):
    """Make the InputError for a byte that is no text, with the encoding that it looks like.

    Args:
        path: of the file.
        number: of the line that the piece begins with.
        before: text of the piece before the byte.
        encoding: that was expected.
        raw: the byte, and those that follow.
    """
    lines = before.split("\n")
    start = lines[-1].encode(encoding)
    read = before.encode(encoding)
    begin = len(read) - len(start) & -2  # even, so that UTF-16 is not torn
    sample = (read + raw)[begin : begin + (1 << 16)]
    fits = [(0, "", "")]
    for name, words in WORDS.items():
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(name)().decode(sample)
            if "\0" not in text:
                fits.append((sum(map(len, re.findall(words, sample))), name, text))
    size, name, text = max(fits)
    if encoding == "utf-8" and len(re.findall(r"[^\0-\x7f]", before)) > 9:  # hardly by chance
        advice = "What stands before it is UTF-8: was the file cut off or damaged there?"
    elif size:
        shown = text.lstrip("\n").partition("\n")[0][max(0, len(start) - 20) :]
        advice = (f"As {name} it would be {shown[:40]!r}: if that is right, give --file_encoding "
                  f"{name}, else the encoding that it has.")
    else:
        advice = "If it is text, name its encoding with --file_encoding."
    return InputError(f"{path}, line {number + len(lines) - 1}: byte {len(start) + 1} of the line "
                      f"(0x{raw[0]:02x}) is not {encoding.upper()} text. {advice}")


def read_lines(path, encoding="utf-8"):
    """Read a file of text in batches of lines: yields (number of the first, from 1, lines)."""
    for number, text in read_chunks(path, encoding):
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


def read_json(path, encoding="utf-8"):
    """Read objects out of JSON, whatever its layout: yields (place, object).

    It is a list, an object with a list under `data`, or an object a line. In place of a row that is
    no JSON, or no object, stands the InputError that says so.
    """
    batches = read_lines(path, encoding)
    numbered = ((n, line) for first, batch in batches for n, line in enumerate(batch, first))
    lines = filter(lambda line: line[1].strip(), numbered)
    start = list(itertools.islice(lines, 2))
    rows = ((f"{path}, line {n}", parse_json(line, path, n))
            for n, line in itertools.chain(start, lines))
    if start and not (len(start) > 1 and isinstance(parse_json(start[0][1], path), dict)):
        whole = parse_json("\n".join(text for _, text in read_chunks(path, encoding)), path)
        data = whole.get("data") if isinstance(whole, dict) else whole
        if isinstance(data, list):
            rows = ((f"{path}, entry {n}", row) for n, row in enumerate(data, 1))
        elif not isinstance(whole, InputError):
            rows = [(f"{path}, line {start[0][0]}", whole)]
        elif ("not JSON: Extra data" not in str(whole)
              and not isinstance(parse_json(start[-1][1], path), dict)):
            raise whole  # else it has one object a line
    for place, row in rows:
        if not isinstance(row, dict | InputError):
            shown = json.dumps(row, ensure_ascii=False)[:40]
            row = InputError(f'{place}: expected an object such as {{"text": …}}, found {shown!r}')
        yield place, row
