"""Questions are read as their files mean them, and what is at fault in one is named with its place and id."""

import gzip
import json

import pytest

from run_qa import InputError, read_entries, read_questions

CONTEXT = "Ada met Babbage in London."


def fail(_place, fault):
    raise fault


def squad(*qas, context=CONTEXT, **rest):
    return {"data": [{"paragraphs": [{"context": context, "qas": list(qas)}]}], **rest}


def qa(name="q1", answers=(("London", 19),), **rest):
    answers = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": "Where?", "answers": answers, **rest}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def read(tmp_path, content, name="data.json", on_fault=fail):
    return list(read_questions(write(tmp_path / name, content), on_fault))


def fault_of(tmp_path, content, name="data.json"):
    with pytest.raises(InputError) as caught:
        read(tmp_path, content, name)
    return str(caught.value)


def test_a_question_of_squad_is_read_with_place_id_context_and_answers(tmp_path):
    (row,) = read(tmp_path, squad(qa(), version="1.1"))
    assert row == {
        "place": f"{tmp_path / 'data.json'}, entry 1, paragraph 1, question 1 (id q1)",
        "id": "q1",
        "question": "Where?",
        "context": CONTEXT,
        "answers": [("London", 19)],
    }


def test_articles_and_paragraphs_are_read_in_order(tmp_path):
    articles = [
        {"title": "A", "paragraphs": [{"context": CONTEXT, "qas": [qa("1"), qa("2")]}, {"context": "x", "qas": []}]},
        {"paragraphs": [{"context": "In London", "qas": [qa("3", [("London", 3)])]}]},
    ]
    rows = read(tmp_path, {"data": articles})
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert rows[2]["place"].endswith("entry 2, paragraph 1, question 1 (id 3)")
    assert rows[2]["context"] == "In London"


def test_integer_ids_are_read_as_text_and_missing_ones_are_named_by_file_and_number(tmp_path):
    rows = read(tmp_path, squad(qa(7), qa(None), {"question": "Who?", "answers": []}))
    assert [row["id"] for row in rows] == ["7", "data-2", "data-3"]


def test_several_references_and_white_space_around_answers_are_kept(tmp_path):
    (row,) = read(tmp_path, squad(qa(answers=[(" London", 18), ("London.", 19), ("London", 19)])))
    assert row["answers"] == [(" London", 18), ("London.", 19), ("London", 19)]


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"answers": [], "is_impossible": True}, []),
        ({"answers": [], "is_impossible": True, "plausible_answers": [{"text": "met", "answer_start": 4}]}, []),
        ({"is_impossible": True}, []),
        ({"answers": []}, []),
        ({"answers": {"text": [], "answer_start": []}}, []),
        ({}, None),
        ({"answers": None}, None),
        ({"answers": {"text": ["Ada", "Babbage"], "answer_start": [0, 8]}}, [("Ada", 0), ("Babbage", 8)]),
        ({"answers": {"text": "Ada", "answer_start": 0}}, [("Ada", 0)]),
        ({"answers": [{"text": "Ada", "answer_start": 0}], "is_impossible": False}, [("Ada", 0)]),
    ],
    ids=str,
)
def test_answers_of_all_layouts(tmp_path, row, answers):
    flat = {"id": "1", "question": "Who?", "context": CONTEXT, **row}
    for name, content in (("rows.jsonl", json.dumps(flat)), ("rows.json", [flat]), ("one.json", {"data": [flat]})):
        assert [found["answers"] for found in read(tmp_path, content, name)] == [answers]


def test_compressed_files_byte_order_marks_and_crlf_do_no_harm(tmp_path):
    text = "\ufeff" + json.dumps(squad(qa()), indent=1).replace("\n", "\r\n")
    (tmp_path / "data.json.gz").write_bytes(gzip.compress(text.encode()))
    (row,) = read_questions(str(tmp_path / "data.json.gz"), fail)
    assert row["answers"] == [("London", 19)]


def test_offsets_count_characters(tmp_path):
    context = "Ängström 👩‍👧 in Zürich"
    (row,) = read(tmp_path, squad(qa(answers=[("Zürich", context.index("Zürich"))]), context=context))
    assert row["answers"][0][0] == "Zürich"


