"""Windows, answers and scores of run_qa.py, piece by piece: by hand, and against plain computations."""

import itertools
import json
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import run_qa
from run_qa import (
    Squad2Scores,
    SquadScores,
    choose_spans,
    draw_scores,
    find_threshold,
    hide_padding,
    keep_best,
    list_inexact,
    make_collator,
    make_windows,
    normalize_answer,
    pick_shown,
    rank_answers,
    search_spans,
    span_loss,
    special_frame,
    take_part,
    token_f1,
    trim_offsets,
)

# ---------------------------------------------------------------- windows

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}


@pytest.fixture(scope="session")
def tokenizers(tiny_bert, prose):
    """A WordPiece, a Unigram (`▁`) and a byte-level BPE tokenizer; the last two split almost every word."""

    def finish(tokenizer, pair):
        ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=pair, special_tokens=ids
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.train_from_iterator(prose[:300], trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False))  # fmt: skip
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(prose[:300], trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    return {
        "wordpiece": AutoTokenizer.from_pretrained(tiny_bert),
        "unigram": finish(unigram, "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "byte-level": finish(bpe, "[CLS] $A [SEP] [SEP] $B:1 [SEP]:1"),  # as RoBERTa frames a pair
    }


TEXTS = [
    "Ada Lovelace met Charles Babbage in London, in 1833; she was 17.",
    "  Two blanks before,\tand a tab.   Three blanks, and\nlines\n\nbetween. ",
    "Ångström und Größe: naïve cafés, e\u0301a\u0308 x\u0327\u0301, ﬁne ﬀ ½ İstanbul.",
    "中文字符和English混合。日本語カタカナ 한국어 नमस्ते दुनिया ไทย",
    "Emoji 👩‍👩‍👧‍👦 and 🇩🇪 👍🏽 cost $5, \u00a0nbsp\u2003em\u3000wide and ▁underscore▁.",
]


def question_row(context, start, end, name="1", question="What is said here?"):
    return {"place": name, "id": name, "question": question, "context": context,
            "answers": [(context[start:end], start)]}  # fmt: skip


def word_rows(text):
    """A question for each run of up to four words, with white space around it now and then."""
    words, at = [], 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        words.append((start, at))
    chance, rows = random.Random(text), []
    for first, last in itertools.product(range(len(words)), range(len(words))):
        if first <= last < first + 4:
            start, end = words[first][0], words[last][1]
            if chance.random() < 0.3 and end < len(text):
                start, end = max(0, start - 1), end + 1  # a blank on each side
            rows.append(question_row(text, start, end, f"{first}-{last}"))
    return rows


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "byte-level"])
@pytest.mark.parametrize("text", TEXTS)
def test_every_answer_of_whole_words_is_given_back_by_its_tokens(tokenizers, kind, text):
    tokenizer, rows = tokenizers[kind], word_rows(text)
    windows = make_windows(rows, tokenizer, 150, 100)
    seen = set()
    for window in windows:
        row, (first, last) = rows[window["question"]], window["answer"]
        given = [" ".join(row["context"][start:end].split()) for start, end in zip(window["starts"], window["ends"])]  # noqa: B905
        if first:
            start, end = window["starts"][first - window["begin"]], window["ends"][last - window["begin"]]
            assert row["context"][start:end] == row["answers"][0][0].strip(), given
            seen.add(window["question"])
        else:
            assert (first, last) == (0, 0)
    assert seen == set(range(len(rows)))
    assert list_inexact(rows, windows) == []


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "byte-level"])
def test_windows_hold_the_whole_question_and_overlap_by_the_stride(tokenizers, prose, kind):
    tokenizer, context = tokenizers[kind], " ".join(prose[200:206])
    question = "Which statement is executed first?"
    windows = make_windows([question_row(context, 0, 3, question=question)], tokenizer, 40, 9)
    expected = tokenizer(question, context)["input_ids"]
    (before, between, after), begin = special_frame(tokenizer), windows[0]["begin"]
    assert expected[:begin] == [*before, *tokenizer(question, add_special_tokens=False)["input_ids"], *between]
    tokens, joined = expected[begin : len(expected) - len(after)], []
    room = 40 - begin - len(after)
    for n, window in enumerate(windows):
        ids = window["input_ids"]
        assert ids[:begin] == expected[:begin] and ids[-len(after) :] == after
        part = ids[begin : len(ids) - len(after)]
        assert part == tokens[n * (room - 9) : n * (room - 9) + room]
        assert len(ids) == 40 or n == len(windows) - 1
        assert len(window["starts"]) == len(window["ends"]) == len(part)
        joined += part if not n else part[9:]
    assert joined == tokens  # nothing is lost, and the last window has something of its own
    stock = tokenizer(question, context, truncation="only_second", max_length=40, stride=9,
                      return_overflowing_tokens=True)["input_ids"]  # fmt: skip
    tokenizer.backend_tokenizer.no_truncation()
    assert [window["input_ids"] for window in windows] == stock


