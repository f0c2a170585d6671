"""run_ner.py as its users meet it: the command line, what it prints, and the files that it leaves behind."""

import itertools
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value
from helpers import ALIKE, NAMES, OTHERS, Run, contents, read_log, read_results, tagged, write_conll
from safetensors.torch import load_file
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    CanineConfig,
    CanineForTokenClassification,
    CanineTokenizer,
    pipeline,
)  # fmt: skip

from run_ner import find_scheme, parse_args, read_tagged, write_tags
from utils.similar_lengths import SimilarLengthSampler

NO_DROPOUT = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
# Scrambled on purpose: a published model has its own order.
LABELS = ["I-ORG", "B-LOC", "O", "I-PER", "B-PER", "I-LOC", "B-ORG"]
CURVE = {"num_train_epochs": 2, "learning_rate": 2e-3, "logging_steps": 1, "save_strategy": "no", **NO_DROPOUT}


def read_columns(path):
    """Read a file of CoNLL by its letter: a list of sentences, lists of columns; -DOCSTART- lines are left out."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    sentences = [[line.split("\t") for line in block.split("\n") if line] for block in blocks]
    return [rows for rows in sentences if rows and rows[0][0] != "-DOCSTART-"]


def column(sentences, n):
    return [[row[n] for row in rows] for rows in sentences]


def run_all(folder, runs):
    """Run run_ner.py with each of several dicts of flags, two at a time: a list of Done."""
    started, found = [], []
    for number, settings in enumerate(runs):
        settings = {**ALIKE, "max_seq_length": 48, "output_dir": folder / f"out-{number}", **settings}
        processes = settings.pop("processes", 1)
        started.append((Run("run_ner.py", settings, folder / f"cwd-{number}", processes), processes))
        if number:  # not by threads: two of them cannot ask for the exit status of a process
            found.append(started[number - 1][0].wait())
    found.append(started[-1][0].wait())
    for done, (_, processes) in zip(found, started, strict=True):
        if done.status == 0:
            assert f"{processes} process" in re.search("Running on .*", done.out)[0]  # a launch can fall back to one
            assert done.out.count("Running on") == max(1, len(re.findall(r"^Round \d", done.out, re.MULTILINE)))
    return found


@pytest.fixture
def ner(tiny_bert, tmp_path):
    """run_ner.py as a process of its own: ner(flag=value, …) gives a helpers.Done."""

    def run(**settings):
        return run_all(tmp_path, [{"model": tiny_bert, "output_dir": tmp_path / "out", **settings}])[0]

    return run


@pytest.fixture(scope="session")
def tagger(tmp_path_factory, tiny_bert):
    """Folder of the tiny BERT with a random head for LABELS, in that order. Not to be written to."""
    folder = tmp_path_factory.mktemp("tagger")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForTokenClassification.from_pretrained(
            tiny_bert, id2label=dict(enumerate(LABELS)), label2id={tag: n for n, tag in enumerate(LABELS)}
        )
        torch.nn.init.normal_(model.classifier.weight, std=0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Tagged sentences: dict of flags. In batches of 8, training ends an epoch with a batch of one."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "train_file": write_conll(folder / "train.conll", tagged(57, seed=0)),
        "validation_file": write_conll(folder / "dev.conll", tagged(23, seed=1)),
        "test_file": write_conll(folder / "test.conll", tagged(19, seed=2), docstart_every=5),
    }


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_bert, files):
    """Output folder of a plain run, and what it printed. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"num_train_epochs": 6, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "logging_steps": 1}
    (done,) = run_all(folder, [{"model": tiny_bert, **files, **settings, "report_to": "tensorboard"}])
    return folder / "out-0", done.checked()


