"""Tagged sentences: words and spans, files of both layouts, and the three schemes of tags."""

import gzip
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet
import pytest
from seqeval.metrics.sequence_labeling import get_entities

from run_ner import (
    InputError,
    find_scheme,
    find_words,
    is_tag,
    read_conll,
    read_spans,
    read_tagged,
    read_tagged_row,
    tag_spans,
    write_tags,
)

TEXT = "Ada Lovelace met Bob."


def words_in(text):
    return [text[start:end] for start, end in find_words(text)]


def raise_fault(place, fault):
    raise fault


def write(path, text):
    path.write_bytes(text.encode())
    return str(path)


def sentences_of(path):
    """What read_conll finds: (number of the line, tokens, tags, after_docstart) of each sentence."""
    found = []
    for place, row in read_conll(path):
        if isinstance(row, InputError):
            raise row
        number = int(place.rpartition(" line ")[2])
        found.append((number, row["tokens"], row["tags"], row["after_docstart"]))
    return found


def tagged_row(row, names=None):
    return read_tagged_row(row, "row 3", None, None, names)


# ---------------------------------------------------------------- words of a text


@pytest.mark.parametrize(
    "text, words",
    [
        ("", []),
        (" \t\n ", []),
        ("Ada met Bob", ["Ada", "met", "Bob"]),
        ("(Ada)...", ["(", "Ada", ")", ".", ".", "."]),
        ("don't x-ray", ["don", "'", "t", "x", "-", "ray"]),
        ("5€ a+b x_y", ["5", "€", "a", "+", "b", "x", "_", "y"]),
        ("hi🙂🙂 yo", ["hi", "🙂", "🙂", "yo"]),
        ("a❤\ufe0fb", ["a", "❤\ufe0f", "b"]),  # a variation selector stays with what it varies
        ("e\u0301te\u0301 na\u0131\u0308ve", ["e\u0301te\u0301", "na\u0131\u0308ve"]),
        ("\u0301a b\u0301.", ["\u0301a", "b\u0301", "."]),  # nothing before it that a mark could stay with
        ("\u200bab c\u200bd", ["\u200bab", "c\u200bd"]),  # a zero-width space is no white space to Unicode
        ("وُلِدَ أحمد، في القاهرة؟", ["وُلِدَ", "أحمد", "،", "في", "القاهرة", "؟"]),
        ("张伟住在北京。他 来了", ["张伟住在北京", "。", "他", "来了"]),
        ("Ada\u00a0Lovelace\u3000x", ["Ada", "Lovelace", "x"]),
    ],
)
def test_words_are_found_by_white_space_and_punctuation(text, words):
    assert words_in(text) == words


@pytest.mark.parametrize("emoji", ["👩\u200d🚀", "👍\U0001f3fd"], ids=["zero-width joiner", "skin tone"])
def test_an_emoji_of_several_characters_is_one_word(emoji):
    assert words_in(f"hi {emoji}!") == ["hi", emoji, "!"]


def test_words_hold_all_that_is_not_white_space_in_order_and_once():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("ab .,!🙂\u200d\ufe0f\u0301\u00a0\t中文أُ\u200b\ufeff", k=rng.randrange(25)))
        words = find_words(text)
        covered = [at for start, end in words for at in range(start, end)]
        assert covered == [at for at, character in enumerate(text) if not character.isspace()]
        assert all(start < end for start, end in words)


# ---------------------------------------------------------------- spans


def test_a_span_over_whole_words_gives_their_tags_and_is_not_widened():
    spans = [(17, 20, "PER"), (0, 12, "PER")]  # in any order
    tags, widened = tag_spans(TEXT, find_words(TEXT), spans, "row 1")
    assert (tags, widened) == (["B-PER", "I-PER", "O", "B-PER", "O"], [])


def test_a_span_that_cuts_words_is_widened_to_them_and_listed():
    tags, widened = tag_spans(TEXT, find_words(TEXT), [(1, 8, "PER"), (17, 20, "PER")], "row 1")
    assert tags == ["B-PER", "I-PER", "O", "B-PER", "O"]
    assert widened == [{"place": "row 1", "label": "PER", "span": [1, 8], "text": "da Love", "widened_to": [0, 12],
                        "widened_text": "Ada Lovelace"}]  # fmt: skip


