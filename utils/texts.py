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

from utils.arguments import add_flags
from utils.errors import InputError, blame
from utils.reading import find_files, read_chunks
from utils.splits import load_splits
from utils.tables import find_kind, read_table
from utils.writing import written_aside

# Characters of scripts that put no blanks between words: Thai and Lao, Burmese, Khmer, Kana, Han,
# with their punctuation; by rows of 64.
WITHOUT_BLANKS = ("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31c0-\u9fff\uf900-\ufaff"
                  "\uff00-\uffbf\U00020000-\U0003ffff]")
MARKS_BETWEEN = "[“”‘’…—·]"  # beside one of them, they belong to it
NAME_THE_COLUMN = "Name the column that holds the text with --text_column_name."


def add_text_flags(group):
    """Add the flags that say what the text is to a group of a parser."""
    add_flags(
        group,
        ("text_column_name", str, "text", "column of a table that holds the text: its name, or a "
         "path as body.text; a list there is the paragraphs of a document"),
        ("document_separator", ["auto", "blank_line", "line", "row"], "auto", "what ends a "
         "document; auto: in text a blank line, or without any each line; in a table each row"),
    )


class Source(NamedTuple):
    """Where the text of a split comes from: its name, a key of its content, its reader.

    read yields batches of (texts, documents): an Arrow array of large_string without empty ones,
    and the number of the document of each, which only ever rises (int64). To said it adds lines on
    how it reads.
    """

    name: str
    key: str
    read: object
    said: list | tuple = ()


def find_sources(args, splits, say=print):
    """Find the text of each split: dict of split to Source.

    InputError where a file or the data set is not there.

    Args:
        args: Namespace of the flags.
        splits: those that are wanted.
        say: called with lines for the user, on how files are read.
    """
    sources, seen, column, encoding = {}, {}, args.text_column_name, args.file_encoding
    separator = args.document_separator
    how = column, separator, encoding
    loaded = load_splits(args.dataset_name, args.dataset_config_name) if args.dataset_name else {}
    for split in splits:
        patterns = getattr(args, f"{split}_file")
        if patterns:
            paths = find_files(patterns, f"--{split}_file")
            more = f" and {len(paths) - 1} more files" if paths[1:] else ""
            kinds = [find_kind(path, [column], encoding, say) for path in paths]
            if column != "text" and {*kinds} == {"text"}:
                raise InputError(f"--text_column_name {column}: {paths[0]} is read as plain text, "
                                 "which has no columns. Give a table with that column, or leave the "
                                 "flag out.")
            hashes = [*map(hash_file, paths)]
            for path, content in zip(paths, hashes, strict=True):
                given = f"--{split}_file {path}"
                if seen.setdefault(content, given) != given:
                    say(f"  Careful:  {given} has the same content as {seen[content]}")
            key = f"{kinds} {hashes} {how}"
            said = []
            sources[split] = Source(os.path.basename(paths[0]) + more, key,
                                    partial(read_files, paths, kinds, *how, said.append), said)
        elif split in loaded:
            name = f"--dataset_name {args.dataset_name}, split {split}"
            sources[split] = Source(name, f"{loaded[split]._fingerprint} {how}",
                                    partial(read_dataset, loaded[split], column, separator, name))
    return sources