def plain_scores(folder, sentences):
    """Label sentences by transformers alone, one at a time: (log-probabilities, a tensor a sentence; nats per word)."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found, nats = [], []
    for words in sentences:
        inputs = tokenizer([word for word, *_ in words], is_split_into_words=True, return_tensors="pt")
        first = [inputs.word_ids().index(n) for n in range(len(words))]
        with torch.no_grad():
            found.append(model(**inputs).logits[0, first].log_softmax(dim=-1))
        targets = torch.tensor([model.config.label2id[row[1]] for row in words if len(row) > 1])
        nats += F.nll_loss(found[-1], targets, reduction="none").tolist() if len(targets) else []
    return found, np.mean(nats) if nats else None


def tags_of(scores, labels):
    return [[labels[n] for n in rows.argmax(dim=-1).tolist()] for rows in scores]


def scores_by_seqeval(gold, found, prefix="predict"):
    kinds = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    scores = {name: score(gold, found, zero_division=0) for name, score in kinds.items()}
    scores["accuracy"] = accuracy_score(gold, found)
    scores["strict_f1"] = f1_score(gold, found, mode="strict", scheme=IOB2, zero_division=0)
    return {f"{prefix}_{name}": float(score) for name, score in scores.items()}


def faults(tags, scheme):
    """List the places at which tags break the rules of a scheme, by rules written down here for each pair of tags."""
    found = []
    for n, (before, tag) in enumerate(itertools.pairwise(["O", *tags, "O"])):
        goes_on = before[0] in "BI" and before[1:] == tag[1:]
        if scheme == "IOB2":
            good = tag[0] != "I" or goes_on
        elif scheme == "IOB1":
            good = tag[0] != "B" or goes_on
        else:
            good = (tag[0] in "IE" and goes_on) if before[0] in "BI" else tag[0] in "OBS"
        found += [] if good else [n]
    return found


# ---------------------------------------------------------------- curves


def plain_curve(folder, sentences, batch_size, weights):
    """Train by transformers and torch alone, a sentence at a time, without dropout: the losses of all updates."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForTokenClassification.from_pretrained(folder, **off).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = []
    for words in sentences:
        inputs = tokenizer([word for word, _ in words], is_split_into_words=True, return_tensors="pt")
        first = [inputs.word_ids().index(n) for n in range(len(words))]
        examples.append((inputs, first, torch.tensor([LABELS.index(tag) for _, tag in words])))
    lengths = [len(inputs["input_ids"][0]) for inputs, _, _ in examples]
    assert max(lengths) <= 48
    sampler = SimilarLengthSampler(lengths, batch_size, 1, 1, 0, 42)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    updates, losses = 2 * len(sampler), []
    for sampler.epoch in range(2):
        for batch in sampler:
            total = sum(
                F.cross_entropy(model(**inputs).logits[0, first], targets, weight=weights, reduction="sum")
                for inputs, first, targets in (examples[n] for n in batch)
            )
            loss = total / sum(len(examples[n][2]) for n in batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = CURVE["learning_rate"] * (1 - len(losses) / updates)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


SPLITS = {  # (processes, batch size, accumulation steps), sentences, --class_weights
    "one": ((1, 8, 1), 57, None),
    "accumulated": ((1, 4, 2), 57, None),  # the last batch of an epoch is one sentence: half of the update has none
    "two": ((2, 4, 1), 57, None),  # and here a whole process
    "accumulated, weights": ((1, 4, 2), 61, "PER=2,O=0.5"),  # a last batch of five
    "two, weights": ((2, 4, 1), 61, "PER=2,O=0.5"),
    "balanced": ((1, 8, 1), 57, "balanced"),
    "two, balanced": ((2, 2, 2), 57, "balanced"),
    "checkpointing, workers": ((1, 8, 1), 57, None),
}


@pytest.fixture(scope="module")
def curves(tmp_path_factory, tagger, files):
    """Losses of each of SPLITS, and what each run printed."""
    folder = tmp_path_factory.mktemp("curves")
    runs = []
    for name, ((processes, batch_size, accumulation), count, weights) in SPLITS.items():
        flags = {"processes": processes, "per_device_train_batch_size": batch_size, "class_weights": weights}
        flags |= {"gradient_accumulation_steps": accumulation, "model": tagger, **CURVE}
        if "workers" in name:
            flags |= {"gradient_checkpointing": True, "dataloader_num_workers": 1}
        train = write_conll(folder / f"{count}.conll", tagged(count, seed=0))
        runs.append(flags | {"train_file": train, "validation_file": files["validation_file"]})
    found = {}
    for number, (name, done) in enumerate(zip(SPLITS, run_all(folder, runs), strict=True)):
        log = read_log(folder / f"out-{number}") if done.status == 0 else []
        found[name] = [[entry[kind] for entry in log if kind in entry] for kind in ("loss", "eval_loss")], done
    return found


@pytest.mark.parametrize("name", SPLITS)
def test_the_loss_curve_is_that_of_a_plain_loop_for_any_split_of_the_global_batch(curves, tagger, name):
    _, count, wanted = SPLITS[name]
    (losses, eval_losses), done = curves[name]
    done.checked()
    assert "Traceback" not in done.err
    sentences, weights = tagged(count, seed=0), None
    if wanted == "balanced":
        tags = [LABELS.index(tag) for words in sentences for _, tag in words]
        weights = len(tags) / (len(LABELS) * torch.bincount(torch.tensor(tags), minlength=len(LABELS)))
    elif wanted:
        weights = torch.tensor([{"O": 0.5, "PER": 2.0}.get(tag.split("-")[-1], 1.0) for tag in LABELS])
    expected = plain_curve(tagger, sentences, 8, weights)
    assert len(expected) == 16
    assert np.ptp(expected) > 0.3  # so that equal curves say something
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-4)
    twins = [curves[other][0][1] for other, (_, *rest) in SPLITS.items() if rest == [count, wanted]]
    for other in twins:
        np.testing.assert_allclose(eval_losses, other, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- predictions and scores


EVALUATIONS = [(1, 1), (7, 1), (64, 1), (2, 2)]  # batch size, processes


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, tagger, files):
    """A model that is only used: (its output folders for EVALUATIONS, one that is not constrained, one sentence)."""
    folder = tmp_path_factory.mktemp("evaluated")
    chance = random.Random(5)
    words = [chance.choice([*itertools.chain(*NAMES.values()), *OTHERS]) for _ in range(2000)]
    rows = [[word for word, _ in sentence] for sentence in tagged(12, seed=6)]
    for name, sentences in {"long.jsonl": [*rows[:6], words, *rows[6:]], "alone.jsonl": rows[:1]}.items():
        lines = "".join(json.dumps({"tokens": tokens}) + "\n" for tokens in sentences)
        (folder / name).write_text(lines, encoding="utf-8")
    given = {"model": tagger, "validation_file": files["validation_file"], "test_file": folder / "long.jsonl"}
    runs = [given | {"per_device_eval_batch_size": size, "processes": count} for size, count in EVALUATIONS]
    runs.append({"model": tagger, "test_file": folder / "alone.jsonl"})
    unconstrained = {"no_constrained_decoding": True, "do_eval": True, "do_predict": True}
    runs.append(given | unconstrained | {"test_file": files["test_file"]})
    for done in run_all(folder, runs):
        done.checked()
    return [folder / f"out-{n}" for n in range(len(runs))]


