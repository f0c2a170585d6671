"""run_qa.py as its users meet it: the command line, what it prints, and the files that it leaves behind."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import ALIKE, QA_SIZES, Run, contents, read_log, read_results, run_script
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from run_qa import make_windows, normalize_answer, read_questions, search_spans, token_f1
from utils.similar_lengths import SimilarLengthSampler

NO_DROPOUT = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
CURVE = {
    "num_train_epochs": 2,
    "learning_rate": 2e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    **QA_SIZES,
    **NO_DROPOUT,
}


@pytest.fixture
def qa(qa_files, tmp_path):
    """run_qa.py on the tiny model, as a process of its own: qa(flag=value, …) gives a helpers.Done."""
    defaults = {**ALIKE, "model": qa_files["model"], "output_dir": tmp_path / "out", **QA_SIZES}
    return partial(run_script, "run_qa.py", defaults, folder=tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, qa_files):
    """Output folder of a plain run in batches of 8, dropout off. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {**ALIKE, **qa_files, "per_device_train_batch_size": 8, **CURVE, "output_dir": folder / "out"}
    settings |= {"save_strategy": "epoch", "negative": None}
    Run("run_qa.py", settings, folder).wait().checked()
    return folder / "out"


@pytest.fixture(scope="session")
def negative(tmp_path_factory, qa_files):
    """Output folder of a run on questions some of which have no answer, and what it printed."""
    folder = tmp_path_factory.mktemp("negative")
    settings = {**ALIKE, **CURVE, "model": qa_files["model"], "train_file": qa_files["negative"],
                "validation_file": qa_files["negative"], "num_train_epochs": 1}  # fmt: skip
    done = Run("run_qa.py", settings | {"output_dir": folder / "out"}, folder).wait().checked()
    return folder / "out", done.out


def assert_one_message(done, fragments):
    assert done.status == 2, done.out + done.err
    assert "Traceback" not in done.err
    assert done.err.count("error:") == 1, done.err
    message = done.err.rstrip().splitlines()[-1]
    for fragment in fragments:
        assert fragment in message, message


# ---------------------------------------------------------------- scores


@torch.no_grad()
def plain_answers(folder, path):
    """Answers and scores by transformers alone, a window at a time: (texts, odds of no answer, dict of scores)."""
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts, odds, nats, exact, f1, count = {}, {}, 0.0, 0.0, 0.0, 0
    rows = list(read_questions(str(path), None))
    for row in rows:
        encoded = tokenizer(row["question"], row["context"], truncation="only_second", max_length=48, stride=8,
                            return_overflowing_tokens=True, return_offsets_mapping=True)  # fmt: skip
        windows, null = [], []
        for n, ids in enumerate(encoded["input_ids"]):
            outputs = model(torch.tensor([ids]), token_type_ids=torch.tensor([encoded["token_type_ids"][n]]))
            starts, ends = outputs.start_logits[0], outputs.end_logits[0]
            null.append((starts[0] + ends[0]).double().item())
            parts, offsets = encoded.sequence_ids(n), encoded["offset_mapping"][n]
            inside = [at for at, part in enumerate(parts) if part == 1]
            windows.append([(starts[at].item(), ends[at].item(), *offsets[at]) for at in inside])
            text, start = (row["answers"] or [("", -1)])[0]
            first = [at for at in inside if offsets[at][0] <= start < offsets[at][1]]
            last = [at for at in inside if offsets[at][0] < start + len(text) <= offsets[at][1]]
            target = (first[0], last[0]) if text and first and last else (0, 0)
            nats += sum(F.cross_entropy(logits, torch.tensor(at)).item()
                        for logits, at in zip((starts, ends), target, strict=True))  # fmt: skip
            count += 2
        best = search_spans(windows, 20, 30)[0]
        texts[row["id"]] = row["context"][best["start"] : best["end"]]
        odds[row["id"]] = min(null) - best["score"]
        references = [text for text, _ in row["answers"]] or [""]
        exact += max(normalize_answer(texts[row["id"]]) == normalize_answer(text) for text in references)
        f1 += max(token_f1(texts[row["id"]], text, False) for text in references)
    scores = {"loss": nats / count, "exact_match": 100 * exact / len(rows), "f1": 100 * f1 / len(rows)}
    return texts, odds, {f"eval_{name}": value for name, value in scores.items()}


