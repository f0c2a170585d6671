"""Tagged sentences: read from files, brought into one scheme of tags, and turned into spans and back."""

import ast
import json
import os
import re
import unicodedata
from collections import Counter

from seqeval.metrics.sequence_labeling import get_entities

from utils.reading import InputError, read_csv, read_json, read_lines, read_parquet


def find_words(text):
    """Find the words of a text, by white space and punctuation: a list of (start, end), in characters.

    Each punctuation mark or symbol, such as an emoji, is a word of its own. What modifies a character (a combining
    mark, a variation selector, a skin tone) stays with the one before it, and a zero-width joiner joins two.
    """
    words = []
    for chunk in re.finditer(r"\S+", text):
        start = None  # where a word began that may go on
        for at in range(*chunk.span()):
            kind = unicodedata.category(text[at])
            joins = kind[0] == "M" or kind == "Cf" or text[at] in "🏻🏼🏽🏾🏿" or text[at - 1] == "\u200d"
            if joins and at > chunk.start():
                words[-1] = (words[-1][0], at + 1)
            elif kind[0] in "PS":
                words.append((at, at + 1))
                start = None
            elif start is None:
                words.append((at, at + 1))
                start = at
            else:
                words[-1] = (start, at + 1)
    return words


def tag_spans(text, words, spans, place):
    """Tag the words of a text that spans lie on, in IOB2: (tags, list of those widened to whole words).

    Args:
        text: the text. words: (start, end) of each word. spans: list of (start, end, label), in characters, end not
            included. place: where it stands, for messages.

    Raises:
        InputError: a span lies outside the text, has no word in it, or overlaps another.
    """
    tags, widened = ["O"] * len(words), []
    for start, end, label in sorted(spans, key=lambda span: span[:2]):
        if not 0 <= start < end <= len(text):
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] lies outside the text of {len(text)} "
                             "characters, or is empty. Expected 0 <= start < end, the end not included.")
        inside = [n for n, (first, last) in enumerate(words) if first < end and last > start]
        if not inside:
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] holds white space alone. Take it out.")
        if any(tags[n] != "O" for n in inside):
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] ({text[start:end][:40]!r}) overlaps "
                             "another. A word has one tag: take one of the two out.")
        for n in inside:
            tags[n] = f"{'B' if n == inside[0] else 'I'}-{label}"
        found = (words[inside[0]][0], words[inside[-1]][1])
        if found[0] < start or found[1] > end:  # white space around a span does no harm
            widened.append({"place": place, "label": label, "span": [start, end], "text": text[start:end],
                            "widened_to": list(found), "widened_text": text[found[0] : found[1]]})
    return tags, widened


def read_spans(row, place):
    """Read the spans of a row of .jsonl, under `entities` or `label`: a list of (start, end, label).

    As [start, end, label], or as an object with start, end and label; doccano and Label Studio write start_offset,
    end_offset and labels. InputError for anything else.
    """
    spans, found = [], row["entities"] if row.get("entities") is not None else row.get("label") or []
    for span in found if isinstance(found, list | tuple) else [found]:
        if isinstance(span, dict):
            labels = span.get("labels")
            span = [span.get("start", span.get("start_offset")), span.get("end", span.get("end_offset")),
                    span.get("label", labels[0] if isinstance(labels, list) and len(labels) == 1 else labels or None)]
        if not (isinstance(span, list | tuple) and len(span) == 3 and all(type(x) is int for x in span[:2])
                and isinstance(span[2], str) and span[2].strip()):
            found = json.dumps(span, default=str)[:60]
            raise InputError(f"{place}: expected spans as [start, end, label], found {found}")
        spans.append(tuple(span))
    return spans