def test_white_space_around_a_span_does_not_widen_it():
    tags, widened = tag_spans("  Ada   met Bob", find_words("  Ada   met Bob"), [(0, 8, "PER")], "row 1")
    assert (tags, widened) == (["B-PER", "O", "O"], [])


def test_two_spans_of_one_type_that_touch_stay_two():
    tags, _ = tag_spans(TEXT, find_words(TEXT), [(0, 3, "PER"), (4, 12, "PER")], "row 1")
    assert tags == ["B-PER", "B-PER", "O", "O", "O"]


@pytest.mark.parametrize(
    "spans, fault",
    [
        ([(0, 99, "PER")], "lies outside the text of 21"),
        ([(-3, 3, "PER")], "lies outside"),
        ([(4, 4, "PER")], "or is empty"),
        ([(12, 4, "PER")], "or is empty"),
        ([(3, 4, "PER")], "white space alone"),
        ([(0, 12, "PER"), (4, 12, "LOC")], "overlaps another"),
        ([(4, 8, "PER"), (8, 12, "LOC")], "overlaps another"),  # not in characters, but in words
    ],
)
def test_spans_that_cannot_be_tags_are_refused_with_their_place(spans, fault):
    with pytest.raises(InputError, match=f"^row 7: .*{fault}"):
        tag_spans(TEXT, find_words(TEXT), spans, "row 7")


@pytest.mark.parametrize(
    "row",
    [
        {"entities": [[0, 3, "PER"], [17, 20, "LOC"]]},
        {"entities": [(0, 3, "PER"), (17, 20, "LOC")], "label": [[1, 2, "X"]]},
        {"label": [[0, 3, "PER"], [17, 20, "LOC"]]},
        {"entities": None, "label": [[0, 3, "PER"], [17, 20, "LOC"]]},
        {"entities": [{"id": 1, "label": "PER", "start_offset": 0, "end_offset": 3},
                      {"id": 2, "label": "LOC", "start_offset": 17, "end_offset": 20}], "relations": []},
        {"label": [{"start": 0, "end": 3, "text": "Ada", "labels": ["PER"]},
                   {"start": 17, "end": 20, "text": "Bob", "labels": ["LOC"]}]},
        {"entities": [{"start": 0, "end": 3, "label": "PER", "score": 0.9}, {"start": 17, "end": 20, "label": "LOC"}]},
    ],
)  # fmt: skip
def test_spans_are_read_as_triples_and_as_objects_of_doccano_and_label_studio(row):
    assert read_spans(row, "row 1") == [(0, 3, "PER"), (17, 20, "LOC")]


@pytest.mark.parametrize("row", [{"entities": []}, {"label": None}, {"entities": None}])
def test_a_row_may_be_without_spans(row):
    assert read_spans(row, "row 1") == []


@pytest.mark.parametrize(
    "span",
    [[0, 3], [0, 3, "PER", 1], ["0", 3, "PER"], [0.0, 3, "PER"], [True, 3, "PER"], [0, 3, ""], [0, 3, " "], [0, 3, 5],
     "0:3", 7, None],
)  # fmt: skip
def test_what_is_no_span_is_refused_and_shown(span):
    with pytest.raises(InputError, match=r"^row 7: expected spans as \[start, end, label\], found ") as error:
        read_spans({"entities": [span]}, "row 7")
    assert str(error.value).endswith(json.dumps(span))


@pytest.mark.parametrize(
    "span, shown",
    [({"start": 0, "label": "PER"}, '[0, null, "PER"]'), ({"start": 0, "end": 3}, "[0, 3, null]"),
     ({"start": 0, "end": 3, "labels": []}, "[0, 3, null]"), ({}, "[null, null, null]")],
)  # fmt: skip
def test_an_object_that_lacks_a_part_of_a_span_is_refused(span, shown):
    with pytest.raises(InputError, match=r"^row 7: expected spans as \[start, end, label\], found ") as error:
        read_spans({"label": [span]}, "row 7")
    assert str(error.value).endswith(shown)