def test_scores_and_predictions_are_the_same_for_any_batch_size_and_process_count(evaluated):
    results = [read_results(folder) for folder in evaluated[: len(EVALUATIONS)]]
    names = {"eval_loss", "eval_f1", "eval_strict_f1", "eval_precision", "eval_recall", "eval_accuracy"}
    assert names <= results[0].keys()
    assert 0 < results[0]["eval_f1"] < 1
    for other in results[1:]:
        assert {name: other[name] for name in names} == pytest.approx({name: results[0][name] for name in names}, 1e-6)
        assert other["per_entity"] == results[0]["per_entity"]
    predictions = [(folder / "predictions.conll").read_bytes() for folder in evaluated[: len(EVALUATIONS)]]
    assert len(set(predictions)) == 1


def test_every_word_of_a_long_sentence_gets_a_prediction_and_a_short_one_the_same_alone(evaluated):
    sentences = read_columns(evaluated[0] / "predictions.conll")
    assert len(sentences) == 13
    assert len(sentences[6]) == 2000
    assert [len(rows) for rows in sentences[:6]] == [len(words) for words in tagged(12, seed=6)[:6]]
    assert {len(row) for rows in sentences for row in rows} == {2}  # word and prediction: there are no tags
    assert len({tag for _, tag in sentences[6]}) > 3
    assert read_columns(evaluated[len(EVALUATIONS)] / "predictions.conll") == sentences[:1]


def test_a_test_file_without_tags_is_predicted_and_not_scored(evaluated):
    assert not any("predict" in name for name in read_results(evaluated[0]))
    alone = evaluated[len(EVALUATIONS)]
    assert not (alone / "all_results.json").exists()
    assert not (alone / "model.safetensors").exists()


