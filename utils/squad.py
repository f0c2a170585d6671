"""Questions on paragraphs, in the layouts of SQuAD 1.1 and 2.0: read from files, and checked."""

import json
import os
import re

from utils.reading import InputError, read_json


def read_answers(row, context, place):
    """Read the reference answers of a question: a list of (text, start), start counted in characters of the context.

    Under `answers` stands a list of objects of text and answer_start, or one object with a list of each, as in the
    data sets of the Hub. The list is empty where the question has no answer, and None where nothing is said of any.

    Raises:
        InputError: it is none of these, or an answer does not stand in the context where it is said to.
    """
    found, impossible = row.get("answers"), row.get("is_impossible")
    if impossible not in (None, True, False):
        raise InputError(f"{place}: expected true or false under 'is_impossible', found {str(impossible)[:40]!r}")
    if found is None:
        return [] if impossible else None
    shown = str(found)[:60]
    if isinstance(found, dict) and isinstance(texts := found.get("text"), list):
        starts = found.get("answer_start")
        found = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)] if (
            isinstance(starts, list) and len(starts) == len(texts)) else None
    elif isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not all(
            isinstance(answer, dict) and isinstance(answer.get("text"), str) and type(answer.get("answer_start")) is int
            for answer in found):
        raise InputError(f"{place}: expected answers as [{{\"text\": …, \"answer_start\": 12}}], or as {{\"text\": [], "
                         f"\"answer_start\": []}} with as many numbers as texts, found {shown}")
    answers = [(answer["text"], answer["answer_start"]) for answer in found]
    if impossible and answers:
        raise InputError(f"{place}: is_impossible is true, but there is an answer, {answers[0][0][:40]!r}. Take one of "
                         "the two out.")
    for text, start in answers:
        if not text.strip():
            raise InputError(f"{place}: an answer is empty. Expected text; a question that has no answer has the empty "
                             "list.")
        if not 0 <= start < len(context):
            raise InputError(f"{place}: the answer {text[:40]!r} is said to begin at character {start}, but its "
                             f"context has {len(context)}. Expected an answer_start from 0 to {len(context) - 1}.")
        there = context[start : start + len(text)]
        if there != text:
            at = context.find(text)
            where = f"It stands at {at}" if at >= 0 else "It does not stand anywhere in it"
            raise InputError(f"{place}: the answer {text[:40]!r} is said to begin at character {start} of its context, "
                             f"where {there[:40]!r} stands. {where}; correct answer_start, which counts characters, "
                             "not bytes, or the text.")
    return answers


def read_question(row, context, place):
    """Read a question: dict of place, id (str; None where it has none), question, context, and answers as read_answers.

    Args:
        row: dict of id, question and answers. context: its text.

    Raises:
        InputError: something is missing, empty or of another kind, or an answer is at fault.
    """
    name = row.get("id")
    if name is not None and type(name) not in (str, int):
        raise InputError(f"{place}: expected an id that is text or a whole number, found {str(name)[:40]!r}")
    place += f" (id {name})" if name is not None else ""
    if re.search("[\ud800-\udfff]", str(name)):
        raise InputError(f"{place}: the id {name!r} holds half a character (a lone surrogate). Expected Unicode text.")
    for what, text in (("question", row.get("question")), ("context", context)):
        if not isinstance(text, str):
            names = ", ".join(row) or "nothing"
            found = f"found {str(text)[:40]!r}" if text is not None or what in row else f"there is none beside {names}"
            raise InputError(f"{place}: expected text under {what!r}, {found}. A question needs question and context, "
                             "which in SQuAD's layout its paragraph has.")
        if not text.strip():
            raise InputError(f"{place}: the {what} is empty. Expected text; take the question out of the data.")
        if re.search("[\ud800-\udfff]", text):
            raise InputError(f"{place}: the {what} holds half a character (a lone surrogate, such as a cut-off emoji "
                             "leaves). Expected Unicode text; take it out of the file.")
    return {"place": place, "id": None if name is None else str(name), "question": row["question"], "context": context,
            "answers": read_answers(row, context, place)}


def list_questions(entry, place):
    """List the questions of an entry of a file, (place, row, context): those of an article, or a row that is one.

    InputError where paragraphs or qas are not lists of objects.
    """
    if "paragraphs" not in entry:
        return [(place, entry, entry.get("context"))]
    found = []
    for n, paragraph in enumerate(list_objects(entry, "paragraphs", place), 1):
        where = f"{place}, paragraph {n}"
        found += [(f"{where}, question {m}", row, paragraph.get("context"))
                  for m, row in enumerate(list_objects(paragraph, "qas", where), 1)]
    return found


def list_objects(owner, name, place):
    """Take a list of objects out of one. InputError where something else stands there."""
    found = owner.get(name)
    if not isinstance(found, list) or not all(isinstance(part, dict) for part in found):
        raise InputError(f"{place}: expected a list of objects under {name!r}, found "
                         f"{json.dumps(found, ensure_ascii=False)[:40]}. SQuAD has data, paragraphs, qas.")
    return found


def read_entries(entries, stem, on_fault, counts=None):
    """Read questions out of (place, entry) as list_questions takes them: yields dicts as read_question makes them.

    A question without an id is named by stem and its number. on_fault is called with place and InputError of each
    question that is at fault. counts: how many were read under each stem, which several files can have; counted on.
    """
    counts = {} if counts is None else counts
    for place, entry in entries:
        try:
            questions = list_questions(entry, place)
        except InputError as fault:
            on_fault(place, fault)
            continue
        for where, row, context in questions:
            counts[stem] = counts.get(stem, 0) + 1
            try:
                question = read_question(row, context, where)
            except InputError as fault:
                on_fault(where, fault)
            else:
                yield question | {"id": f"{stem}-{counts[stem]}" if question["id"] is None else question["id"]}


def read_questions(path, on_fault, counts=None):
    """Read the questions of a file, with answers or without, as read_entries yields them.

    The file is JSON in SQuAD's layout (data, paragraphs, qas), or has rows of id, question, context and answers, as a
    list in .json or a row a line in .jsonl; all also as .gz.
    """
    return read_entries(read_json(path, on_fault), os.path.basename(path).split(".")[0], on_fault, counts)
