"""Write Python's own language reference as plain text: a real corpus that needs no download.

    python -m tools.python_reference corpus.txt

Every Python carries the reference in pydoc_data.topics, where help("lambda") finds it. Each topic becomes a document:
running text only, one paragraph per line, a blank line between documents. Titles, code, grammar, tables and markup are
left out, and a paragraph that several topics share stands once, so that no held-out line is a training line too.
About 270 KB of UTF-8; the text differs a little from one Python version to the next.
"""

import argparse
import os
import re
import sys
from pathlib import Path

LIST_MARK = re.compile(r"\A *(\*|\d+\.|[IVX]+\.|\[\d+\]) ")  # a bullet, a number, or the mark of a footnote
NOT_TEXT = re.compile(r"^ *(\+-|\||>>>|#)|::=|\S {3,}\S", re.MULTILINE)  # table, session, comment, grammar, columns
MARKUP = re.compile(  # "code", **strong**, *emphasis*; in "d["x"]" the code ends at the last quote
    r'(?<![\w"])"(.+?)"(?=s?(?:[^\w"\]]|$))|(?<![\w"])\*\*(\w.*?)\*\*(?!\w)|(?<![\w"])\*(\w.*?)\*(?!\w)'
)
FOOTNOTE = re.compile(r" +\[\d+\](?!\w)")
PLAIN_WORD = re.compile(r"[“‘(]*[A-Za-z][a-z]*(?:[-’][A-Za-z][a-z]*)*[.,;:!?)”’]*")
SENTENCE_END = re.compile(r"[.:;,!?][)”’]*$")


def running_text(block):
    """Turn a block of hard-wrapped reST into one line of prose.

    Args:
        block: the lines between two blank lines of a topic, as one string.

    Returns:
        The paragraph without markup, or None where the block is a title, code, grammar or a table.
    """
    lines = LIST_MARK.sub(lambda mark: " " * len(mark[0]), block).splitlines()
    indents = [len(line) - len(line.lstrip()) for line in lines]
    if len(lines) > 1 and indents[0] < indents[1]:  # a term above its definition
        lines, indents = lines[1:], indents[1:]
    if len(set(indents)) != 1 or NOT_TEXT.search(block):  # the lines of a paragraph are indented alike, unlike code
        return None
    text = " ".join(line.strip() for line in lines)
    text = re.sub(r"(?<=\w-) (?=\w)", "", text)  # lines are wrapped after hyphens too
    text = FOOTNOTE.sub("", MARKUP.sub(lambda found: found[1] or found[2] or found[3], text))
    text = re.sub(" +", " ", text)
    words = text.split()
    plain = sum(PLAIN_WORD.fullmatch(word) is not None for word in words) / len(words)
    # What leads over to a block of code may stop without punctuation. It is longer than the titles, which go.
    is_prose = plain > 0.5 and (SENTENCE_END.search(text) or (len(words) >= 12 and plain > 0.7))
    return text if is_prose and len(words) >= 4 else None


def documents(topics):
    """Yield the documents of the reference, each a list of paragraphs.

    Args:
        topics: text by name of topic, as in pydoc_data.topics.
    """
    seen = set()  # `compound`, for one, repeats all of `if`, `while` and `for`
    for _, text in sorted(topics.items()):
        blocks = (block for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip())
        paragraphs = []
        for paragraph in map(running_text, blocks):
            if paragraph is not None and paragraph not in seen:
                seen.add(paragraph)
                paragraphs.append(paragraph)
        if paragraphs:
            yield paragraphs


def write_reference(path):
    """Write the reference to a UTF-8 file, whole or not at all; the folder is made where it is missing.

    Returns:
        (documents, paragraphs): how many of each were written.

    Raises:
        OSError: the file cannot be written.
    """
    from pydoc_data.topics import topics  # half a megabyte of strings, so only when it is asked for

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = list(documents(topics))
    unfinished = path.with_name(path.name + ".tmp")
    text = "\n\n".join("\n".join(paragraphs) for paragraphs in found) + "\n"
    unfinished.write_text(text, encoding="utf-8", newline="\n")
    os.replace(unfinished, path)
    return len(found), sum(map(len, found))


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.python_reference",
        description="Write Python's language reference as plain text, one paragraph per line.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="text file to write; an existing one is replaced")
    path = parser.parse_args(argv).file
    try:
        n_documents, n_paragraphs = write_reference(path)
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}. Give a file in a folder you may write to.", file=sys.stderr)
        return 2
    print(f"{path}: {n_documents} documents, {n_paragraphs} paragraphs, {path.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