@pytest.mark.parametrize("row", [{"label": 1}, {"entities": True}, {"entities": [{"start": 0, "end": 3, "labels": 5}]}])
def test_spans_that_are_no_list_are_refused(row):
    with pytest.raises(InputError, match="^row 7: expected spans"):
        read_spans(row, "row 7")


def test_labels_of_a_span_that_are_one_word_are_not_cut_to_its_first_letter():
    try:
        labels = {label for *_, label in read_spans({"label": [{"start": 0, "end": 3, "labels": "PER"}]}, "row 7")}
    except InputError:
        labels = {"PER"}  # refused, which is as good
    assert labels == {"PER"}


# ---------------------------------------------------------------- a word a line


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_conll_is_read_by_tabs_or_blanks_and_blank_lines_end_sentences(tmp_path, ending, mark):
    lines = ["EU NNP B-ORG", "rejects VBZ O", "", "", "  \t ", "\t", "Ada\tNNP\tB-PER", "von Lovelace\tNNP\tI-PER"]
    path = write(tmp_path / "a.conll", mark + ending.join(lines) + ending)
    assert sentences_of(path) == [(1, ["EU", "rejects"], ["B-ORG", "O"], False),
                                  (7, ["Ada", "von Lovelace"], ["B-PER", "I-PER"], False)]  # fmt: skip


@pytest.mark.parametrize("separator", ["", " ", "\t", " \t ", "\u00a0"])
def test_a_line_of_white_space_alone_ends_a_sentence(tmp_path, separator):
    path = write(tmp_path / "a.conll", f"Ada\tB-PER\n{separator}\nmet\tO")
    assert sentences_of(path) == [(1, ["Ada"], ["B-PER"], False), (3, ["met"], ["O"], False)]


def test_the_sentence_that_begins_a_document_is_marked(tmp_path):
    lines = ["-DOCSTART- -X- O", "", "Ada NNP B-PER", "", "met VBD O", "-DOCSTART- -X- O", "Bob NNP B-PER"]
    assert sentences_of(write(tmp_path / "a.conll", "\n".join(lines))) == [
        (3, ["Ada"], ["B-PER"], True), (5, ["met"], ["O"], False), (7, ["Bob"], ["B-PER"], True)]  # fmt: skip


def test_a_compressed_file_is_read_alike(tmp_path):
    path = tmp_path / "a.conll.gz"
    path.write_bytes(gzip.compress("Zoë\tB-PER\n\n北京\tB-LOC\n".encode()))
    assert sentences_of(str(path)) == [(1, ["Zoë"], ["B-PER"], False), (3, ["北京"], ["B-LOC"], False)]


def test_a_file_of_one_column_has_no_tags(tmp_path):
    path = write(tmp_path / "a.txt", "Ada\nmet\n\nBob\n")
    assert sentences_of(path) == [(1, ["Ada", "met"], None, False), (4, ["Bob"], None, False)]


def test_a_line_of_one_column_among_two_is_a_fault_of_its_sentence_alone(tmp_path):
    path = write(tmp_path / "a.conll", "Ada\tB-PER\nmet\tO\n\nBob\tB-PER\nleft\n.\tO\n\nYes\tO\n")
    (_, first), (place, fault), (_, last) = read_conll(path)
    assert [row["tokens"] for row in (first, last)] == [["Ada", "met"], ["Yes"]]
    assert place == f"{path}, line 4"  # where the sentence begins; the message names the line itself
    assert isinstance(fault, InputError)
    assert str(fault).startswith(f"{path}, line 5: expected 2 columns or more (word, …, tag), found 1 in 'left'")


def test_a_second_column_in_a_file_without_tags_is_a_fault(tmp_path):
    path = write(tmp_path / "a.txt", "Ada\nmet\tO\n")
    with pytest.raises(InputError, match="line 2: expected 1 column, as in the lines before, found 2 in 'met"):
        sentences_of(path)


def test_the_last_sentence_is_reported_too_where_it_is_at_fault(tmp_path):
    path = write(tmp_path / "a.conll", "Ada\tB-PER\n\nmet\tO\nBob")
    with pytest.raises(InputError, match="line 4: expected 2 columns"):
        sentences_of(path)