def hash_file(path):
    """What tells a file apart by content, whatever its name and whenever it was written: SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_files(paths, kinds, column, separator="auto", encoding="utf-8", say=print):
    """Read the texts of files as those of a Source.

    Args:
        paths: of the files.
        kinds: of each, as of find_kind.
        column: of tables, that holds the text.
        separator: what ends a document: "auto", in text a blank line, or without any each line, and
            in a table each row; "blank_line", also a row without text; "line" or "row".
        encoding: of the files.
        say: called with lines on how tables are read.
    """
    for number, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        if kind == "text":
            batches = read_trimmed(path, encoding)
        else:
            batches = read_column(read_table(path, kind, [column], encoding, say), column)
        separated = separator == "blank_line" or (separator == "auto" and kind == "text"
                                                  and has_blank_lines(path, encoding))
        for texts, documents in number_documents(batches, separated):
            yield texts, documents + (number << 40)  # those of the next file are others


def rows_at_once(rows):
    """Count the rows of a Dataset that make about 2 MB."""
    return max(1, 2_000_000 * len(rows) // max(1, rows.data.nbytes))


def read_dataset(rows, column, separator, name):
    """Read the texts of a Dataset as those of a Source. InputError where it lacks the column."""
    is_text = rows.info.builder_name == "text"  # a folder of it: a row is a line
    with blame(name, NAME_THE_COLUMN):
        # No other is decoded.
        rows = (rows if column in rows.column_names else rows.flatten()).select_columns(column)
    # Row by row it takes 50 times as long.
    batches = rows.iter(rows_at_once(rows))
    values = itertools.chain.from_iterable(batch[column] for batch in batches)
    places = ((f"{name}, row {n}", {column: value}) for n, value in enumerate(values))
    separated = separator == "blank_line" or (separator == "auto" and is_text)
    yield from number_documents(read_column(places, column), separated)


def number_documents(batches, separated):
    """Number the documents of arrays of texts: yields batches as of a Source.

    Args:
        batches: (texts, ends), an array of large_string and whether each ends its row; bool,
            (texts,).
        separated: an empty text ends a document, not the end of a row.
    """
    number = 0
    for texts, ends in batches:
        filled = pa.compute.binary_length(texts).to_numpy() > 0  # (texts,)
        ends = ~filled if separated else ends
        documents = number + np.cumsum(ends) - ends
        number += ends.sum()
        yield texts.filter(pa.array(filled)), documents[filled]


def read_trimmed(path, encoding="utf-8"):
    """Read the lines of plain text, each a row: yields (texts, ends) as for number_documents.

    The white space around them is taken off.
    """
    # Without a Python object for each line, which would take most of the time.
    for _, text in read_chunks(path, encoding):
        lines = pa.compute.split_pattern(pa.array([text], pa.large_string()), "\n")
        texts = pa.compute.utf8_trim_whitespace(lines.values)  # line ends, too
        yield texts, np.ones(len(texts), dtype=bool)


def has_blank_lines(path, encoding="utf-8"):
    """Whether a blank line stands between two lines of text."""
    seen = b""  # a byte a line, 1 where there is text, from the first line of text on
    for lines, _ in read_trimmed(path, encoding):
        filled = pa.compute.binary_length(lines).to_numpy() > 0
        seen = (seen + filled.tobytes()).lstrip(b"\0")
        if b"\0" in seen.rstrip(b"\0"):
            return True
        seen = seen[:1] + seen[-1:]  # to go on from
    return False


def read_column(rows, column):
    """Read the texts of a table: yields (texts, ends) as for number_documents.

    Args:
        rows: yields (place, dict of the row or the InputError of a faulty one).
        column: which of its values is the text; None is an empty one.
    """
    texts, ends, size = [], [], 0
    for place, row in rows:
        paragraphs = [text_of(part, column, place, NAME_THE_COLUMN)
                      for part in split_row(row, column)]
        texts += paragraphs
        ends += [False] * (len(paragraphs) - 1) + [True]
        size += sum(map(len, paragraphs))
        if size > 1 << 21 or len(ends) == 10_000:  # a row can be a book
            yield pa.array(texts, pa.large_string()), np.array(ends)
            texts, ends, size = [], [], 0
    if ends:
        yield pa.array(texts, pa.large_string()), np.array(ends)


def split_row(row, column):
    """Take a row apart into one for each paragraph, where its column holds a list of them.

    Of a dotted column, as body.text, the value is looked for within other objects.
    """
    if isinstance(row, InputError):
        return [row]
    value = row
    for name in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or name not in value:
            return [row]  # which text_of finds at fault
        value = value[name]
    paragraphs = value or [None] if isinstance(value, list) else [value]
    return [{column: paragraph} for paragraph in paragraphs]


def text_of(row, column, place, advice):
    """Take the text out of a row of a table, without the white space around it; None is empty.

    InputError where the row is at fault, or has something else there.

    Args:
        row: dict, or the InputError of a faulty one.
        column: which of its values is the text.
        place: of the row.
        advice: what to do, where it has none there.
    """
    if isinstance(row, InputError):
        raise row
    text = row.get(column, row)
    if not isinstance(text, str | None):
        raise InputError(f"{place}: expected text in column {column!r}; found {str(text)[:40]!r}; "
                         f"the columns are {', '.join(map(str, row))}. {advice}")
    if re.search("[\0\ud800-\udfff]", text or ""):
        raise InputError(f"{place}: expected text in column {column!r}; found a NUL, or half a "
                         f"character (a lone surrogate, such as a cut-off emoji leaves) in "
                         f"{text[:60]!r}. Take it out.")
    return (text or "").strip()


def draw_rows(total, which, percent, least=1):
    """Say which of so many rows, or documents, a part is made of, by number alone: bool, (total,).

    Args:
        total: how many there are.
        which, percent: as of choose_parts.
        least: that are drawn at least, and left at least, if there are so many.
    """
    share = max(0, min(max(least, round(total * percent / 100)), total - least))
    drawn = np.zeros(total, dtype=bool)
    drawn[np.random.default_rng(0).permutation(total)[:share]] = True
    return {"all": np.ones_like(drawn), "drawn": drawn, "rest": ~drawn}[which]


def put_blanks(texts, documents, last):
    """Put the blank that parted them in front of texts that follow another of their document.

    Nothing is put between two characters of scripts without blanks.

    Args:
        texts: array of large_string.
        documents: their numbers; int64, (texts,).
        last: the text and the number of the document before them.
    """
    before = pa.concat_arrays([pa.array([last[0]], texts.type), texts[:-1]])
    follows = documents == np.concatenate([[last[1]], documents[:-1]])
    blank, nothing = pa.scalar(" ", texts.type), pa.scalar("", texts.type)
    starts = pa.compute.utf8_slice_codeunits(texts, 0, 1)
    pattern = f"{WITHOUT_BLANKS}|{MARKS_BETWEEN}"
    # Of thousands of texts, if none begins without blanks, none ends so: marks need no look.
    if len(texts) > 10_000 and not pa.compute.any(
            pa.compute.match_substring_regex(starts, WITHOUT_BLANKS)).as_py():
        pattern = WITHOUT_BLANKS
    glued = pa.compute.match_substring_regex(starts, pattern).to_numpy(zero_copy_only=False)
    # Only where it matters: the last character of a long text takes long to find.
    edges = [side.filter(pa.array(glued)) for side in (before, starts)]
    edges[0] = pa.compute.utf8_slice_codeunits(edges[0], -1)
    both = pa.compute.binary_join_element_wise(*edges, nothing)
    pattern = f"{WITHOUT_BLANKS}({WITHOUT_BLANKS}|{MARKS_BETWEEN})|{MARKS_BETWEEN}{WITHOUT_BLANKS}"
    found = pa.compute.match_substring_regex(both, pattern)
    glued[glued] = found.to_numpy(zero_copy_only=False)
    blanks = pa.compute.if_else(pa.array(follows & ~glued), blank, nothing)
    return pa.compute.binary_join_element_wise(blanks, texts, nothing)


def write_texts(source, path, joined=False):
    """Write what a Source reads to an Arrow file, in the columns text and document.

    InputError where there is none.

    Args:
        joined: texts of a document are to follow each other, as put_blanks parts them.
    """
    schema = pa.schema({"text": pa.large_string(), "document": pa.int64()})
    last = "", -1
    with written_aside(path) as aside:
        with pa.ipc.new_stream(str(aside), schema) as writer:
            for texts, documents in tqdm(source.read(), desc="Reading", unit=" batches",
                                         disable=None, leave=False):
                if not len(texts):
                    continue
                shown = put_blanks(texts, documents, last) if joined else texts
                writer.write_batch(pa.record_batch([shown, documents], schema))
                last = texts[-1].as_py(), documents[-1]
        if last[1] < 0:
            raise InputError(f"{source.name}: there is no text in it, at most white space. "
                             "Expected text, a paragraph a line, or a table with a column "
                             "of texts.")