def test_a_model_is_scored_in_its_own_order_of_labels_as_a_plain_loop_does(evaluated, tagger, files):
    results = read_results(evaluated[-1])
    for prefix, flag, seed, count in (("eval", "validation_file", 1, 23), ("predict", "test_file", 2, 19)):
        sentences = tagged(count, seed)
        scores, nats = plain_scores(tagger, sentences)
        expected = scores_by_seqeval(column(sentences, 1), tags_of(scores, LABELS), prefix)
        assert expected[f"{prefix}_f1"] > 0.01, flag
        assert results[f"{prefix}_loss"] == pytest.approx(nats, rel=1e-5)
        assert {name: results[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    written = read_columns(evaluated[-1] / "predictions.conll")
    assert column(written, 2) == tags_of(plain_scores(tagger, tagged(19, 2))[0], LABELS)
    assert read_results(evaluated[0])["eval_accuracy"] != results["eval_accuracy"]  # constrained, it finds others


def test_without_constraints_sequences_break_the_rules_and_with_them_none_does(evaluated):
    assert any(faults(tags, "IOB2") for tags in column(read_columns(evaluated[-1] / "predictions.conll"), 2))
    sentences = column(read_columns(evaluated[0] / "predictions.conll"), 1)
    assert not any(faults(tags, "IOB2") for tags in sentences)
    assert sum(tag != "O" for tags in sentences for tag in tags) > 100


@pytest.fixture(scope="module")
def in_schemes(tmp_path_factory, tiny_bert):
    """Runs whose three files follow three schemes: dict of the first to (output folder, Done)."""
    folder = tmp_path_factory.mktemp("in_schemes")
    orders, runs = [("IOB1", "IOB2", "BIOES"), ("IOB2", "BIOES", "IOB1"), ("BIOES", "IOB1", "IOB2")], []
    for order in orders:
        runs.append({"model": tiny_bert, "max_steps": 2, "eval_strategy": "no", "save_strategy": "no"})
        for seed, (split, scheme) in enumerate(zip(("train", "validation", "test"), order, strict=True)):
            rows = [
                list(zip(column([words], 0)[0], write_tags(column([words], 1)[0], scheme), strict=True))
                for words in tagged(25, seed)
            ]
            runs[-1][f"{split}_file"] = write_conll(folder / f"{order[0]}-{split}.conll", rows)
    done = run_all(folder, runs)
    return {order[0]: (folder / f"out-{n}", done[n].checked()) for n, order in enumerate(orders)}


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_files_in_other_schemes_are_read_in_that_of_the_training_data_and_predicted_in_it(in_schemes, scheme):
    output_dir, done = in_schemes[scheme]
    said = re.findall(r"^Tags +\w+: (.*)", done.out, re.MULTILINE)
    assert said[0] == scheme and all(line.endswith(f"read as {scheme}") for line in said[1:])
    assert "do not follow" not in done.out
    sentences = read_columns(output_dir / "predictions.conll")
    assert [get_entities(tags) for tags in column(sentences, 1)] == [
        get_entities([tag for _, tag in words]) for words in tagged(25, 2)
    ]
    assert sum(tag != "O" for tags in column(sentences, 2) for tag in tags) > 20
    assert not any(faults(tags, scheme) for tags in column(sentences, 1) + column(sentences, 2))


def test_reported_scores_are_those_of_seqeval_on_the_written_predictions(trained):
    output_dir, _ = trained
    sentences, results = read_columns(output_dir / "predictions.conll"), read_results(output_dir)
    assert column(sentences, 0) == [[word for word, _ in words] for words in tagged(19, 2)]
    gold, found = column(sentences, 1), column(sentences, 2)
    assert gold == [[tag for _, tag in words] for words in tagged(19, 2)]
    expected = scores_by_seqeval(gold, found)
    assert 0.2 < expected["predict_f1"] < 1
    assert {name: results[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert not any(faults(tags, "IOB2") for tags in found)
    text = (output_dir / "predictions.conll").read_text(encoding="utf-8")
    assert text.count("-DOCSTART-\tO\tO\n\n") == text.count("-DOCSTART-") == 4
    for kind, row in results["per_entity"]["predict"].items():
        of_kind = [sum(entity[0] == kind for tags in side for entity in get_entities(tags)) for side in (gold, found)]
        assert row["number"] == of_kind[0]
        assert bool(row["precision"]) <= bool(of_kind[1])


@pytest.fixture(scope="module")
def used(tmp_path_factory, trained, files):
    """The trained model in use: output folders, and Done of the last, which labels --text on two processes."""
    folder = tmp_path_factory.mktemp("used")
    text = " ".join(word for word, _ in tagged(1, 9, longest=30)[0])
    (folder / "text.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    back = trained[0] / "predictions.jsonl"
    model = {"model": trained[0]}
    done = run_all(
        folder,
        [
            model | {"test_file": files["test_file"], "no_constrained_decoding": True},
            model | {"do_eval": True, "validation_file": back},
            model | {"test_file": folder / "text.jsonl", "text": text, "processes": 2},
            model | {"text": text},
        ],
    )
    for one in done:
        one.checked()
    return [folder / f"out-{n}" for n in range(4)], done, text


def test_the_pipeline_of_transformers_gives_the_entities_of_the_script(used, trained):
    folders, _, _ = used
    lines = (folders[0] / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    tag = pipeline("token-classification", str(trained[0]), aggregation_strategy="first", device="cpu")
    number = 0
    for words, row in zip(tagged(19, 2), map(json.loads, lines), strict=True):
        assert row["text"] == " ".join(word for word, _ in words)
        found = [(entity["start"], entity["end"], entity["entity_group"]) for entity in tag(row["text"])]
        assert found == [(entity["start"], entity["end"], entity["label"]) for entity in row["entities"]]
        for entity in row["entities"]:
            assert row["text"][entity["start"] : entity["end"]] == entity["text"]
            assert " ".join(word for word, _ in words[entity["start_word"] : entity["end_word"]]) == entity["text"]
            assert 0 < entity["score"] <= 1
        number += len(found)
    assert number > 20


def test_what_was_predicted_can_be_given_back_as_spans(used):
    results = read_results(used[0][1])
    assert results["eval_f1"] == results["eval_strict_f1"] == results["eval_accuracy"] == 1


def test_the_entities_of_one_text_are_printed_and_nothing_is_written_for_it(used):
    folders, done, text = used
    (row,) = map(json.loads, (folders[2] / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["entities"] and row["text"] == text
    for one in done[2:]:
        _, _, said = one.out.partition(f"\n{text}\n")
        lines = re.findall(r"^  (.*\S) +([A-Z]+) +([\d.]+) +characters (\d+) to (\d+)$", said, re.MULTILINE)
        assert [(words, kind, int(start), int(end)) for words, kind, _, start, end in lines] == [
            (entity["text"], entity["label"], entity["start"], entity["end"]) for entity in row["entities"]
        ]
        assert "random" not in one.out
    assert not list(folders[3].glob("*"))


# ---------------------------------------------------------------- what a run leaves


def test_the_results_carry_the_promised_names_and_the_scores_of_the_best_model(trained, files):
    output_dir, _ = trained
    results = read_results(output_dir)
    names = {"loss", "precision", "recall", "f1", "accuracy", "strict_f1"}
    assert results.keys() == {
        *(f"{prefix}_{name}" for prefix in ("eval", "predict", "initial_eval") for name in names),
        *("step", "epoch", "train_loss", "train_runtime", "train_samples_per_second", "per_entity"),
    }
    assert (results["step"], results["epoch"]) == (48, 6) and results["train_samples_per_second"] > 0
    log = read_log(output_dir, "eval_f1")
    assert [(entry["step"], entry["epoch"]) for entry in log] == [(8 * n, n) for n in range(1, 7)]
    best = max(log, key=lambda entry: entry["eval_f1"])
    assert {name: results[f"eval_{name}"] for name in names} == {name: best[f"eval_{name}"] for name in names}
    assert (output_dir / f"checkpoint-{best['step']}").exists()
    weights = load_file(output_dir / f"checkpoint-{best['step']}" / "model.safetensors")
    for name, kept in load_file(output_dir / "model.safetensors").items():
        assert torch.equal(kept, weights[name]), name
    (first,) = read_log(output_dir, "initial_eval_f1")
    assert {name: first[f"initial_eval_{name}"] for name in names} == {
        name: results[f"initial_eval_{name}"] for name in names
    }


def test_the_kept_model_is_the_best_one_even_if_later_ones_were_trained(ner, files, tiny_bert, tmp_path):
    # A first epoch that learns and a rate so high that all is lost in the second, or the other way round.
    settings = {"num_train_epochs": 4, "learning_rate": 0.02, "per_device_train_batch_size": 8, "save_total_limit": 1}
    settings |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 15}
    ner(**files, **settings, metric_for_best_model="loss").checked()
    out = tmp_path / "out"
    log = read_log(out, "eval_loss")
    assert [entry["step"] for entry in log] == [*range(2, 15, 2), 15]
    best = min(log, key=lambda entry: entry["eval_loss"])
    assert read_results(out)["eval_loss"] == best["eval_loss"]
    sentences = tagged(23, 1)
    assert plain_scores(out, sentences)[1] == pytest.approx(best["eval_loss"], rel=1e-5)
    assert f"checkpoint-{best['step']}" in [path.name for path in out.glob("checkpoint-*")]


def test_the_model_card_has_a_table_of_types(trained):
    output_dir, done = trained
    card, results = (output_dir / "README.md").read_text(encoding="utf-8"), read_results(output_dir)
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "token-classification")
    for prefix in ("eval", "predict"):
        for kind, row in results["per_entity"][prefix].items():
            scores = [f"{row[name]:.4f}" for name in ("precision", "recall", "f1")]
            assert f"| {kind} | {' | '.join(scores)} | {row['number']} |" in card
            assert re.search(rf"^{kind} +{' +'.join(scores)} +{row['number']}$", done.out, re.MULTILINE)
    assert f"{results['initial_eval_f1']:.4f} | {results['eval_f1']:.4f}" in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert (settings["learning_rate"], settings["num_train_epochs"]) == (5e-3, 6)
    assert "train.conll" in card and "classifier" in card


def test_nothing_that_it_left_runs_code_and_the_tracker_was_told(trained):
    output_dir, done = trained
    kinds = {path.suffix for path in output_dir.rglob("*") if path.is_file() and "runs" not in path.parts}
    assert kinds == {".conll", ".json", ".jsonl", ".md", ".pt", ".safetensors"}
    for path in output_dir.rglob("*.pt"):
        torch.load(path, weights_only=True)
    assert list(output_dir.rglob("*tfevents*"))
    assert "classifier" in re.search(r"Model  .*random.*", done.out)[0]
    assert json.loads((output_dir / "config.json").read_text(encoding="utf-8"))["label2id"] == {
        tag: n for n, tag in enumerate(["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"])
    }


# ---------------------------------------------------------------- more ways to train


@pytest.fixture(scope="module")
def varied(tmp_path_factory, tiny_bert, files):
    """Short runs of different kinds: dict of name to (output folder, Done)."""
    folder = tmp_path_factory.mktemp("varied")
    both = {name: files[name] for name in ("train_file", "validation_file")}
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
    kinds = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    (folder / "hub").mkdir()
    for split, count, seed in (("train", 57, 0), ("validation", 23, 1), ("test", 19, 2)):
        rows = tagged(count, seed)
        data = {"tokens": column(rows, 0), "ner_tags": [[names.index(tag) for _, tag in words] for words in rows]}
        Dataset.from_dict(data, kinds).to_parquet(folder / "hub" / f"{split}.parquet")
    (folder / "run.yaml").write_text(
        yaml.safe_dump({"train_file": [str(both["train_file"])], "class_weights": {"PER": 2}, "max_steps": 7,
                        "lr_scheduler_type": "constant", "learning_rate": "1e-3", "eval_strategy": "no"}),
        encoding="utf-8")  # fmt: skip
    bad = [{"tokens": ["a", "b"], "ner_tags": ["O"]}, {"tokens": ["a"], "ner_tags": ["PERSON"]}]
    good = [{"tokens": [w for w, _ in words], "ner_tags": [t for _, t in words]} for words in tagged(6, 3)]
    lines = "".join(json.dumps(row) + "\n" for row in [good[0], bad[0], *good[1:], bad[1]])
    (folder / "bad.jsonl").write_text(lines + "{cut\n", encoding="utf-8")
    one = write_conll(folder / "one.conll", tagged(1, 1))
    no_names = write_conll(folder / "none.conll", [[(word, "O") for word, _ in words] for words in tagged(9, 4)])
    one_type = write_conll(folder / "type.conll", tagged(9, 4, kinds=("LOC",)))
    steps = {"max_steps": 5, "eval_steps": 2, "save_steps": 2, "logging_steps": 2, "num_train_epochs": 9}
    runs = {
        "embeddings": {**both, "max_steps": 2, "freeze_embeddings": True},
        "layers": {**both, "max_steps": 2, "freeze_layers": 1, "gradient_checkpointing": True, "processes": 2},
        "parquet": {"dataset_name": folder / "hub", "max_steps": 2},
        "config": {"config": folder / "run.yaml", "max_steps": 4, "logging_steps": 1},
        "skip": {"train_file": folder / "bad.jsonl", "max_steps": 2, "on_bad_row": "skip", "processes": 2},
        "one sentence": {"train_file": one, "validation_file": one, "test_file": one, "max_steps": 2},
        "no names": {"train_file": no_names, "test_file": no_names, "max_steps": 2},
        "one type": {"train_file": one_type, "validation_file": both["validation_file"], "max_steps": 2},
        "no, no": {**both, **steps, "eval_strategy": "no", "save_strategy": "no"},
        "steps, steps": {**both, **steps, "eval_strategy": "steps", "save_strategy": "steps", "save_total_limit": 1,
                         "load_best_model_at_end": True},
        "epoch, steps": {**both, **steps, "eval_strategy": "epoch", "save_strategy": "steps"},
        "epoch, epoch": {**both, **steps, "eval_strategy": "epoch", "save_strategy": "epoch"},
        "no validation": {"train_file": both["train_file"], "validation_split_percentage": 0, "max_steps": 2},
    }  # fmt: skip
    done = run_all(folder, [{"model": tiny_bert, **flags} for flags in runs.values()])
    return {name: (folder / f"out-{n}", done[n]) for n, name in enumerate(runs)}


def test_no_way_of_training_prints_a_traceback_or_a_warning(varied):
    for name, (_, done) in varied.items():
        assert done.status == 0, f"{name}\n{done.out}\n{done.err}"
        assert "Traceback" not in done.err and "Warning" not in done.err, f"{name}\n{done.err}"


@pytest.mark.parametrize(
    ("name", "frozen"), [("embeddings", "embeddings."), ("layers", ("embeddings.", "encoder.layer.0."))]
)
def test_what_is_frozen_stays_as_it_was_and_all_else_is_trained(varied, tiny_bert, name, frozen):
    weights, before = load_file(varied[name][0] / "model.safetensors"), load_file(tiny_bert / "model.safetensors")
    same = {key for key in weights if key in before and torch.equal(weights[key], before[key])}
    inner = {key for key in weights if key in before}
    assert same == {key for key in inner if key.removeprefix("bert.").startswith(frozen)}
    assert same and inner - same


def test_a_data_set_with_class_labels_is_read_with_their_names_in_their_order(varied, files):
    output_dir, done = varied["parquet"]
    results, config = read_results(output_dir), json.loads((output_dir / "config.json").read_text(encoding="utf-8"))
    assert [config["id2label"][str(n)] for n in range(7)] == [
        "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]  # fmt: skip
    sentences = read_columns(output_dir / "predictions.conll")
    assert [[tuple(row[:2]) for row in rows] for rows in sentences] == tagged(19, 2)
    assert {"initial_eval_f1", "eval_f1", "predict_f1"} <= results.keys()
    assert re.search(r"^Train +57 sentences", done.out, re.MULTILINE)


def test_settings_of_the_config_file_hold_unless_typed(varied):
    output_dir, _ = varied["config"]
    log = read_log(output_dir, "loss")
    assert [(entry["step"], entry["learning_rate"]) for entry in log] == [(n, 1e-3) for n in range(1, 5)]
    assert len(read_log(output_dir, "eval_f1")) == 1  # a share of the training sentences, after the last update
    assert 'class_weights: PER=2' in (output_dir / "README.md").read_text(encoding="utf-8")


def test_faulty_rows_may_be_skipped_and_are_listed(varied):
    output_dir, done = varied["skip"]
    skipped = [json.loads(line) for line in (output_dir / "skipped_rows.jsonl").read_text("utf-8").splitlines()]
    assert [re.search(r"bad.jsonl, line (\d)", row["place"])[1] for row in skipped] == ["2", "8", "9"]
    for row, words in zip(skipped, (["2 words", "1 tag"], ["PERSON"], ["JSON"]), strict=True):
        assert all(word in row["reason"] for word in words)
    assert re.search("3 faulty sentences .*skipped_rows.jsonl", done.out)
    found = re.findall(r"^(?:Train|Validation) +(\d+) sentences", done.out, re.MULTILINE)
    assert sum(map(int, found)) == 6


def test_one_sentence_or_no_names_at_all_can_be_trained_on(varied):
    results = read_results(varied["no names"][0])
    assert (results["eval_f1"], results["predict_f1"], results["predict_accuracy"]) == (0, 0, 1)
    assert len(read_columns(varied["one sentence"][0] / "predictions.conll")) == 1
    _, done = varied["one type"]
    assert "B-PER is not in the training data" in done.out and re.search("dev.conll, line", done.out)
    results = read_results(varied["no validation"][0])
    assert "train_loss" in results and not any("eval" in name for name in results)


@pytest.mark.parametrize(
    ("name", "evaluated_at", "saved_at"),
    [
        ("no, no", [5], []),
        ("steps, steps", [2, 4, 5], None),
        ("epoch, steps", [4, 5], [4, 5]),
        ("epoch, epoch", [4, 5], [4, 5]),
    ],
)
def test_a_run_that_ends_within_an_epoch_is_scored_once_at_the_end(varied, name, evaluated_at, saved_at):
    output_dir, _ = varied[name]
    assert [entry["step"] for entry in read_log(output_dir, "initial_eval_f1")] == [0]
    assert [entry["step"] for entry in read_log(output_dir, "eval_f1")] == evaluated_at
    assert [entry["step"] for entry in read_log(output_dir, "loss")] == [2, 4, 5]
    saved = sorted(int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*"))
    if saved_at is None:  # the best is kept beside the newest, or is the newest
        best = max(read_log(output_dir, "eval_f1"), key=lambda entry: entry["eval_f1"])
        assert best["step"] in saved and len(saved) <= 2
    else:
        assert saved == saved_at


def test_what_is_certain_of_the_unlabelled_is_learned_in_the_next_round(tiny_bert, files, tmp_path):
    rows = [[word for word, _ in words] for words in tagged(40, seed=7, longest=6)]
    (tmp_path / "unlabelled.txt").write_text("\n".join(map(" ".join, rows)) + "\n", encoding="utf-8")
    settings = {"unlabeled_file": tmp_path / "unlabelled.txt", "pseudo_label_threshold": 0.6, "processes": 2}
    settings |= {"per_device_train_batch_size": 4, "num_train_epochs": 6, "learning_rate": 5e-3, "save_total_limit": 1}
    settings |= {"text": "the object", "model": tiny_bert}
    (done,) = run_all(tmp_path, [{**files, **settings}])
    done.checked()
    out, path = tmp_path / "out-0", tmp_path / "out-0" / "round-1" / "pseudo_labelled.conll"
    assert not (out / "round-0" / "pseudo_labelled.conll").exists()
    kept = list(read_tagged(str(path), None, None, None, None))
    assert 0 < len(kept) < 40
    assert find_scheme(row["tags"] for row in kept) == ("IOB2", 0)

    # The model of round 0 by transformers alone: which sentences must be among them, and which cannot be.
    # The best one, which comes first, and the last.
    checkpoint = min((out / "round-0").glob("checkpoint-*"), key=lambda path: int(path.name[len("checkpoint-") :]))
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    labels = [config["id2label"][str(n)] for n in range(len(config["id2label"]))]
    scores, _ = plain_scores(checkpoint, [[(word,) for word in words] for words in rows])
    certain = [rows.exp().max(dim=-1)[0].min().item() for rows in scores]
    tags = tags_of(scores, labels)
    may = [words for words, chance in zip(rows, certain, strict=True) if chance >= 0.6 - 1e-5]
    must = {
        tuple(words): found
        for words, chance, found in zip(rows, certain, tags, strict=True)
        if chance >= 0.6 + 1e-5 and not faults(found, "IOB2")
    }
    assert all(row["tokens"] in may for row in kept)
    assert must.keys() <= {tuple(row["tokens"]) for row in kept}
    assert all(row["tags"] == must.get(tuple(row["tokens"]), row["tags"]) for row in kept)

    table = read_results(out)["pseudo_label_rounds"]
    assert [(row["round"], row["pseudo_labelled"]) for row in table] == [(0, 0), (1, len(kept))]
    for row in table:
        best = max(entry["eval_f1"] for entry in read_log(out / f"round-{row['round']}", "eval_f1"))
        assert row["eval_f1"] == best
        assert re.search(rf"^{row['round']} +{row['pseudo_labelled']} +{best:.4f}", done.out, re.MULTILINE)
    assert read_results(out)["eval_f1"] == max(row["eval_f1"] for row in table)
    nats = plain_scores(out, tagged(23, 1))[1]  # what is left is the model whose scores are reported
    assert nats == pytest.approx(read_results(out)["eval_loss"], rel=1e-5)


def test_what_scores_a_model_in_its_own_folder_leaves_that_as_it_was_and_writes_beside(ner, trained, files, tmp_path):
    shutil.copytree(trained[0], tmp_path / "out")
    before, results = contents(tmp_path / "out"), read_results(trained[0])
    for number in (1, 2):
        ner(model=tmp_path / "out", validation_file=files["test_file"]).checked()
        scores = read_results(tmp_path / "out" / f"eval-{number}")
        assert scores["eval_f1"] == results["predict_f1"]  # of the same sentences
        assert not [name for name in scores if name.startswith(("initial_", "train_"))]
    after = {path: data for path, data in contents(tmp_path / "out").items() if not path.parts[0].startswith("eval-")}
    assert after == before


def test_a_head_of_another_size_whose_labels_are_but_numbered_starts_at_random(ner, tiny_bert, files, tmp_path):
    AutoModelForTokenClassification.from_pretrained(tiny_bert, num_labels=2).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    done = ner(model=tmp_path / "model", **files, max_steps=2).checked()
    assert re.search("Model .* start at random.*classifier", done.out)
    assert len(json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["id2label"]) == len(LABELS)


@pytest.mark.slow
def test_a_model_without_word_embeddings_of_its_own_trains_and_labels(ner, files, tmp_path):
    model = CanineForTokenClassification(
        CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2)
    )
    model.save_pretrained(tmp_path / "canine")
    CanineTokenizer().save_pretrained(tmp_path / "canine")
    ner(model=tmp_path / "canine", **files, max_steps=2, max_eval_samples=5, max_predict_samples=3).checked()
    assert len(read_columns(tmp_path / "out" / "predictions.conll")) == 3
    assert "eval_f1" in read_results(tmp_path / "out")


def test_flags_may_be_spelt_with_hyphens_and_switched_off():
    args = parse_args(["--train-file", "x", "--max-seq-length", "9", "--no_constrained_decoding"])
    assert (args.train_file, args.max_seq_length, args.stride, args.constrained_decoding) == (["x"], 9, 2, False)
    assert parse_args(["--text", "a"]).constrained_decoding
    assert not parse_args(["--text", "a", "--constrained_decoding", "false"]).constrained_decoding


# ---------------------------------------------------------------- mistakes


FAULTY = {
    "uneven.jsonl": ('{"tokens": ["a"], "ner_tags": ["O"]}\n{"tokens": ["a", "b"], "ner_tags": ["O"]}\n',
                     ["uneven.jsonl, line 2", "2 words", "1 tag"]),
    "unknown.conll": ("a\tO\nb\tPERSON\n", ["unknown.conll, line 1", "'PERSON'", "IOB1, IOB2, BIOES"]),
    "column.conll": ("a O\nb O\n\nc\n", ["column.conll, line 4", "2 columns", "found 1", "'c'"]),
    "code.csv": ("Sentence,Tag\na b,__import__('os').mkdir('ran')\n", ["code.csv, line 2", "list of tags"]),
    "empty.conll": ("", ["empty.conll", "no sentence"]),
    "blank.conll": ("\n \n-DOCSTART- O\n\n", ["blank.conll", "no sentence"]),
    "columns.jsonl": ('{"words": ["a"], "tags": ["O"]}\n', ["columns.jsonl, line 1", "words, tags", "tokens"]),
    "numbers.jsonl": ('{"tokens": ["a"], "ner_tags": [3]}\n', ["numbers.jsonl, line 1", "--label_list"]),
    "spans.jsonl": ('{"text": "Ada", "entities": [[0, 9, "PER"]]}\n', ["spans.jsonl, line 1", "[0, 9, 'PER']"]),
    "latin1.conll": (b"Gr\xf6\xdfe O\n", ["latin1.conll, line 1", "UTF-8"]),
    "cut.jsonl": ('{"tokens": ["a"', ["cut.jsonl, line 1", "JSON"]),
    "untagged.conll": ("a\nb\n", ["untagged.conll, line 1", "no tags"]),
    "single.conll": ("a O\n", ["single.conll", "1 sentence", "--validation_file"]),
}  # fmt: skip

MISTAKES = {
    **{name: ({"train_file": name}, fragments) for name, (_, fragments) in FAULTY.items()},
    "tag that is not listed": ({"label_list": ["O", "B-PER", "I-PER"]},
                               ["train.conll, line", "--label_list", "B-LOC", "B-PER"]),
    "tag that the model lacks": ({"model": "TAGGER", "train_file": None, "validation_file": "other.conll"},
                                 ["other.conll, line 1", "B-FOO", "I-ORG, B-LOC"]),
    "stride": ({"stride": 46}, ["--stride is 46", "0 to 45"]),
    "misspelt": ({"train_fil": "x"}, ["--train_fil is not a flag", "did you mean --train_file?"]),
    "two precisions": ({"bf16": True, "mixed_precision": "bf16"}, ["--mixed_precision bf16", "--bf16"]),
    "metric": ({"metric_for_best_model": "bleu"}, ["--metric_for_best_model bleu", "strict_f1"]),
    "no metric": ({"metric_for_best_model": ""}, ["--metric_for_best_model", "strict_f1"]),
    "base model": ({"train_file": None, "text": "the object"}, ["--model", "not trained to find names"]),
    "base model, tagged test": ({"train_file": None, "test_file": "train.conll"}, ["not trained to find names"]),
    "config": ({"config_overrides": "label2id=x"}, ["--config_overrides label2id=x"]),
    "surrogate": ({"model": "TAGGER", "train_file": None, "text": "a \udcff b"}, ["--text"]),
    "weights": ({"class_weights": "FOO=2"}, ["--class_weights FOO=2", "LOC, O, ORG, PER"]),
    "layers": ({"freeze_layers": 3}, ["--freeze_layers is 3", "2 layers"]),
    "length": ({"max_seq_length": 65}, ["--max_seq_length is 65", "64"]),
    "no such column": ({"label_column_name": "foo", "train_file": "table.jsonl"}, ["table.jsonl, line 1", "foo"]),
    "in use": ({"output_dir": "used"}, ["in use", "--resume_from_checkpoint", "--overwrite_output_dir"]),
    "in use, rounds": ({"output_dir": "used", "unlabeled_file": "other.conll"}, ["in use", "--overwrite_output_dir"]),
    "no scheme in a data set": ({"train_file": None, "dataset_name": "types"}, ["types, split train, row 0", "'LOC'"]),
    "stopping without scores": ({"early_stopping_patience": 1, "eval_strategy": "no"}, ["--early_stopping_patience"]),
}  # fmt: skip
TWICE = ["uneven.jsonl", "stride", "tag that is not listed", "base model", "layers", "in use"]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory, tiny_bert, tagger):
    """What came of each of MISTAKES, and of TWICE on two processes: dict of (name, processes) to Done; the folder."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, (content, _) in FAULTY.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write_conll(folder / "train.conll", tagged(9, 0))
    write_conll(folder / "other.conll", [[("a", "B-FOO")]])
    (folder / "table.jsonl").write_text('{"tokens": ["a"], "ner_tags": ["O"]}\n' * 3, encoding="utf-8")
    (folder / "used").mkdir()
    (folder / "used" / "model.safetensors").write_bytes(b"precious")
    (folder / "types").mkdir()
    Dataset.from_dict({"tokens": [["a", "b"]] * 9, "ner_tags": [["O", "LOC"]] * 9}).to_parquet(
        folder / "types" / "train.parquet"
    )
    names = [(name, 1) for name in MISTAKES] + [(name, 2) for name in TWICE]
    runs = []
    for name, processes in names:
        flags = {"model": tiny_bert, "train_file": "train.conll", "max_steps": 1, "processes": processes}
        flags |= MISTAKES[name][0] | ({"model": tagger} if MISTAKES[name][0].get("model") else {})
        for flag in ("train_file", "validation_file", "test_file", "unlabeled_file", "dataset_name", "output_dir"):
            if flags.get(flag):
                flags[flag] = folder / flags[flag]
        runs.append(flags)
    return dict(zip(names, run_all(folder, runs), strict=True)), folder


@pytest.mark.parametrize("case", [*((name, 1) for name in MISTAKES), *((name, 2) for name in TWICE)], ids=str)
def test_a_mistake_gets_one_message_and_costs_nothing_that_was_there(mistakes, case):
    done, folder = mistakes[0][case], mistakes[1]
    assert done.status == 2, f"{done.out}\n{done.err}"
    assert "Traceback" not in done.out + done.err
    assert done.err.count("error:") == 1
    message = done.err.rstrip().splitlines()[-1]
    assert message.startswith("run_ner.py: error: ")
    for fragment in MISTAKES[case[0]][1]:
        assert fragment in message
    assert not list(Path(folder).rglob("ran"))
    assert [path.name for path in (folder / "used").iterdir()] == ["model.safetensors"]
    assert (folder / "used" / "model.safetensors").read_bytes() == b"precious"