def test_a_context_that_just_fits_has_one_window(tokenizers):
    tokenizer, context = tokenizers["wordpiece"], TEXTS[0]
    size = len(tokenizer("Who?", context)["input_ids"])
    row = question_row(context, 0, 3, question="Who?")
    assert [len(make_windows([row], tokenizer, size - cut, 4)) for cut in (0, 1)] == [1, 2]
    tokens = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    # As much as two windows would share, and more; but there is only one.
    assert [len(make_windows([row], tokenizer, size, tokens + more)) for more in (-1, 0, 5)] == [1, 1, 1]


def test_unknown_answers_no_answers_and_answers_elsewhere_are_told_apart(tokenizers):
    context = TEXTS[0]
    rows = [question_row(context, 0, 3), question_row(context, 0, 3) | {"answers": []},
            question_row(context, 0, 3) | {"answers": None}]  # fmt: skip
    windows = make_windows(rows, tokenizers["wordpiece"], 24, 4)
    found = {n: [w["answer"] for w in windows if w["question"] == n] for n in range(3)}
    assert found[0][0][0] > 0 and all(answer == [0, 0] for answer in found[0][1:]) and len(found[0]) > 1
    assert all(answer == [0, 0] for answer in found[1])
    assert all(answer == [-100, -100] for answer in found[2])