def test_odd_tokens_are_kept_as_they_are(tmp_path):
    tokens = ["", "\ufeff", "a\u200bb", "\u200b", "x\ufeffy", "\u2028", "a b", "#"]
    path = write(tmp_path / "a.conll", "First\tO\n" + "".join(f"{token}\tO\n" for token in tokens))
    assert sentences_of(path) == [(1, ["First", *tokens], ["O"] * 9, False)]


# ---------------------------------------------------------------- rows of a table


def test_words_and_tags_of_a_row_are_read_from_lists_and_from_text():
    expected = {"tokens": ["Ada", "left", "."], "tags": ["B-PER", "O", "O"]}
    assert tagged_row({"tokens": ["Ada", "left", "."], "ner_tags": ["B-PER", "O", "O"], "id": 4}) == expected
    assert tagged_row({"tokens": ["Ada", "left", "."], "tags": ["B-PER", "O", "O"]}) == expected
    assert tagged_row({"Sentence": " Ada  left . ", "Tag": "['B-PER', 'O', 'O']", "POS": "[]"}) == expected
    assert tagged_row({"tokens": ["Ada"]}) == {"tokens": ["Ada"], "tags": None}
    assert tagged_row({"Sentence": "Ada left"}) == {"tokens": ["Ada", "left"], "tags": None}


def test_columns_of_other_names_are_read_where_they_are_named():
    row = {"words": ["Ada"], "labels": ["B-PER"], "tokens": ["no"], "ner_tags": ["O"]}
    assert read_tagged_row(row, "row 3", "words", "labels", None) == {"tokens": ["Ada"], "tags": ["B-PER"]}


def test_a_row_with_spans_keeps_its_text_and_where_its_words_stand():
    assert tagged_row({"text": TEXT, "entities": [[0, 12, "PER"]]}) == {
        "tokens": ["Ada", "Lovelace", "met", "Bob", "."], "tags": ["B-PER", "I-PER", "O", "O", "O"], "text": TEXT,
        "offsets": [(0, 3), (4, 12), (13, 16), (17, 20), (20, 21)], "widened": []}  # fmt: skip
    assert tagged_row({"text": "Ada!"}) == {
        "tokens": ["Ada", "!"], "tags": None, "text": "Ada!", "offsets": [(0, 3), (3, 4)], "widened": []}  # fmt: skip


def test_code_in_a_column_of_tags_is_refused_and_not_run(tmp_path):
    witness = tmp_path / "it_ran"
    code = f"[__import__('pathlib').Path({str(witness)!r}).touch(), 'O']"
    with pytest.raises(InputError, match=r"^row 3: expected a list of tags such as \['O', 'B-PER'\] in column 'Tag', "
                                         r"found .\[__import__\("):  # fmt: skip
        tagged_row({"Sentence": "Ada left", "Tag": code})
    assert not witness.exists()
    eval(code)  # it would have run
    assert witness.exists()


@pytest.mark.parametrize(
    "tag", ["O, O", "['O', 'O'", "B-PER", "", "('O', 'O')", "5", "{'O': 1}", "[" * 5000, "{[]: 1}", "{{}}", "\0"]
)
def test_what_is_no_literal_of_a_list_is_refused(tag):
    with pytest.raises(InputError, match="^row 3: expected a list of tags"):
        tagged_row({"Sentence": "Ada left", "Tag": tag})


@pytest.mark.parametrize("row", [{"Sentence": "Ada left now", "Tag": "['B-PER', 'O']"},
                                 {"tokens": ["Ada", "left", "now"], "ner_tags": ["B-PER", "O"]}])  # fmt: skip
def test_tags_of_another_number_than_words_are_refused_with_both_counts(row):
    with pytest.raises(InputError, match="^row 3: 3 words, but 2 tags, in 'Ada left now'"):
        tagged_row(row)


@pytest.mark.parametrize("row", [{"tokens": ["Ada", "left"], "ner_tags": [1, 0]},
                                 {"Sentence": "Ada left", "Tag": "[1, 0]"}])  # fmt: skip