@pytest.fixture(scope="session")
def expected_answers(qa_files):
    return plain_answers(qa_files["model"], qa_files["validation_file"])


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (7, 1), (64, 1), (7, 2)])
def test_scores_are_those_of_a_plain_computation_for_any_batch_size_and_process_count(
    qa, qa_files, expected_answers, tmp_path, batch_size, processes
):
    done = qa(validation_file=qa_files["validation_file"], processes=processes, per_device_eval_batch_size=batch_size)
    assert done.checked().out.count("Running on") == 1
    texts, _, scores = expected_answers
    results = read_results(tmp_path / "out")
    assert results == {name: pytest.approx(value, rel=0, abs=1e-6) for name, value in scores.items()}
    assert 0 < results["eval_f1"] < 100
    assert json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8")) == texts


def test_nbest_predictions_begin_with_the_answers(trained):
    texts, ranked = (json.loads((trained / f"{name}.json").read_text(encoding="utf-8"))
                     for name in ("predictions", "nbest_predictions"))  # fmt: skip
    assert texts.keys() == ranked.keys()
    for name, entries in ranked.items():
        assert entries[0]["text"] == texts[name] and 1 < len(entries) <= 20
        assert sum(entry["probability"] for entry in entries) == pytest.approx(1)
        assert {"text", "probability", "start_logit", "end_logit"} <= entries[0].keys()
        spans = [(entry["start"], entry["end"]) for entry in entries]
        assert len({*spans}) == len(spans)
    assert not (trained / "null_odds.json").exists()


def test_the_scores_before_and_after_are_those_of_the_two_models(trained, qa_files, expected_answers):
    results = read_results(trained)
    _, _, after = plain_answers(trained, qa_files["validation_file"])
    for name, value in expected_answers[2].items():
        assert results[f"initial_{name}"] == pytest.approx(value, abs=1e-4)
        assert results[name] == pytest.approx(after[name], abs=1e-4)
    assert results["eval_loss"] != results["initial_eval_loss"]


# ---------------------------------------------------------------- curves


def losses_of(output_dir):
    return [entry["loss"] for entry in read_log(output_dir, "loss")]