def read_conll(path, on_fault):
    """Read tagged words, one a line: yields (place, dict of tokens, tags and after_docstart) for each sentence.

    The first column is the word, the last its tag, by tabs or blanks; a blank line, or one of white space, ends a
    sentence. `-DOCSTART-` begins a document. A file of one column has no tags: they are None.

    on_fault is called with place and InputError of a sentence with a line of one column in a file that has tags, or of
    several in one that has none.
    """
    columns = fault = None
    tokens, tags, start, docstart = [], [], 1, False
    for first, lines in read_lines(path):
        for number, line in enumerate(lines, first):
            cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            is_break = not line.strip() or cells[0] == "-DOCSTART-"
            if is_break and tokens:
                if fault:
                    on_fault(f"{path}, line {start}", fault)
                else:
                    yield f"{path}, line {start}", {"tokens": tokens, "tags": tags if columns > 1 else None,
                                                    "after_docstart": docstart}
                    docstart = False
                tokens, tags, fault = [], [], None
            if is_break:
                docstart = docstart or bool(line.strip())
                continue
            columns = columns or len(cells)
            if len(cells) == 1 != columns or columns == 1 != len(cells):
                expected = "2 columns or more (word, …, tag)" if columns > 1 else "1 column, as in the lines before"
                fault = fault or InputError(
                    f"{path}, line {number}: expected {expected}, found {len(cells)} in {line[:40]!r}. Put one tab "
                    "between word and tag, and an empty line between sentences.")
            start = start if tokens else number
            tokens.append(cells[0])
            tags.append(cells[-1])
    if fault:
        on_fault(f"{path}, line {start}", fault)
    elif tokens:
        yield f"{path}, line {start}", {"tokens": tokens, "tags": tags if columns > 1 else None,
                                        "after_docstart": docstart}


def read_tagged_row(row, place, text_column, label_column, names):
    """Read a sentence out of a row of a table: dict of tokens and tags, with text and offsets where it has spans.

    Args:
        row: dict of column to value. text_column, label_column: names to use instead of `tokens` and `ner_tags` or
            `Sentence` and `Tag`. names: the tags by number, where the row has numbers; or None.

    Returns:
        dict of tokens, tags (None where it has none), and of text, offsets and widened where words were found in text.

    Raises:
        InputError: there is no such column, or tokens and tags do not fit each other.
    """
    for flag, name in (("--text_column_name", text_column), ("--label_column_name", label_column)):
        if name and name not in row:
            raise InputError(f"{place}: {flag} {name}: there is no such column; the columns are {', '.join(row)}")
    text_name = text_column or next((name for name in ("tokens", "Sentence", "text") if name in row), "tokens")
    if text_name not in row:
        raise InputError(f"{place}: there is no column of words; the columns are {', '.join(map(str, row))}. Expected "
                         "tokens and ner_tags, or Sentence and Tag, or text and entities; or name them with "
                         "--text_column_name and --label_column_name.")
    value = row[text_name]
    label_name = label_column or next((name for name in ("ner_tags", "tags", "Tag") if name in row), None)
    if isinstance(value, str) and text_name != "Sentence" and (label_name is None or label_name not in row):
        words = find_words(value)
        found = {"tokens": [value[start:end] for start, end in words], "tags": None, "text": value, "offsets": words,
                 "widened": []}
        if "entities" in row or "label" in row:
            found["tags"], found["widened"] = tag_spans(value, words, read_spans(row, place), place)
        return found
    tokens = value.split() if isinstance(value, str) else value
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{place}: expected a list of words in column {text_name!r}, found {str(value)[:40]!r}")
    tags = row.get(label_name) if label_name else None
    if isinstance(tags, str):
        try:
            tags = ast.literal_eval(tags)  # a literal: nothing in it can run
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise InputError(f"{place}: expected a list of tags such as ['O', 'B-PER'] in column {label_name!r}, found "
                             f"{row[label_name][:60]!r}") from None
    if tags is not None and not isinstance(tags, list):
        raise InputError(f"{place}: expected a list of tags in column {label_name!r}, found {str(tags)[:40]!r}")
    if tags is not None and len(tags) != len(tokens):
        raise InputError(f"{place}: {len(tokens)} words, but {len(tags)} tags, in {' '.join(tokens)[:60]!r}. Each word "
                         "needs one tag.")
    if any(type(tag) is int for tag in tags or ()):
        if names is None or not all(type(tag) is int and 0 <= tag < len(names) for tag in tags):
            raise InputError(f"{place}: tags are numbers ({str(tags)[:40]}), without the names for them. Name them all "
                             "in order with --label_list, as in --label_list O B-PER I-PER.")
        tags = [names[tag] for tag in tags]
    return {"tokens": tokens, "tags": tags}