def test_answers_inside_a_token_and_answers_that_fit_in_no_window_are_listed(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    context = "the value of the statement is the object of the class and of the module"
    rows = [question_row(context, 0, 9, "good"), question_row(context, 1, 9, "inside"),
            question_row(context, 0, len(context), "long")]  # fmt: skip
    found = list_inexact(rows, make_windows(rows, tokenizer, 24, 2))
    by_id = {row["id"]: row for row in found}
    assert by_id.keys() == {"inside", "long"}
    assert (by_id["inside"]["answer"], by_id["inside"]["tokens_give"]) == ("he value", "the value")
    assert by_id["inside"]["whole_in_a_window"] and not by_id["long"]["whole_in_a_window"]
    assert by_id["long"]["tokens_give"] == context


def test_an_answer_that_the_tokenizer_drops_is_listed(tokenizers):
    row = question_row("the \u0007 value", 4, 5)
    windows = make_windows([row], tokenizers["wordpiece"], 30, 2)
    assert windows[0]["answer"] == [0, 0]
    assert list_inexact([row], windows)[0]["tokens_give"] == ""


def test_offsets_lose_white_space_and_nothing_else():
    starts, ends = trim_offsets(" ab  c", [(0, 3), (3, 4), (4, 6), (5, 6)])
    assert starts.tolist() == [1, 4, 5, 5]
    assert ends.tolist() == [3, 4, 6, 6]  # the second is white space alone: empty


def test_the_cache_tells_contexts_answers_and_settings_apart(tokenizers):
    tokenizer, row = tokenizers["wordpiece"], question_row(TEXTS[0], 0, 3)
    first = make_windows([row], tokenizer, 30, 4)
    for other, settings in ((row | {"context": TEXTS[0] + " x"}, (30, 4)), (row | {"answers": []}, (30, 4)),
                            (row, (31, 4)), (row, (30, 5)), (row | {"question": "Who is it?"}, (30, 4))):  # fmt: skip
        assert make_windows([other], tokenizer, *settings).to_dict() != first.to_dict()
    assert make_windows([row], tokenizer, 30, 4).to_dict() == first.to_dict()


def test_a_damaged_cache_is_made_anew(tokenizers):
    rows = [question_row(TEXTS[0], 0, 3, question="Who and when?")]
    windows = make_windows(rows, tokenizers["wordpiece"], 30, 5)
    path, expected = Path(windows.cache_files[0]["filename"]), windows[:]
    alone = make_windows(rows, tokenizers["wordpiece"], 30, 5, in_memory=True)
    assert not alone.cache_files and alone[:] == expected
    for size in (0, 300, 1500):
        path.write_bytes(path.read_bytes()[:size])
        assert make_windows(rows, tokenizers["wordpiece"], 30, 5)[:] == expected



def test_batches_are_padded_to_their_longest_and_an_empty_one_predicts_nothing(tokenizers):
    rows = [question_row(TEXTS[0], 0, 3), question_row("Ada was 17.", 0, 3)]
    tokenizer = tokenizers["wordpiece"]
    windows = make_windows(rows, tokenizer, 64, 8)
    collator = make_collator(windows, tokenizer, type("Config", (), {"type_vocab_size": 2}))
    batch, stock = collator([0, 1]), tokenizer(*zip(*[(r["question"], r["context"]) for r in rows], strict=True),
                                               padding=True, return_tensors="pt")  # fmt: skip
    assert all(torch.equal(batch[name], stock[name]) for name in stock)
    assert batch["labels"].tolist() == windows["answer"]
    nothing = collator([])
    assert nothing["labels"].tolist() == [[-100, -100]] and nothing["input_ids"].shape == (1, 3)
    assert "token_type_ids" not in make_collator(windows, tokenizer, type("Config", (), {"type_vocab_size": 1}))([0])


# ---------------------------------------------------------------- loss


def test_the_loss_is_the_mean_over_the_windows_of_the_update_however_they_are_split_and_padded():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)  # start and end, windows, tokens
    lengths, labels = [9, 4, 7, 5, 6], torch.tensor([[1, 3], [0, 0], [5, 6], [2, 4], [5, 5]])
    expected = torch.stack([F.cross_entropy(logits[part, n, :length], labels[n, part]) for part in (0, 1)
                            for n, length in enumerate(lengths)]).mean()  # fmt: skip
    (gradient,) = torch.autograd.grad(expected, logits)
    for pieces in ([[0, 1, 2, 3, 4]], [[0, 1], [2, 3], [4]], [[1], [], [0, 2, 3, 4]]):
        total = 0
        for piece in pieces:
            if piece:
                width = max(lengths[n] for n in piece)
                mask = torch.tensor([[int(at < lengths[n]) for at in range(width)] for n in piece])
                outputs = {"start_logits": logits[0, piece, :width], "end_logits": logits[1, piece, :width]}
                rows = labels[piece]
            else:
                mask, rows = torch.ones(1, 3), torch.tensor([[-100, -100]])
                outputs = {"start_logits": logits[0, :1, :3], "end_logits": logits[1, :1, :3]}
            outputs = hide_padding(None, None, {"attention_mask": mask}, outputs)
            total = total + span_loss(outputs, rows, torch.tensor(10))
        assert total.item() == pytest.approx(expected.item(), abs=1e-6)
        torch.testing.assert_close(torch.autograd.grad(total, logits)[0], gradient, rtol=0, atol=1e-6)