FAULTS = {
    "elsewhere": (squad(qa(answers=[("London", 8)])),
                  ["id q1", "'London'", "character 8", "'Babbag'", "It stands at 19"]),
    "nowhere": (squad(qa(answers=[("Paris", 3)])), ["id q1", "'Paris'", "not stand anywhere"]),
    "past the end": (squad(qa(answers=[("London", 99)])), ["id q1", "character 99", "has 26", "0 to 25"]),
    "before the start": (squad(qa(answers=[("London", -1)])), ["character -1", "0 to 25"]),
    "cut off by the end": (squad(qa(answers=[("London. He", 19)])), ["'London.' stands"]),
    "empty answer": (squad(qa(answers=[(" ", 3)])), ["id q1", "an answer is empty", "empty list"]),
    "no number": (squad(qa(answers=[("London", "19")])), ["answer_start", "found"]),
    "true is no number": (squad(qa(answers=[("London", True)])), ["answer_start", "found"]),
    "more texts than numbers": ({"data": [{"id": 1, "question": "?", "context": CONTEXT,
                                           "answers": {"text": ["Ada"], "answer_start": []}}]}, ["as many numbers"]),
    "answers are text": (squad(qa() | {"answers": "London"}), ["expected answers as", "London"]),
    "impossible text": (squad(qa(is_impossible="false")), ["'is_impossible'", "'false'", "true or false"]),
    "impossible, but": (squad(qa(is_impossible=True)), ["is_impossible", "'London'"]),
    "no context": ({"data": [{"paragraphs": [{"qas": [qa()]}]}]}, ["id q1", "'context'", "id, question, answers"]),
    "empty context": (squad(qa(answers=[]), context="\n "), ["id q1", "the context is empty"]),
    "no question": (squad({"id": "q1", "answers": []}), ["id q1", "'question'"]),
    "empty question": (squad(qa() | {"question": " "}), ["id q1", "the question is empty"]),
    "question is a number": (squad(qa() | {"question": 3}), ["'question'", "'3'"]),
    "id is a list": (squad(qa([1])), ["id", "[1]"]),
    "half a character": ('[{"context": "a \\ud83d b", "question": "?", "answers": []}]', ["half a character"]),
    "paragraphs are text": ({"data": [{"paragraphs": "x"}]}, ["entry 1", "'paragraphs'", "list of objects"]),
    "no qas": ({"data": [{"paragraphs": [{"context": "x"}]}]}, ["entry 1, paragraph 1", "'qas'"]),
    "cut off": (json.dumps(squad(qa()), indent=1)[:-30], ["line", "column", "not JSON", "cut off"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_place(tmp_path, name):
    content, fragments = FAULTS[name]
    message = fault_of(tmp_path, content)
    for fragment in [str(tmp_path / "data.json"), *fragments]:
        assert fragment in message, message


def test_line_and_column_of_a_file_that_is_cut_off(tmp_path):
    text = json.dumps(squad(qa()), indent=1)
    lines = text[:120].splitlines()
    assert f"line {len(lines)}, column" in fault_of(tmp_path, text[:120])


def test_a_faulty_line_of_jsonl_is_named(tmp_path):
    good = json.dumps({"id": "1", "question": "Who?", "context": CONTEXT, "answers": []})
    message = fault_of(tmp_path, f'{good}\n\n{{"id": 2,\n', "rows.jsonl")
    assert "rows.jsonl, line 3, column" in message


def test_faulty_questions_are_passed_over_where_that_is_asked_for(tmp_path):
    faults = []
    content = squad(qa("1"), qa("2", [("Paris", 0)]), qa("3"))
    content["data"].insert(0, {"paragraphs": None})
    rows = read(tmp_path, content, on_fault=lambda place, fault: faults.append((place, str(fault))))
    assert [row["id"] for row in rows] == ["1", "3"]
    assert [place.split(", ", 1)[1] for place, _ in faults] == ["entry 1", "entry 2, paragraph 1, question 2"]
    assert "id 2" in faults[1][1]


def test_rows_of_a_data_set_are_read_alike():
    rows = [("set, row 0", {"id": "a", "title": "t", "question": "Who?", "context": CONTEXT,
                            "answers": {"text": ["Ada"], "answer_start": [0]}}),
            ("set, row 1", {"question": "Who?", "context": CONTEXT,
                            "answers": {"text": [], "answer_start": []}})]  # fmt: skip
    assert [(row["id"], row["answers"]) for row in read_entries(rows, "train", fail)] == [
        ("a", [("Ada", 0)]),
        ("train-2", []),
    ]


def test_questions_without_ids_have_names_of_their_own_in_files_of_one_name(tmp_path):
    counts, rows = {}, []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder / "train.json", [{"question": "Where?", "context": CONTEXT}] * 2)
        rows += read_questions(path, fail, counts)
    assert [row["id"] for row in rows] == ["train-1", "train-2", "train-3", "train-4"]


def test_half_a_character_in_an_id_is_a_fault(tmp_path):
    assert "lone surrogate" in fault_of(tmp_path, squad(qa("a\ud800")))