def test_tags_that_are_numbers_need_their_names(row):
    assert tagged_row(row, names=["O", "B-PER"])["tags"] == ["B-PER", "O"]
    for names in (None, ["O"]):  # none, or not for all numbers
        with pytest.raises(InputError, match=r"^row 3: tags are numbers \(\[1, 0\]\), without the names.*--label_list"):
            tagged_row(row, names)


@pytest.mark.parametrize("tags", [[-1], ["O", 1], [1, "O"]])
def test_numbers_below_zero_or_among_names_are_refused(tags):
    with pytest.raises(InputError, match="^row 3: tags are numbers"):
        tagged_row({"tokens": ["a"] * len(tags), "ner_tags": tags}, names=["O", "B-PER"])


@pytest.mark.parametrize("row, fault", [
    ({"words": ["Ada"]}, "there is no column of words; the columns are words"),
    ({"tokens": [1, 2]}, "expected a list of words in column 'tokens', found '"),
    ({"tokens": None}, "expected a list of words in column 'tokens', found 'None'"),
    ({"tokens": ["Ada"], "ner_tags": {"a": 1}}, "expected a list of tags in column 'ner_tags'"),
])  # fmt: skip
def test_a_row_without_words_or_tags_that_can_be_read_is_refused(row, fault):
    with pytest.raises(InputError, match=f"^row 3: {re.escape(fault)}"):
        tagged_row(row)


# ---------------------------------------------------------------- files of any layout


def read_file(path, names=None, on_fault=raise_fault):
    return [(row["tokens"], row["tags"]) for row in read_tagged(str(path), None, None, names, on_fault)]