def test_label_smoothing_spreads_over_tokens_and_not_over_padding():
    logits = torch.tensor([[1.0, 2.0, 0.5, -torch.inf]])
    outputs = {"start_logits": logits, "end_logits": logits}
    loss = span_loss(outputs, torch.tensor([[1, 2]]), torch.tensor(2), smoothing=0.1)
    expected = F.cross_entropy(logits[:, :3].expand(2, 3), torch.tensor([1, 2]), label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_update_without_any_window_has_no_loss():
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = span_loss({"start_logits": logits, "end_logits": logits}, torch.tensor([[-100, -100]]), torch.tensor(0))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


# ---------------------------------------------------------------- selection


def random_windows(rng, ties):
    """Windows of three questions, as (start logits, end logits, first characters, ends), and their questions."""
    windows, questions = [], []
    for question in range(3):
        for n in range(int(rng.integers(1, 4))):
            tokens = int(rng.integers(0, 14))
            logits = rng.integers(-2, 3, (2, tokens)) if ties else rng.normal(size=(2, tokens))
            starts = 3 * n + 2 * np.arange(tokens) // 2 * 2  # windows overlap, and so do some tokens
            ends = starts + (rng.random(tokens) > 0.2)  # some are empty
            windows.append((*logits.astype(np.float32), starts, ends))
            questions.append(question)
    return windows, np.array(questions)


def top_of(windows, count):
    """What predict_spans keeps of windows, with a token before the context."""
    top = {name: [] for name in ("start_logit", "start", "start_char", "end_logit", "end", "end_char")}
    for start_logits, end_logits, starts, ends in windows:
        for name, logits, characters in (("start", start_logits, starts), ("end", end_logits, ends)):
            padded = torch.tensor([[99.0, *logits.tolist(), 99.0]])  # [CLS] and padding, which are not allowed
            allowed = torch.tensor([[False, *(starts < ends).tolist(), False]])
            values, places = keep_best(padded, allowed, count)
            top[f"{name}_logit"].append(values[0])
            top[name].append(places[0])
            characters = np.array([*characters, 0])
            top[f"{name}_char"].append(characters[np.clip(places[0] - 1, 0, len(characters) - 1)])
    return {name: np.array(rows) for name, rows in top.items()}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n_best", "longest"), [(1, 30), (3, 2), (5, 4), (20, 30)])
def test_answers_chosen_at_once_are_those_of_the_plain_search(ties, n_best, longest):
    for seed in range(60):
        windows, questions = random_windows(np.random.default_rng((seed, n_best)), ties)
        found = choose_spans(top_of(windows, n_best), questions, n_best, longest)
        for question in range(3):
            mine = [list(zip(*map(np.ndarray.tolist, window), strict=True))
                    for window, owner in zip(windows, questions, strict=True) if owner == question]  # fmt: skip
            expected = search_spans(mine, n_best, longest)
            rows = found["question"] == question
            for name in ("start", "end", "start_logit", "end_logit", "score"):
                assert found[name][rows].tolist() == [span[name] for span in expected]


def test_the_plain_search_finds_the_best_of_all_pairs():
    rng = np.random.default_rng(1)
    for _ in range(50):
        starts, ends = rng.normal(size=(2, 8)).tolist()
        tokens = [(starts[n], ends[n], 10 * n, 10 * n + 5) for n in range(8)]
        spans = search_spans([tokens], 8, 3)
        pairs = {(10 * a, 10 * b + 5): starts[a] + ends[b] for a in range(8) for b in range(a, min(8, a + 3))}
        expected = sorted(pairs.items(), key=lambda pair: -pair[1])[:8]
        assert [((span["start"], span["end"]), span["score"]) for span in spans] == expected


def test_windows_without_any_token_have_no_span():
    empty = (np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, int), np.zeros(0, int))
    found = choose_spans(top_of([empty], 4), np.array([0]), 4, 30)
    assert len(found["question"]) == 0 and search_spans([[]], 4, 30) == []
    assert rank_answers("text", [], None) == [
        {"text": "", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0, "start": 0, "end": 0}
    ]


def test_no_answer_is_ranked_among_the_answers_and_probabilities_add_up():
    spans = [{"start": 0, "end": 3, "start_logit": 2.0, "end_logit": 1.0, "score": 3.0, "window": 0},
             {"start": 4, "end": 7, "start_logit": 0.0, "end_logit": 1.0, "score": 1.0, "window": 0}]  # fmt: skip
    ranked = rank_answers("Ada met Babbage", spans, (1.0, 1.0))
    assert [entry["text"] for entry in ranked] == ["Ada", "", "met"]
    weights = [math.exp(value) for value in (3, 2, 1)]
    assert [entry["probability"] for entry in ranked] == pytest.approx([w / sum(weights) for w in weights])
    assert [entry["text"] for entry in rank_answers("Ada met Babbage", spans, None)] == ["Ada", "met"]