def plain_curve(folder, path, batch_size, epochs, learning_rate):
    """Train by torch alone, a window at a time, without dropout: losses of all updates."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForQuestionAnswering.from_pretrained(folder, **off).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    windows = make_windows(list(read_questions(str(path), None)), tokenizer, *QA_SIZES.values())
    lengths = np.array([len(ids) for ids in windows["input_ids"]])
    sampler = SimilarLengthSampler(lengths, batch_size, 1, 1, 0, 42)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    updates, losses = sampler.updates_until(epochs), []
    for epoch in range(epochs):
        sampler.epoch = epoch
        for batch in sampler:
            nats = []
            for window in (windows[n] for n in batch):
                types = [[int(at >= window["begin"]) for at in range(len(window["input_ids"]))]]
                outputs = model(torch.tensor([window["input_ids"]]), token_type_ids=torch.tensor(types))
                for logits, at in zip((outputs.start_logits, outputs.end_logits), window["answer"], strict=True):
                    nats.append(F.cross_entropy(logits[0], torch.tensor(at)))
            loss = torch.stack(nats).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - len(losses) / updates)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def test_the_loss_curve_is_that_of_a_plain_loop(trained, qa_files):
    losses = plain_curve(qa_files["model"], qa_files["train_file"], 8, 2, CURVE["learning_rate"])
    assert np.ptp(losses) > 0.1  # so that equal curves say something
    np.testing.assert_allclose(losses_of(trained), losses, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("processes", "batch_size", "accumulation"), [(1, 4, 2), (2, 4, 1), (2, 1, 4)])
def test_the_curve_is_the_same_for_any_split_of_the_global_batch(
    qa, trained, qa_files, tmp_path, processes, batch_size, accumulation
):
    # The last batch of an epoch is a single window: most processes and accumulated batches get nothing.
    files = {name: qa_files[name] for name in ("train_file", "validation_file")}
    split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    qa(processes=processes, **files, **split, **(CURVE | {"save_strategy": "epoch"})).checked()  # the best is kept
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained), rtol=0, atol=1e-4)
    for now, then in zip(read_log(tmp_path / "out", "eval_loss"), read_log(trained, "eval_loss"), strict=True):
        assert now["eval_loss"] == pytest.approx(then["eval_loss"], abs=1e-4)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", trained))
    for name in weights:
        # What moves all scores alike changes no probability: these gradients are noise, which Adam makes large.
        if not name.endswith(("key.bias", "layer.1.output.LayerNorm.bias", "qa_outputs.bias")):
            torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=5e-4)


# ---------------------------------------------------------------- no answer


def test_questions_without_an_answer_are_recognized_said_and_scored(negative, qa_files):
    output_dir, out = negative
    assert len(re.findall("Careful: .* have no answer, .*SQuAD 2.0", out)) == 1
    results = read_results(output_dir)
    names = {"exact", "f1", "total", *(f"{part}_{name}" for part in ("HasAns", "NoAns")
                                       for name in ("exact", "f1", "total"))}  # fmt: skip
    names |= {"loss", "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"}
    assert {name.removeprefix("eval_") for name in results if name.startswith("eval_")} == names
    assert results["eval_best_f1"] >= results["eval_f1"]
    assert results["eval_total"] == 24 == results["eval_HasAns_total"] + results["eval_NoAns_total"]
    config = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))
    assert config["no_answer_threshold"] == results["eval_best_f1_thresh"]
    texts, odds, _ = plain_answers(output_dir, qa_files["negative"])
    found = json.loads((output_dir / "null_odds.json").read_text(encoding="utf-8"))
    assert found == pytest.approx(odds, abs=1e-4)
    texts = {name: "" if odds[name] > 0 else text for name, text in texts.items()}
    assert json.loads((output_dir / "predictions.json").read_text(encoding="utf-8")) == texts


def test_the_threshold_kept_with_the_model_is_applied_to_what_is_asked(qa, negative, qa_files, tmp_path):
    threshold = AutoConfig.from_pretrained(negative[0]).no_answer_threshold
    texts, odds, _ = plain_answers(negative[0], qa_files["negative"])
    qa(model=negative[0], test_file=qa_files["negative"]).checked()
    found = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert found == {name: "" if odds[name] > threshold + 1e-4 else text for name, text in texts.items()}
    assert read_results(tmp_path / "out")["predict_f1"] == pytest.approx(read_results(negative[0])["eval_best_f1"])

    for given, answered in ((-1e9, False), (1e9, True)):
        flags = {"null_score_diff_threshold": given, "output_dir": tmp_path / str(given)}
        out = qa(model=negative[0], question="Who met Ada?", context="Ada met Babbage.", **flags).checked().out
        assert ("Answer      " in out and "(none)" not in out.split("Answer  ")[1].splitlines()[0]) == answered
        assert "No answer   scores" in out


# ---------------------------------------------------------------- asking and predicting


def test_a_question_is_answered_as_by_a_plain_search_and_drawn(qa, trained, prose, tmp_path):
    context, question = " ".join(prose[300:304]), "What is it?"
    squad = {"data": [{"id": "1", "question": question, "context": context, "answers": []}]}
    (tmp_path / "asked.json").write_text(json.dumps(squad), encoding="utf-8")
    (tmp_path / "context.txt").write_text(context, encoding="utf-8")
    text = plain_answers(trained, tmp_path / "asked.json")[0]["1"]
    done = qa(model=trained, question=question, context_file="context.txt", plot_scores="scores.png").checked()
    shown = done.out.split(question)[1]
    assert re.search(r"Answer +0\.\d+ +(.*?)   characters", shown)[1] == " ".join(text.split())
    assert shown.count("Next best") == 3 and "No answer" not in shown and "random" not in shown
    assert (tmp_path / "scores.png").stat().st_size > 5000
    assert not (tmp_path / "out" / "all_results.json").exists()


def test_asking_leaves_what_a_training_run_left(qa, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "out" / "inexact_answers.jsonl").write_text("{}\n", encoding="utf-8")
    before = contents(tmp_path / "out")
    cache = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    prepared = {*cache.iterdir()}
    assert prepared  # those of the training run
    qa(model=tmp_path / "out", question="Who in the world?", context="Ada met Babbage.").checked()
    assert contents(tmp_path / "out") == before and {*cache.iterdir()} == prepared


def test_the_held_out_part_of_a_training_file_can_be_evaluated_on_alone(qa, trained, qa_files, tmp_path):
    done = qa(model=trained, train_file=qa_files["train_file"], do_eval=True).checked()
    assert re.search("Validation +2 questions on 1 paragraphs", done.out) and "Train " not in done.out
    assert read_results(tmp_path / "out").keys() == {"eval_loss", "eval_exact_match", "eval_f1"}
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_context_of_which_the_tokenizer_makes_nothing_has_no_answer(qa, trained, tmp_path):
    rows = [{"id": "a", "question": "Who?", "context": "\u200b"}, GOOD | {"id": "b"}]
    (tmp_path / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    done = qa(model=trained, test_file="test.json", per_device_eval_batch_size=1).checked()
    assert "1 of 2 test questions have no answers" in done.out
    assert not (tmp_path / "out" / "all_results.json").exists()  # there is nothing to score
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert predictions["a"] == "" and predictions["b"]


def test_a_classifier_with_as_many_labels_has_no_head_for_answers(qa, answering_bert, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(answering_bert)
    tokenizer.save_pretrained(tmp_path / "classifier")
    config = AutoConfig.for_model("modernbert", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16,
                                  num_hidden_layers=1, num_attention_heads=2, num_labels=2, pad_token_id=0)  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "classifier")
    out = qa(model="classifier", question="Who?", context="Ada met Babbage.").checked().out
    assert "Careful: these parts start at random" in out and "comes trained" not in out


def test_questions_of_a_file_are_answered_into_a_file(qa, trained, tmp_path):
    rows = [{"question": "Who?", "context": "Ada met Babbage."},
            {"id": 5, "question": "Where?", "context": "In London, not in Paris."}]  # fmt: skip
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    qa(model=trained, questions_file="asked.jsonl", processes=2).checked()
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()]
    assert [answer["id"] for answer in answers] == ["asked-1", "5"]
    for answer, row in zip(answers, rows, strict=True):
        assert answer["answer"] == row["context"][answer["start"] : answer["end"]] != ""
        assert answer["question"] == row["question"] and 0 < answer["score"] <= 1 and len(answer["next_best"]) == 3


def test_a_model_whose_head_is_random_is_said_to_be_so(qa, tiny_bert):
    out = qa(model=tiny_bert, question="Who?", context="Ada met Babbage.").checked().out
    assert "Careful: these parts start at random" in out and "qa_outputs" in out


def test_a_test_file_without_answers_is_answered_and_not_scored(qa, trained, qa_files, tmp_path):
    squad = json.loads(Path(qa_files["validation_file"]).read_text(encoding="utf-8"))
    qas = [question for article in squad["data"] for question in article["paragraphs"][0]["qas"]]
    for question in qas:
        question["answers"] = []
    (tmp_path / "test.json").write_text(json.dumps(squad), encoding="utf-8")
    done = qa(model=trained, test_file="test.json").checked()
    assert "SQuAD 2.0" not in done.out and "answered, and not scored" in done.out
    assert not (tmp_path / "out" / "all_results.json").exists()
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert predictions.keys() == {question["id"] for question in qas} and all(predictions.values())


def test_a_data_set_in_a_folder_is_trained_on(qa, qa_files, tmp_path):
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        lines = []
        for row in read_questions(str(qa_files[f"{split}_file"]), None):
            texts, starts = map(list, zip(*row["answers"], strict=True))
            line = {"id": row["id"], "title": "", "context": row["context"], "question": row["question"]}
            lines.append(json.dumps(line | {"answers": {"text": texts, "answer_start": starts}}))
        (tmp_path / "set" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = qa(dataset_name="set", max_steps=1, max_train_samples=6, max_eval_samples=5).checked()
    assert [int(n) for n in re.findall(r"(?:Train|Validation) +(\d+) questions", done.out)] == [6, 5]


# ---------------------------------------------------------------- bad input

CONTEXT = "Ada met Babbage in London."
GOOD = {"id": "q1", "question": "Where?", "context": CONTEXT, "answers": [{"text": "London", "answer_start": 19}]}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, prose):
    folder = tmp_path_factory.mktemp("inputs")
    rows = {
        "good": [GOOD, GOOD | {"id": "q2", "context": CONTEXT + " So."}],
        "elsewhere": [GOOD, GOOD | {"id": "q2", "answers": [{"text": "London", "answer_start": 8}]}],
        "past": [GOOD | {"answers": [{"text": "London", "answer_start": 77}]}],
        "no_context": [{name: value for name, value in GOOD.items() if name != "context"}],
        "empty_context": [GOOD | {"context": " ", "answers": []}],
        "twice": [GOOD, GOOD | {"id": "q2"}, GOOD],
        "long": [GOOD, GOOD | {"id": "q2", "question": " ".join(prose[100:103])}],
        "wide": [GOOD, GOOD | {"id": "q2", "question": "Where did they meet?", "context": " ".join(prose[100:103]),
                               "answers": []}],
        "unlabelled": [GOOD, {name: value for name, value in GOOD.items() if name != "answers"} | {"id": "q2"}],
        "nothing": [],
    }  # fmt: skip
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps({"data": content}, indent=1), encoding="utf-8")
    (folder / "cut.json").write_text(json.dumps({"data": rows["good"]}, indent=1)[:150], encoding="utf-8")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    return folder


ASKED = {"train_file": None, "question": "Who?"}
MISTAKES = {
    "elsewhere": ({"train_file": "elsewhere.json"}, ["elsewhere.json", "id q2", "'London'", "'Babbag'", "19"]),
    "past": ({"train_file": "past.json"}, ["past.json", "id q1", "character 77", "has 26"]),
    "no context": ({"validation_file": "no_context.json"}, ["no_context.json", "id q1", "'context'"]),
    "empty context": ({"test_file": "empty_context.json"}, ["empty_context.json", "id q1", "empty"]),
    "twice": ({"train_file": "twice.json"}, ["twice.json", "entry 3", "q1", "entry 1", "already"]),
    "cut": ({"train_file": "cut.json"}, ["cut.json", "line 10, column 5", "cut off"]),
    "long": ({"train_file": "long.json"}, ["long.json", "id q2", "tokens", "--max_seq_length"]),
    "wide": ({"train_file": "wide.json", "doc_stride": 40}, ["wide.json", "id q2", "--doc_stride"]),
    "stride": ({"doc_stride": 44}, ["--doc_stride is 44", "0 to 43"]),
    "unlabelled": ({"validation_file": "unlabelled.json"}, ["unlabelled.json", "id q2", "no answers"]),
    "nothing": ({"train_file": "nothing.json"}, ["nothing.json", "no question"]),
    "missing": ({"train_file": "missing.json"}, ["--train_file missing.json", "no such file"]),
    "too long": ({"max_seq_length": 65}, ["--max_seq_length is 65", "at most 64"]),
    "n best": ({"n_best_size": 0}, ["--n_best_size is 0", "at least 1 and at most 1000"]),
    "epochs": ({"num_train_epochs": "inf"}, ["--num_train_epochs is inf"]),
    "optimizer": ({"adam_beta1": 2}, ["beta", "2.0", "--adam_beta1"]),
    "scheduler": ({"lr_scheduler_type": "cosine_with_min_lr"}, ["min_lr", "--lr_scheduler_type"]),
    "no folder": ({"output_dir": ""}, ["--output_dir is empty"]),
    "nothing to score": ({"train_file": None, "test_file": "good.json", "do_eval": True}, ["--do_eval has no data"]),
    "no best": ({"load_best_model_at_end": True, "validation_split_percentage": 0}, ["--load_best_model_at_end"]),
    "metric": ({"metric_for_best_model": "exact"}, ["--metric_for_best_model exact", "exact_match", "SQuAD 1.1"]),
    "flag": ({"doc_strides": 3}, ["--doc_strides is not a flag", "did you mean --doc_stride?"]),
    "question alone": (ASKED, ["--question", "--context"]),
    "two contexts": (ASKED | {"context": "x", "context_file": "empty.txt"}, ["--context", "--context_file"]),
    "empty question": (ASKED | {"question": " ", "context": "x"}, ["--question is empty"]),
    "empty file": (ASKED | {"context_file": "empty.txt"}, ["empty.txt", "the context is empty"]),
    "long question": (ASKED | {"question": "who " * 60, "context": "x"}, ["--question", "of 48 (--max_seq_length)"]),
    "no plot": ({"plot_scores": "x.png"}, ["--plot_scores", "--question"]),
    "two files": (ASKED | {"context_file": "e*.json"}, ["e*.json: 2 files", "expected one"]),
    "plot in a file": (ASKED | {"context": "x", "plot_scores": "good.json/x.png"}, ["good.json/x.png", "written"]),
    "plot ending": (ASKED | {"context": "x", "plot_scores": "x.doc"}, ["x.doc", ".png"]),
    "nothing to predict": ({"do_predict": True}, ["--do_predict", "--test_file"]),
    "no network": ({"train_file": None}, ["rajpurkar/squad", "--train_file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_costs_nothing_that_was_there(qa, inputs, answering_bert, tmp_path, name):
    flags, fragments = MISTAKES[name]
    shutil.copytree(answering_bert, tmp_path / "out")
    before = contents(tmp_path / "out")
    settings = {"train_file": None if {"validation_file", "test_file"} & {*flags} else "good.json"}
    done = qa(folder=inputs, **(settings | {"max_steps": 1, "overwrite_output_dir": True} | flags))
    assert_one_message(done, fragments)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["elsewhere", "long", "question alone"])
def test_two_processes_say_it_once(qa, inputs, name):
    flags, fragments = MISTAKES[name]
    assert_one_message(qa(folder=inputs, processes=2, **({"train_file": "good.json"} | flags)), fragments)


def test_faulty_questions_are_left_out_and_listed_where_that_is_asked_for(qa, inputs, tmp_path):
    files = [f"{name}.json" for name in ("elsewhere", "no_context", "unlabelled")]
    rows = [GOOD | {"id": f"x{n}"} for n in range(8)] + [GOOD | {"id": "q1"}]
    (tmp_path / "more.json").write_text(json.dumps(rows), encoding="utf-8")
    for name in files:
        shutil.copy(inputs / name, tmp_path)
    unlabelled = (tmp_path / "unlabelled.json").read_text(encoding="utf-8").replace("q1", "q3").replace("q2", "q4")
    (tmp_path / "unlabelled.json").write_text(unlabelled, encoding="utf-8")
    done = qa(train_file=[*files, "more.json"], on_bad_row="skip", max_steps=1, validation_split_percentage=0).checked()
    assert "10 questions" in re.search("Train .*", done.out)[0] and "4 faulty questions are left out" in done.out
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped_rows.jsonl").read_text("utf-8").splitlines()]
    assert [line["place"].split(",")[0] for line in lines] == [*files[:2], "more.json", files[2]]
    assert "already" in lines[2]["reason"] and "no answers" in lines[3]["reason"]


def test_answers_that_tokens_cannot_give_back_are_counted_and_listed(qa, tmp_path):
    inside = {"id": "q2", "context": "In the class.", "answers": [{"text": "he class", "answer_start": 4}]}
    whole = {"id": "q3", "context": "In the class.", "answers": [{"text": "the class", "answer_start": 3}]}
    (tmp_path / "train.json").write_text(json.dumps([GOOD | whole, GOOD | inside]), encoding="utf-8")
    done = qa(train_file="train.json", max_steps=1, validation_split_percentage=0).checked()
    (line,) = map(json.loads, (tmp_path / "out" / "inexact_answers.jsonl").read_text("utf-8").splitlines())
    assert (line["id"], line["answer"], line["tokens_give"]) == ("q2", "he class", "the class")
    assert "1 answers begin or end inside a token" in done.out


# ---------------------------------------------------------------- what a run leaves


def test_the_results_carry_the_promised_names(trained):
    scores = {"eval_loss", "eval_exact_match", "eval_f1"}
    assert read_results(trained).keys() == scores | {f"initial_{name}" for name in scores} | {
        "step", "epoch", "train_loss", "train_runtime", "train_samples_per_second"}  # fmt: skip


def test_the_model_loads_whole_and_nothing_it_left_runs_code(trained):
    model, info = AutoModelForQuestionAnswering.from_pretrained(trained, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.hidden_dropout_prob == 0  # as --config_overrides asked
    tokenizer = json.loads((trained / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None
    suffixes = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".md", ".pt", ".safetensors"}


def test_the_model_card_tells_of_data_settings_and_scores(trained):
    card = (trained / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "question-answering")
    results = read_results(trained)
    assert f"{results['initial_eval_f1']:.4f} | {results['eval_f1']:.4f}" in card
    assert "train.json" in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert (settings["learning_rate"], settings["doc_stride"], settings["seed"]) == (CURVE["learning_rate"], 8, 42)


def test_the_best_model_by_f1_is_kept(trained):
    log = {entry["step"]: entry["eval_f1"] for entry in read_log(trained, "eval_f1")}
    results = read_results(trained)
    assert results["eval_f1"] == max(log.values())
    best = max(log, key=log.get)
    assert (trained / f"checkpoint-{best}").exists()


def test_a_second_run_in_the_same_folder_is_refused(qa, trained, qa_files, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = contents(tmp_path / "out")
    done = qa(train_file=qa_files["train_file"], max_steps=2)
    assert_one_message(done, ["in use", "--resume_from_checkpoint", "--overwrite_output_dir"])
    assert contents(tmp_path / "out") == before