def test_every_layout_gives_the_same_sentences(tmp_path):
    sentences = [(["Ada", "left"], ["B-PER", "O"]), (["Hi", ",", "Bob"], ["O", "O", "B-PER"])]
    objects = [json.dumps({"tokens": tokens, "ner_tags": tags}) for tokens, tags in sentences]
    conll = "\n\n".join("\n".join(f"{token}\t{tag}" for token, tag in zip(*pair, strict=True)) for pair in sentences)
    table = [("Sentence", "Tag"), *((" ".join(tokens), str(tags)) for tokens, tags in sentences)]
    files = {
        "a.jsonl": "\n".join(objects),
        "a.json": f"[{','.join(objects)}]",
        "a.conll": conll,
        "a.txt": conll,
        "conll.tsv": conll,
        "table.tsv": "\n".join("\t".join(row) for row in table),
        "a.csv": "\n".join(",".join(f'"{cell}"' for cell in row) for row in table),
    }
    for name, text in files.items():
        assert read_file(write(tmp_path / name, text)) == sentences, name
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        assert read_file(tmp_path / f"{name}.gz") == sentences, f"{name}.gz"
    columns = {"tokens": [tokens for tokens, _ in sentences], "ner_tags": [tags for _, tags in sentences]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet") == sentences


def test_numbers_in_parquet_get_their_names(tmp_path):
    pa.parquet.write_table(pa.table({"tokens": [["Ada", "left"]], "ner_tags": [[2, 0]]}), tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet", ["O", "B-LOC", "B-PER"]) == [(["Ada", "left"], ["B-PER", "O"])]


@pytest.mark.parametrize("tag", ["X-PER", "PER", "B-", "B_PER", "b-PER", "o", "", "B- PER"])
def test_a_tag_of_no_scheme_is_refused_with_place_and_what_is_expected(tmp_path, tag):
    path = write(tmp_path / "a.conll", f"Yes\tO\n\nAda\tB-PER\nleft\t{tag}\n")
    expected = (f"{path}, line 3: {tag!r} is no tag of a scheme that is known (IOB1, IOB2, BIOES), in 'Ada left'. "
                "Expected O, or B-, I-, E- or S- and a type")  # fmt: skip
    with pytest.raises(InputError, match=re.escape(expected)):
        read_file(path)
    assert not is_tag(tag)


def test_faulty_sentences_are_handed_on_and_the_others_read(tmp_path):
    rows = [{"tokens": ["a"], "ner_tags": ["O"]}, {"tokens": ["b"], "ner_tags": []}, {"tokens": [], "ner_tags": []},
            {"tokens": ["\ud83d"], "ner_tags": ["O"]}, {"tokens": ["c"], "ner_tags": ["B-X"]}]  # fmt: skip
    path, faults = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\nnot JSON\n"), []
    found = read_file(path, on_fault=lambda place, fault: faults.append((place, str(fault))))
    assert found == [(["a"], ["O"]), (["c"], ["B-X"])]  # a sentence without words is left out, and no fault
    assert [place for place, _ in faults] == [f"{path}, line {n}" for n in (2, 4, 6)]
    assert "1 words, but 0 tags" in faults[0][1] and "surrogate" in faults[1][1] and "not JSON" in faults[2][1]


# ---------------------------------------------------------------- schemes


@pytest.mark.parametrize(
    "tags, scheme, faults",
    [
        ([], "IOB2", 0),
        ([["O", "O"]], "IOB2", 0),
        ([["B-PER", "I-PER", "O", "B-LOC"]], "IOB2", 0),
        ([["B-PER", "B-PER"], ["O"]], "IOB2", 0),
        ([["I-PER", "I-PER", "O", "I-LOC"], ["I-PER", "B-PER"]], "IOB1", 0),
        ([["I-PER", "I-LOC"]], "IOB1", 0),
        ([["S-PER", "O", "B-LOC", "I-LOC", "E-LOC"]], "BIOES", 0),
        ([["B-LOC", "E-LOC"]], "BIOES", 0),
        ([["B-PER", "O"], ["B-LOC", "O"], ["O", "I-PER", "I-PER"]], "IOB2", 1),  # one, and not each of its tags
        ([["B-PER", "I-LOC", "I-LOC"], ["B-PER"], ["B-PER"]], "IOB2", 1),
        ([["I-PER"], ["I-LOC", "I-LOC"], ["O", "B-PER"]], "IOB1", 1),
        ([["S-PER", "B-LOC", "I-LOC", "O"]], "BIOES", 1),  # the last should be E-LOC
        ([["S-PER"], ["B-LOC", "O"]], "BIOES", 1),
    ],
)
def test_the_scheme_is_recognised_and_tags_that_do_not_follow_it_are_counted(tags, scheme, faults):
    assert find_scheme(tags) == (scheme, faults)
    assert find_scheme(iter(tags)) == (scheme, faults)


SAME_ENTITIES = [  # Ada Lovelace and Bob, who stand side by side; Rome; O; and one of one word behind another type
    ("IOB1", ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-ORG", "I-ORG", "B-ORG"]),
    ("IOB2", ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-ORG", "I-ORG", "B-ORG"]),
    ("BIOES", ["B-PER", "E-PER", "S-PER", "O", "S-LOC", "B-ORG", "E-ORG", "S-ORG"]),
]


@pytest.mark.parametrize("scheme, expected", SAME_ENTITIES)
@pytest.mark.parametrize("tags", [tags for _, tags in SAME_ENTITIES])
def test_tags_are_written_in_each_scheme_from_each(tags, scheme, expected):
    assert write_tags(tags, scheme) == expected


def test_an_entity_of_three_words_has_its_inside_written_in_each_scheme():
    tags = ["O", "B-A-B", "I-A-B", "I-A-B"]  # and a type may have a hyphen of its own
    assert write_tags(tags, "IOB1") == ["O", "I-A-B", "I-A-B", "I-A-B"]
    assert write_tags(tags, "IOB2") == tags
    assert write_tags(tags, "BIOES") == ["O", "B-A-B", "I-A-B", "E-A-B"]


def test_an_inside_that_begins_an_entity_becomes_its_begin():
    assert write_tags(["O", "I-PER", "I-PER", "I-LOC"], "IOB2") == ["O", "B-PER", "I-PER", "B-LOC"]


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_writing_tags_changes_no_entity_whatever_the_tags(scheme):
    rng = random.Random(1)
    every = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC", "x-y"))]
    for _ in range(3000):
        tags = rng.choices(every, k=rng.randrange(9))
        written = write_tags(tags, scheme)
        assert get_entities(written) == get_entities(tags)
        assert write_tags(written, scheme) == written
        assert not {tag[0] for tag in written} - {*"OBI", *("ES" if scheme == "BIOES" else "")}
