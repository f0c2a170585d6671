"""The language reference as a corpus: running text, one paragraph per line, each line once."""

import re

import pytest

from tools.python_reference import documents, main, running_text, write_reference


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "new" / "folder" / "corpus.txt"
    counts = write_reference(path)
    return path.read_bytes().decode("utf-8"), counts


def test_the_file_has_one_paragraph_a_line_and_a_blank_line_between_documents(corpus):
    text, (n_documents, n_paragraphs) = corpus
    assert text.endswith("\n") and "\n\n\n" not in text and "\r" not in text
    assert len(text.split("\n\n")) == n_documents > 50
    lines = [line for line in text.split("\n") if line]
    assert len(lines) == n_paragraphs
    assert 200_000 < len(text.encode("utf-8")) < 600_000


def test_hard_wraps_are_undone_and_markup_is_gone(corpus):
    text, _ = corpus
    lines = [line for line in text.split("\n") if line]
    assert max(map(len, lines)) > 500  # pydoc wraps at 70
    assert not [line for line in lines if re.fullmatch(r"\W+", line)]  # rows of ***, === or +---+
    assert not [line for line in lines if line != line.strip() or ">>>" in line[:3] or "::=" in line]
    assert "**PEP" not in text


def test_the_sentence_about_lambda_survives(corpus):
    text, _ = corpus
    (line,) = [line for line in text.split("\n") if line.startswith("Lambda expressions")]
    assert "are used to create anonymous functions." in line
    assert "yields a function object." in line


def test_no_line_stands_twice(corpus):
    text, _ = corpus
    lines = [line for line in text.split("\n") if line]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ('The "if" statement\n******************', None),
        ('   if_stmt ::= "if" assignment_expression ":" suite', None),
        ("   if test1:\n       print(x)", None),
        (">>> lists = [[]] * 3\n>>> lists", None),
        ("+------+------+\n| a    | b    |\n+------+------+", None),
        ("object.__lt__(self, other)\nobject.__le__(self, other)", None),
        ('The "if" statement is\nused conditionally:', "The if statement is used conditionally:"),
        ("* A *name* of **any** kind is\n  bound here. [1]", "A name of any kind is bound here."),
        ("[2] A double-\n    precision number is meant.", "A double-precision number is meant."),
        ("Strings\n   A string is a sequence of values.", "A string is a sequence of values."),
        ('Repeat it as "s * n" or "n * s" does.', "Repeat it as s * n or n * s does."),
    ],
)
def test_a_block_becomes_a_line_of_prose_or_nothing(block, expected):
    assert running_text(block) == expected


def test_documents_are_sorted_by_topic_and_a_shared_paragraph_stays_in_the_first():
    shared = "This is said in both of them."
    topics = {"while": f"{shared}\n\nThis is only about while loops.", "compound": shared, "if": shared}
    assert list(documents(topics)) == [[shared], ["This is only about while loops."]]


def test_the_command_replaces_an_old_file_and_leaves_nothing_beside_it(tmp_path, capsys):
    path = tmp_path / "corpus.txt"
    path.write_text("old", encoding="utf-8")
    assert main([str(path)]) == 0
    assert path.stat().st_size > 200_000 and list(tmp_path.iterdir()) == [path]
    assert capsys.readouterr().out.startswith(f"{path}: ")


def test_a_file_that_cannot_be_written_is_named_with_exit_status_2(tmp_path, capsys):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "corpus.txt"
    assert main([str(path)]) == 2
    assert f"{path} cannot be written" in capsys.readouterr().err