# ---------------------------------------------------------------- official rules


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Answer", "answer"),
        ("a an the", ""),
        ("An apple, a day!", "apple day"),
        ("theatre another than", "theatre another than"),
        ("U.S.A.", "usa"),
        ("$5-6 (six)", "56 six"),
        ("  white\t space \n", "white space"),
        ("L'an deux", "lan deux"),  # punctuation goes before articles
        ("the-the", "thethe"),
        ("“Quoted” – dash", "“quoted” – dash"),  # only ASCII punctuation goes
        ("", ""),
    ],
)  # fmt: skip
def test_answers_are_normalized_as_by_the_official_scripts(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "first", "second"),
    [
        ("the cat sat", "cat sat", 1, 1),
        ("cat", "cat sat", 2 / 3, 2 / 3),
        ("cat cat", "cat dog", 0.5, 0.5),  # a word counts as often as it stands in both
        ("dog", "cat", 0, 0),
        ("", "cat", 0, 0),
        ("", "", 0, 1),  # SQuAD 1.1 sees no word in common, SQuAD 2.0 agreement
        ("the", "a", 0, 1),
    ],
)
def test_f1_by_hand(prediction, reference, first, second):
    assert token_f1(prediction, reference, False) == pytest.approx(first)
    assert token_f1(prediction, reference, True) == pytest.approx(second)


def test_scores_of_squad_1_are_the_best_over_the_references():
    scores = SquadScores(keep_in_memory=True).compute(
        predictions=["The cat", "dog", "red bird"],
        references=[["a dog", "cat!"], ["cat"], ["bird", "a red, red bird"]],
    )
    # f1: 1, 0, and the better of 2/3 and 2 * 2 / (2 + 3)
    assert scores == {"exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * (1 + 0 + 0.8) / 3)}


def test_scores_of_squad_2_by_hand():
    predictions = [("cat", -5.0), ("dog", 2.0), ("red bird", -1.0), ("x", 3.0), ("y", -2.0)]
    references = [["the cat"], ["dog"], ["bird"], [], []]
    scores = Squad2Scores(keep_in_memory=True).compute(
        predictions=[{"text": text, "no_answer": odds} for text, odds in predictions],
        references=references, threshold=0.0,
    )  # fmt: skip
    # At 0 the second and the fourth get no answer: 0 and 1. The last gets one, where there is none: 0.
    assert scores["exact"] == pytest.approx(100 * (1 + 0 + 0 + 1 + 0) / 5)
    assert scores["f1"] == pytest.approx(100 * (1 + 0 + 2 / 3 + 1 + 0) / 5)
    assert (scores["total"], scores["HasAns_total"], scores["NoAns_total"]) == (5, 3, 2)
    assert scores["HasAns_exact"] == pytest.approx(100 / 3) and scores["HasAns_f1"] == pytest.approx(100 * 5 / 9)
    assert scores["NoAns_exact"] == scores["NoAns_f1"] == 50
    # From the lowest odds on, f1: cat +1, y -1, red bird +2/3, dog +1, x -1: best up to 2, with y and dog answered.
    assert scores["best_f1"] == pytest.approx(100 * (1 + 1 + 2 / 3 + 1 + 0) / 5) and scores["best_f1_thresh"] == 2
    assert scores["best_exact"] == pytest.approx(100 * 3 / 5) and scores["best_exact_thresh"] == -5


def test_parts_without_questions_have_no_scores_and_references_of_articles_alone_are_empty():
    compute = Squad2Scores(keep_in_memory=True).compute
    scores = compute(predictions=[{"text": "", "no_answer": -1.0}], references=[["the"]])
    assert "NoAns_f1" not in scores and scores["HasAns_f1"] == scores["exact"] == 100
    assert "HasAns_f1" not in compute(predictions=[{"text": "x", "no_answer": 1.0}], references=[[]])


def test_the_threshold_is_that_of_a_brute_force_search():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(1, 9))
        has_answer = rng.random(n) < 0.5
        scores = np.where(has_answer, rng.choice([0, 0.5, 1], n), 0.0)
        odds = rng.integers(-3, 4, n).astype(float)  # with ties
        best, threshold = find_threshold(scores, odds, has_answer)

        def mean(threshold, scores=scores, odds=odds, has_answer=has_answer):
            return 100 * np.where(odds > threshold, ~has_answer, scores).mean()

        assert best == pytest.approx(max(mean(value) for value in [-99, *odds]))
        assert mean(threshold) == pytest.approx(best)