def check_tagged(row, place):
    """Raise InputError where a sentence has a tag of no scheme, or half a character in it."""
    bad = next(([tag] for tag in row["tags"] or () if not is_tag(tag)), None)
    if bad:
        raise InputError(f"{place}: {str(bad[0])[:40]!r} is no tag of a scheme that is known (IOB1, IOB2, BIOES), in "
                         f"{' '.join(row['tokens'])[:60]!r}. Expected O, or B-, I-, E- or S- and a type, as B-PER; "
                         "where single words have U- and last ones L-, write S- and E-.")
    broken = next((token for token in row["tokens"] if re.search("[\t\n\r]", token)), None)
    if broken is not None:
        raise InputError(f"{place}: a word with a tab or a line break in it, {broken[:40]!r}, which a column cannot "
                         "hold. Split it, or take the white space out.")
    if any(re.search("[\ud800-\udfff]", token) for token in row["tokens"]):
        raise InputError(f"{place}: half a character (a lone surrogate, such as a cut-off emoji leaves). Expected "
                         "Unicode text; take it out of the file.")


def read_tagged(path, text_column, label_column, names, on_fault):
    """Read sentences, with tags or without: yields dicts of place, tokens, tags and what else the layout has.

    Tables (.jsonl, .json, .csv, .parquet; .tsv with a header of such columns) are read by read_tagged_row, any other
    file by read_conll; all also as .gz. A sentence without words is left out.

    on_fault is called with place and InputError of each row that is at fault.
    """
    readers = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet}
    reader = readers.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])
    if path.lower().removesuffix(".gz").endswith(".tsv"):
        header = next((lines[0].split("\t") for _, lines in read_lines(path)), [])
        of_words = {text_column, "tokens", "Sentence", "text"} & {*header}
        reader = reader if of_words and not any(map(is_tag, header)) else None
    if reader is None:
        rows = read_conll(path, on_fault)
    else:
        rows = reader(path) if reader is read_parquet else reader(path, on_fault)
    for place, row in rows:
        try:
            row = row if reader is None else read_tagged_row(row, place, text_column, label_column, names)
            check_tagged(row, place)
        except InputError as fault:
            on_fault(place, fault)
        else:
            if row["tokens"]:
                yield {"place": place, **row}


def is_tag(tag):
    return isinstance(tag, str) and (tag == "O" or re.fullmatch(r"[BIES]-\S[^\t\n\r]*", tag) is not None)


def find_scheme(sentences):
    """Recognise the scheme of tags: ("IOB1", "IOB2" or "BIOES"; how many tags do not follow it).

    Where no entity ends in E- or is an S-, entities that begin with I- are held against those that begin with B-, of
    entities that do not follow one of their own type, where both schemes write B-.

    Args:
        sentences: lists of tags, such as B-PER.
    """
    sentences = list(sentences)
    prefixes = Counter(tag[0] for tags in sentences for tag in tags)
    begun = Counter()
    for tags in sentences:
        for before, tag in zip(["O", *tags], tags, strict=False):
            if tag != "O" and before[1:] != tag[1:]:
                begun[tag[0]] += 1
    bioes = prefixes["E"] + prefixes["S"] > 0
    scheme = "BIOES" if bioes else "IOB1" if begun["I"] > begun["B"] else "IOB2"
    faults = sum(a != b for tags in sentences for a, b in zip(tags, write_tags(tags, scheme), strict=True))
    return scheme, faults


def write_tags(tags, scheme):
    """Write the entities that conlleval reads from tags in a scheme, so that what was at fault no longer is.

    Args:
        tags: list of tags of a sentence, in any scheme. scheme: "IOB1", "IOB2" or "BIOES".

    Source: Tjong Kim Sang and Buchholz 2000, https://aclanthology.org/W00-0726/, whose conlleval decides where an
    entity begins and ends; Ratinov and Roth 2009, https://aclanthology.org/W09-1119/, for BIOES.
    """
    written, before = ["O"] * len(tags), (None, -2)  # type and end of the entity before
    for kind, first, last in get_entities(list(tags)):
        for n in range(first, last + 1):
            prefix = "B" if n == first else "I"
            if scheme == "BIOES" and n == last:
                prefix = "S" if first == last else "E"
            if scheme == "IOB1" and n == first and before != (kind, first - 1):
                prefix = "I"
            written[n] = f"{prefix}-{kind}"
        before = (kind, last)
    return written