def official_threshold(predictions, scores, odds, has_answer):
    """The search of the official evaluation script of SQuAD 2.0, in its own words."""
    current = best = sum(1 for known in has_answer if not known)
    threshold = 0.0
    for n in sorted(range(len(odds)), key=lambda n: odds[n]):
        current += scores[n] if has_answer[n] else -1 if predictions[n] else 0
        if current > best:
            best, threshold = current, odds[n]
    return 100.0 * best / len(scores), threshold


def test_the_threshold_is_that_of_the_official_script_on_probabilities():
    rng = np.random.default_rng(1)
    for _ in range(200):
        n = int(rng.integers(1, 12))
        has_answer, odds = rng.random(n) < 0.5, rng.random(n)
        scores = np.where(has_answer, rng.random(n), 0.0)
        expected = official_threshold(["x"] * n, scores, odds, has_answer)
        assert find_threshold(scores, odds, has_answer) == pytest.approx(expected)


# ---------------------------------------------------------------- the rest


def test_whole_paragraphs_are_held_out():
    rows = [{"context": f"paragraph {n // 5}", "id": n} for n in range(100)]
    drawn, rest = (take_part(rows, "data", which, 10) for which in ("drawn", "rest"))
    assert len(drawn) == 10 and len(rest) == 90
    assert not {row["context"] for row in drawn} & {row["context"] for row in rest}
    assert sorted(row["id"] for row in drawn + rest) == list(range(100))
    alone = [{"context": "one", "id": n} for n in range(20)]
    assert len(take_part(alone, "data", "drawn", 10)) == 2
    with pytest.raises(run_qa.InputError, match="data: 90% of its 3 paragraphs, .* leave none to train on"):
        take_part(rows[:15], "data", "rest", 90)


def test_a_picture_of_300_tokens_has_rows_that_can_be_read(tmp_path):
    tokens = [(f"tok{n}$" if n % 7 else "$x^$", math.sin(n), math.cos(n)) for n in range(300)]
    picture = draw_scores(tmp_path / "new" / "scores.png", tokens, "$5 or $6? – $x_")
    assert (tmp_path / "new" / "scores.png").read_bytes().startswith(b"\x89PNG")
    height, width, colors = picture.shape
    assert colors == 3 and height > 1200 and width > 1000  # 8 rows of 40
    draw_scores(tmp_path / "none.png", [], "nothing")


def test_a_token_as_long_as_a_link_leaves_room_for_the_bars(tmp_path):
    tokens = [("h" * 200, 0.0, 1.0), ("x", 1.0, 0.0), ("y", 0.5, 0.5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where labels leave none
        drawn = draw_scores(tmp_path / "scores.png", tokens, "title")
        assert drawn.shape == draw_scores(tmp_path / "short.png", [("a", *pair) for _, *pair in tokens], "title").shape


def test_each_text_is_shown_once_and_the_answer_first():
    ranked = [{"text": text, "probability": share} for text, share in (
        ("Ada", 0.4), ("", 0.3), ("Ada", 0.1), ("met", 0.1), ("Ada met", 0.06), ("Babbage", 0.04))]
    assert [entry["text"] for entry in pick_shown(ranked, "Ada")] == ["Ada", "", "met", "Ada met"]
    assert [entry["text"] for entry in pick_shown(ranked, "")] == ["", "Ada", "met", "Ada met"]
    assert pick_shown(ranked, "Ada")[0]["probability"] == 0.4


def test_predictions_can_be_read_back(tmp_path):
    class Fake:
        rows, texts, odds = [{"id": "ä"}, {"id": "2"}], ["Ångström", ""], np.array([-1.5, 2.0])
        version_2 = True

        def ranked(self, number):
            return [{"text": self.texts[number], "probability": 1.0}]

    run_qa.write_predictions(tmp_path, Fake())
    read = {name: json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("predictions", "nbest_predictions", "null_odds")}  # fmt: skip
    assert read["predictions"] == {"ä": "Ångström", "2": ""} and read["null_odds"] == {"ä": -1.5, "2": 2.0}
    assert read["nbest_predictions"]["ä"][0]["text"] == "Ångström"
    Fake.version_2 = False
    run_qa.write_predictions(tmp_path, Fake())
    assert not (tmp_path / "null_odds.json").exists()
