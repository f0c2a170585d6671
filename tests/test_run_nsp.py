"""run_nsp.py as its users meet it: the command line, what it prints, and the files that it leaves behind."""

import csv
import functools
import gzip
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import (
    ALIKE,
    Run,
    add_pair_head,
    contents,
    read_documents,
    read_log,
    read_results,
    run_script,
    write_documents,
)
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertForNextSentencePrediction,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from utils.pairs import PairCollator

NO_DROPOUT = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
LENGTH = 48  # of the pairs, in tokens
CURVE = {
    "num_train_epochs": 2,
    "learning_rate": 2e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_seq_length": LENGTH,
    "sentence_per_line": True,
    **NO_DROPOUT,
}


@pytest.fixture(scope="session")
def tiny_pair_bert(tmp_path_factory, tiny_bert):
    """Folder of the tiny BERT with a head for pairs. Not to be written to."""
    return add_pair_head(tmp_path_factory.mktemp("tiny_pair_bert"), tiny_bert)


@pytest.fixture
def nsp(tiny_pair_bert, tmp_path):
    """run_nsp.py on the tiny model, as a process of its own: nsp(flag=value, …) gives a helpers.Done."""
    defaults = {**ALIKE, "model": tiny_pair_bert, "output_dir": tmp_path / "out", "max_seq_length": LENGTH}
    return functools.partial(run_script, "run_nsp.py", defaults, folder=tmp_path)


@pytest.fixture(scope="session")
def train_text(tmp_path_factory, prose):
    """Documents whose 72 lines make 57 pairs: in global batches of 8 seven whole ones and a last one of one pair."""
    documents = [prose[at : at + 5] for at in range(100, 170, 5)] + [prose[170:172]]
    return write_documents(tmp_path_factory.mktemp("train") / "train.txt", documents)


@pytest.fixture(scope="session")
def validation_text(tmp_path_factory, prose):
    documents = [prose[at : at + 4] for at in range(300, 360, 4)]
    return write_documents(tmp_path_factory.mktemp("validation") / "validation.txt", documents)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_pair_bert, train_text, validation_text):
    """Output folder of a plain run in batches of 8, dropout off. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {
        **ALIKE,
        "model": tiny_pair_bert,
        "train_file": train_text,
        "validation_file": validation_text,
        "per_device_train_batch_size": 8,
        **CURVE,
        "output_dir": folder / "out",
        "save_strategy": "epoch",
    }
    Run("run_nsp.py", settings, folder).wait().checked()
    return folder / "out"


# ---------------------------------------------------------------- scores


def collator_of(folder, path, seed=0, sentence_per_line=False, objective="nsp"):
    """A PairCollator over a file that was read without the script."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return PairCollator(
        read_documents(path, tokenizer, sentence_per_line),
        size=LENGTH - 3,
        edges=[tokenizer.cls_token_id, tokenizer.sep_token_id],
        pad_id=tokenizer.pad_token_id,
        objective=objective,
        seed=seed,
    )


def pair_logits(model, collator, example):
    """Scores of one pair, without padding, by the model alone: ((2,), label)."""
    batch = collator([example])
    logits = model(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"]).logits
    return logits[0], batch["next_sentence_label"].item()


def scores_by_hand(logits, labels, prefix="eval_"):
    """The scores that pairs should get: a list of (2,) tensors, and their labels."""
    nats = F.cross_entropy(torch.stack(list(logits)).double(), torch.tensor(labels), reduction="sum").item()
    taken = [int(row[1] > row[0]) for row in logits]
    count = {(a, b): sum((a, b) == pair for pair in zip(labels, taken, strict=True)) for a in (0, 1) for b in (0, 1)}
    scores = {"loss": nats / len(labels), "accuracy": (count[0, 0] + count[1, 1]) / len(labels)}
    names = ["is_next", "not_next"]
    for i, name in enumerate(names):
        scores[f"{name}_precision"] = count[i, i] / max(count[0, i] + count[1, i], 1)
        scores[f"{name}_recall"] = count[i, i] / max(count[i, 0] + count[i, 1], 1)
        scores |= {f"{name}_taken_for_{other}": count[i, j] for j, other in enumerate(names)}
    return {prefix + name: value for name, value in scores.items()}


@torch.no_grad()
def plain_scores(folder, collator):
    """Scores by transformers alone: one pair at a time, without padding."""
    model = BertForNextSentencePrediction.from_pretrained(folder).eval()
    pairs = [pair_logits(model, collator, example) for example in range(collator.count(0))]
    assert np.ptp([(logits[0] - logits[1]).item() for logits, _ in pairs]) > 0.1  # a model that tells pairs apart
    return scores_by_hand(*zip(*pairs, strict=True))


def assert_scores_agree(results, expected, prefix=""):
    for name, value in expected.items():
        assert results[prefix + name] == (pytest.approx(value, rel=1e-5) if name.endswith("loss") else value), name


@pytest.fixture(scope="session")
def expected_scores(tiny_pair_bert, validation_text):
    """Scores by plain_scores of the validation text, paired for an objective."""

    @functools.cache
    def scores(objective):
        collator = collator_of(tiny_pair_bert, validation_text, objective=objective)
        assert len({collator([i])["input_ids"].shape for i in range(collator.count(0))}) > 5  # most need padding
        found = plain_scores(tiny_pair_bert, collator)
        assert all(value for name, value in found.items() if "_taken_for_" in name)
        return found

    return scores


@pytest.mark.parametrize(
    ("objective", "batch_size", "processes"),
    [
        *[("nsp", *split) for split in [(4, 1), (8, 1), (32, 1), (4, 2), (8, 3)]],
        ("sop", 8, 1),
        ("sop", 4, 2),
    ],
)
def test_scores_are_those_of_a_plain_computation_for_any_batch_size_and_process_count(
    nsp, expected_scores, validation_text, tmp_path, objective, batch_size, processes
):
    settings = {"objective": objective, "per_device_eval_batch_size": batch_size}
    done = nsp(validation_file=validation_text, processes=processes, **settings).checked()
    assert done.out.count("Running on") == 1
    results, expected = read_results(tmp_path / "out"), expected_scores(objective)
    assert_scores_agree(results, expected)
    assert results.keys() == expected.keys()
    assert re.search("^ +before +after$", done.out, re.MULTILINE)
    assert re.search(f"^eval_loss +- +{results['eval_loss']:.4f}$", done.out, re.MULTILINE)


def test_the_scores_before_and_after_are_those_of_the_two_models(trained, tiny_pair_bert, validation_text):
    collator, results = collator_of(tiny_pair_bert, validation_text, sentence_per_line=True), read_results(trained)
    assert_scores_agree(results, plain_scores(tiny_pair_bert, collator), "initial_")
    assert_scores_agree(results, plain_scores(trained, collator))
    assert results["eval_loss"] != results["initial_eval_loss"]


def test_every_seed_is_scored_on_the_same_held_out_pairs(nsp, train_text, tmp_path):
    scores = {}
    for seed in (1, 2):
        settings = {"train_file": train_text, "max_steps": 2, "seed": seed, "output_dir": tmp_path / f"seed{seed}"}
        nsp(**settings).checked()
        scores[seed] = read_results(tmp_path / f"seed{seed}")
    assert scores[1]["initial_eval_loss"] == scores[2]["initial_eval_loss"]
    assert scores[1]["eval_loss"] != scores[2]["eval_loss"]


def test_a_sample_of_pairs_is_trained_and_scored(nsp, train_text, validation_text, tmp_path):
    settings = {"train_file": train_text, "validation_file": validation_text, "num_train_epochs": 2}
    sample = {"max_train_samples": 20, "max_eval_samples": 9}
    done = nsp(**settings, **sample, per_device_train_batch_size=8, logging_steps=1).checked()
    found = re.findall(r"^(?:Train|Validation) +(\d+) pairs", done.out, re.MULTILINE)
    assert [int(number) for number in found] == [20, 9]
    assert [entry["step"] for entry in read_log(tmp_path / "out", "loss")] == list(range(1, 7))
    results = read_results(tmp_path / "out")
    assert sum(value for name, value in results.items() if name.startswith("eval_") and "_taken_for_" in name) == 9


# ---------------------------------------------------------------- curves


def losses_of(output_dir):
    return [entry["loss"] for entry in read_log(output_dir, "loss")]


def assert_weights_agree(weights, expected):
    """Hold a state dict against another, to what some updates make of the last digits of a gradient."""
    assert weights.keys() <= expected.keys()
    for name in weights:
        # Attention does not depend on the bias of its keys: that gradient is noise, which Adam makes large.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(
                weights[name], expected[name], rtol=0, atol=5e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def plain_curve(folder, collator, batch_size, epochs, learning_rate):
    """Train by transformers and torch alone, without dropout: (losses of all updates, pairs of each epoch, model)."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForNextSentencePrediction.from_pretrained(folder, **off).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    counts = [collator.count(epoch) for epoch in range(epochs)]
    updates, losses = sum(math.ceil(count / batch_size) for count in counts), []
    for epoch, count in enumerate(counts):
        collator.epoch = epoch
        order = np.random.default_rng((collator.seed, epoch)).permutation(count)
        for start in range(0, count, batch_size):
            nats = []
            for example in order[start : start + batch_size].tolist():
                logits, label = pair_logits(model, collator, example)
                nats.append(F.cross_entropy(logits, torch.tensor(label)))
            loss = torch.stack(nats).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - len(losses) / updates)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, counts, model


def test_the_loss_curve_is_that_of_a_plain_loop(trained, tiny_pair_bert, train_text):
    collator = collator_of(tiny_pair_bert, train_text, seed=42, sentence_per_line=True)
    losses, counts, model = plain_curve(tiny_pair_bert, collator, 8, CURVE["num_train_epochs"], CURVE["learning_rate"])
    assert counts == [57, 57]  # 8 updates in each epoch, the last one of a single pair
    assert np.ptp(losses) > 0.1  # so that equal curves say something
    np.testing.assert_allclose(losses_of(trained), losses, rtol=0, atol=1e-4)
    assert_weights_agree(load_file(trained / "model.safetensors"), model.state_dict())

    log = read_log(trained, "eval_loss")
    assert [(entry["step"], entry["epoch"]) for entry in log] == [(8, 1), (16, 2)]
    expected = [round(update / 8, 4) for update in range(1, 17)]
    assert [entry["epoch"] for entry in read_log(trained, "loss")] == pytest.approx(expected)
    results = read_results(trained)
    assert (results["step"], results["epoch"]) == (16, 2)
    assert {path.name for path in trained.glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-16"}


@pytest.mark.parametrize(("processes", "batch_size", "accumulation"), [(1, 2, 4), (2, 4, 1), (2, 1, 4)])
def test_the_curve_is_the_same_for_any_split_of_the_global_batch(
    nsp, trained, train_text, validation_text, tmp_path, processes, batch_size, accumulation
):
    # The last batch of an epoch is a single pair: most processes and most of the accumulated batches get nothing.
    nsp(
        train_file=train_text,
        validation_file=validation_text,
        processes=processes,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **CURVE,
    ).checked()
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained), rtol=0, atol=1e-4)
    for now, then in zip(read_log(tmp_path / "out", "eval_loss"), read_log(trained, "eval_loss"), strict=True):
        assert (now["step"], now["epoch"]) == (then["step"], then["epoch"])
        assert now["eval_loss"] == pytest.approx(then["eval_loss"], abs=1e-4)
    assert_weights_agree(load_file(tmp_path / "out" / "model.safetensors"), load_file(trained / "model.safetensors"))


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-4),
        ({"dataloader_num_workers": 2}, 0),
    ],
    ids=str,
)
def test_what_changes_speed_or_memory_changes_no_loss(
    nsp, trained, train_text, validation_text, tmp_path, flags, tolerance
):
    nsp(
        train_file=train_text,
        validation_file=validation_text,
        per_device_train_batch_size=8,
        **CURVE,
        **flags,
    ).checked()
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained), rtol=0, atol=tolerance)


@pytest.fixture(scope="session")
def one_task(tmp_path_factory, tiny_pair_bert, train_text):
    """(settings, losses) of a short run."""
    settings = {**ALIKE, **CURVE, "model": tiny_pair_bert, "train_file": train_text}
    settings |= {"max_steps": 6, "learning_rate": 1e-3, "validation_split_percentage": 0}
    folder = tmp_path_factory.mktemp("one_task")
    Run("run_nsp.py", settings | {"output_dir": folder / "out"}, folder).wait().checked()
    return settings, losses_of(folder / "out")


@pytest.mark.parametrize(
    "flags",
    [
        {"objective": "sop"},
        {"seed": 7},
        {"sentences_per_document": 2},
        {"document_separator": "line", "sentence_per_line": False},
        {"config_overrides": "hidden_dropout_prob=0.1"},
        {"max_train_samples": 30},
    ],
    ids=str,
)
def test_what_is_another_task_gives_another_curve(nsp, one_task, tmp_path, flags):
    settings, expected = one_task
    nsp(**(settings | flags)).checked()
    losses = losses_of(tmp_path / "out")
    assert np.isfinite(losses).all()
    assert np.abs(np.subtract(losses, expected)).max() > 1e-3


def test_it_learns_what_tells_two_kinds_of_document_apart(nsp, tmp_path):
    # A document of letters or one of numbers: B of the other kind is not next, so three pairs in four can be told.
    rng = np.random.default_rng(0)
    kinds = [["a", "b", "c", "d", "e"], ["1", "2", "3", "4", "5"]]
    documents = [[" ".join(rng.choice(kinds[n % 2], 3)) for _ in range(9)] for n in range(100)]
    train = write_documents(tmp_path / "train.txt", documents[:80])
    held_out = write_documents(tmp_path / "held_out.txt", documents[80:])
    settings = {"sentence_per_line": True, "learning_rate": 1e-3, "num_train_epochs": 8, "max_seq_length": 16}
    nsp(train_file=train, validation_file=held_out, **settings, **NO_DROPOUT).checked()
    results = read_results(tmp_path / "out")
    assert results["initial_eval_accuracy"] < 0.6
    assert results["eval_accuracy"] > 0.65  # of 160 pairs: 3.8 standard errors above chance
    assert results["eval_loss"] < math.log(2) - 0.1


# ---------------------------------------------------------------- judging


PAIRS = [
    ("The value of the expression is an integer.", "It is printed without a sign."),
    ("A class is defined by its body.", "Each name is looked up in the namespace, and so on, until it is found. " * 4),
    ("“Quoted, with a comma”, and a tab?", "Überall: 日本"),
    ("a", "b"),
    ("The first, the second.", "The third."),
]
LABELS = [0, 1, 1, 0, 0]


@torch.no_grad()
def plain_judgements(folder, pairs):
    """Scores by transformers alone, one pair at a time: a list of (2,) tensors."""
    model = BertForNextSentencePrediction.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = (tokenizer(*pair, truncation=True, max_length=LENGTH, return_tensors="pt") for pair in pairs)
    return [model(**pair).logits[0] for pair in inputs]


def write_pairs(path, pairs, labels=None):
    """Write pairs as the ending of the path says."""
    rows = [{"sentence_a": a, "sentence_b": b} for a, b in pairs]
    for row, label in zip(rows, labels or [], strict=labels is not None):
        row["label"] = label
    kind, text = path.name.removesuffix(".gz").rsplit(".")[-1], io.StringIO()
    if kind == "jsonl":
        text.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif kind == "json":
        json.dump(rows, text)
    else:
        table = csv.DictWriter(text, rows[0].keys(), delimiter={"csv": ",", "tsv": "\t"}[kind])
        table.writeheader()
        table.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def predictions_of(output_dir):
    lines = (output_dir / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "labelled", "flags"),
    [
        ("pairs.tsv", True, {}),
        ("pairs.tsv", False, {}),
        ("pairs.csv", True, {"per_device_eval_batch_size": 2}),
        ("pairs.csv.gz", False, {}),
        ("pairs.jsonl", True, {"processes": 2}),
        ("pairs.jsonl", False, {"per_device_eval_batch_size": 1}),
        ("pairs.json", True, {}),
    ],
    ids=str,
)
def test_pairs_of_a_table_are_judged_as_transformers_does(nsp, tiny_pair_bert, tmp_path, name, labelled, flags):
    path = write_pairs(tmp_path / name, PAIRS, LABELS if labelled else None)
    done = nsp(test_file=path, **flags).checked()
    assert f"{len(PAIRS)} rows are in {tmp_path / 'out' / 'predictions.jsonl'}" in done.out
    assert "1 of 5 pairs are longer than --max_seq_length" in done.out
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair_bert)
    tokens = [sum(len(tokenizer.tokenize(text)) for text in pair) for pair in PAIRS]
    expected, rows = plain_judgements(tiny_pair_bert, PAIRS), predictions_of(tmp_path / "out")
    assert {row["verdict"] for row in rows} == {"is next", "not next"}
    for i, (row, scores) in enumerate(zip(rows, expected, strict=True)):
        assert (row["sentence_a"], row["sentence_b"]) == PAIRS[i]
        assert row.get("label") == (LABELS[i] if labelled else None)
        assert [row["score_is_next"], row["score_not_next"]] == pytest.approx(scores.tolist(), abs=1e-5)
        assert row["probability"] == pytest.approx(scores.softmax(dim=-1)[0].item(), abs=1e-5)
        assert row["verdict"] == ["is next", "not next"][scores.argmax()]
        assert row["tokens_cut"] == max(0, tokens[i] + 3 - LENGTH)
    if labelled:
        results = read_results(tmp_path / "out")
        assert_scores_agree(results, scores_by_hand(expected, LABELS, "predict_"))
        assert all(name.startswith("predict_") for name in results)
    else:
        assert not (tmp_path / "out" / "all_results.json").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_judged_at_the_end_of_a_training_run_it_is_the_trained_model_that_judges(nsp, train_text, tmp_path):
    path = write_pairs(tmp_path / "pairs.tsv", PAIRS, LABELS)
    settings = {"train_file": train_text, "test_file": path, "max_steps": 4, "learning_rate": 1e-3}
    done = nsp(**settings, sentence_a=PAIRS[0][0], sentence_b=PAIRS[0][1]).checked()
    expected = plain_judgements(tmp_path / "out", PAIRS)
    results = read_results(tmp_path / "out")
    assert_scores_agree(results, scores_by_hand(expected, LABELS, "predict_"))
    assert {"eval_loss", "initial_eval_loss", "train_loss", "predict_accuracy"} <= results.keys()
    before, after = (f"{results[name]:.4f}" for name in ("initial_eval_loss", "eval_loss"))
    assert re.search(f"^eval_loss +{before} +{after}$", done.out, re.MULTILINE)
    assert re.search(f"^predict_loss +- +{results['predict_loss']:.4f}$", done.out, re.MULTILINE)
    assert_verdict(done.out, *PAIRS[0], expected[0])


def assert_verdict(out, sentence_a, sentence_b, scores):
    """The verdict stands there in words, and agrees with the scores of transformers."""
    assert f"A: {sentence_a}\nB: {sentence_b}\n" in out
    chances = scores.softmax(dim=-1).tolist()
    words = ["is the next sentence", "is not the next sentence"][scores.argmax()]
    (said,) = re.findall(r"Verdict: B (.*), with probability ([\d.]+)", out)
    assert (said[0], float(said[1])) == (words, pytest.approx(max(chances), abs=6e-4))
    lines = re.findall(r"label (\d), (is next|not next) +score ([+-][\d.]+) +probability ([\d.]+)", out)
    assert [line[:2] for line in lines] == [("0", "is next"), ("1", "not next")]
    assert [float(line[2]) for line in lines] == pytest.approx(scores.tolist(), abs=6e-4)
    assert [float(line[3]) for line in lines] == pytest.approx(chances, abs=6e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_one_pair_gets_a_verdict_in_words_and_nothing_is_written(nsp, tiny_pair_bert, tmp_path, processes):
    expected = plain_judgements(tiny_pair_bert, PAIRS)
    for number in {scores.argmax().item(): i for i, scores in enumerate(expected)}.values():  # one of each verdict
        a, b = PAIRS[number][0], PAIRS[number][1].strip()
        done = nsp(sentence_a=a, sentence_b=b, processes=processes).checked()
        assert_verdict(done.out, a, b, expected[number])
        assert "random" not in done.out
        assert not (tmp_path / "out").exists()


def test_a_pair_that_is_cut_is_said_to_be(nsp):
    asked = {"sentence_a": "the " * 20, "sentence_b": "the " * 9}
    out = nsp(max_seq_length=24, **asked).checked().out
    assert "1 of 1 pairs are longer than --max_seq_length" in out
    assert "--max_seq_length" not in nsp(max_seq_length=32, **asked).checked().out


def test_a_verdict_of_a_head_at_random_is_said_to_say_nothing(nsp, tiny_bert):
    done = nsp(model=tiny_bert, sentence_a="It rained.", sentence_b="The street was wet.").checked()
    assert "cls.seq_relationship" in re.search(r"Model  .*random.*", done.out)[0]
    assert re.search("Careful: .*random", done.out)


FAULTY = {
    "column.tsv": ("sentence_a\ttext\nA\tB\n", ["column.tsv, line 2", "'sentence_b'", "sentence_a, text"]),
    "empty.tsv": ("sentence_a\tsentence_b\nA\tB\nA\t \n", ["empty.tsv, line 3", "sentence_b", "empty"]),
    "empty.jsonl": ('{"sentence_a": "", "sentence_b": "B"}\n', ["empty.jsonl, line 1", "sentence_a", "empty"]),
    "number.jsonl": ('{"sentence_a": "A", "sentence_b": 3}\n', ["number.jsonl, line 1", "sentence_b", "'3'"]),
    "null.jsonl": ('{"sentence_a": "A", "sentence_b": null}\n', ["null.jsonl, line 1", "sentence_b"]),
    "label.csv": ("sentence_a,sentence_b,label\nA,B,1\nA,B,2\n", ["label.csv, line 3", "label", "'2'", "0 (is next)"]),
    "labels.csv": ("sentence_a,sentence_b,label\nA,B,1\nA,B,\n", ["labels.csv, line 3", "label", "''"]),
    "half.jsonl": ('{"sentence_a": "A \\ud83d b", "sentence_b": "B"}\n', ["half.jsonl, line 1", "sentence_a"]),
    "words.tsv": ("sentence_a\tsentence_b\tlabel\nA\tB\tis next\n", ["words.tsv, line 2", "label", "'is next'"]),
    "some.jsonl": (
        '{"sentence_a": "A", "sentence_b": "B", "label": 0}\n{"sentence_a": "A", "sentence_b": "B"}\n',
        ["some.jsonl, line 2", "label"],
    ),
    "uneven.csv": ("sentence_a,sentence_b\nA,B\nA,B,C\n", ["uneven.csv, line 3", "2 columns", "found 3"]),
    "cut.jsonl": ('{"sentence_a": "A", "sentence_b": "B"}\n{"sentence_a', ["cut.jsonl, line 2", "JSON"]),
    "header.csv": ("sentence_a,sentence_b\n", ["header.csv", "no pairs"]),
    "nothing.tsv": ("", ["nothing.tsv", "no pairs"]),
    "pairs.txt": ("A\tB\n", ["pairs.txt", "CSV", "sentence_a"]),
}


def assert_one_message(done, fragments):
    assert done.status == 2, done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.count("error:") == 1
    message = done.err.rstrip().splitlines()[-1]
    assert message.startswith("run_nsp.py: error: ")
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_row_of_pairs_is_named_by_file_and_line(nsp, tmp_path, name):
    content, fragments = FAULTY[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert_one_message(nsp(test_file=name), fragments)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("processes", [1, 2])
def test_faulty_rows_may_be_skipped_and_are_listed(nsp, tiny_pair_bert, tmp_path, processes):
    rows = [f"{a},{b},{label}" for a, b, label in [("A one", "B one", 0), ("", "B", 1), ("A two", "B two", 1)]]
    rows += ["A,B,7", "A,B", "A three,B three,1"]
    (tmp_path / "pairs.csv").write_text("\n".join(["sentence_a,sentence_b,label", *rows, ""]), encoding="utf-8")
    done = nsp(test_file="pairs.csv", on_bad_row="skip", processes=processes).checked()
    for name in ("predictions.jsonl", "skipped_rows.jsonl"):
        assert done.out.count(f"3 rows are in {tmp_path / 'out' / name}") == 1
    lines = (tmp_path / "out" / "skipped_rows.jsonl").read_text(encoding="utf-8").splitlines()
    skipped = [json.loads(line) for line in lines]
    assert [re.search(r"pairs.csv, line (\d)", row["place"])[1] for row in skipped] == ["3", "5", "6"]
    assert all(word in row["reason"] for word, row in zip(("empty", "label", "columns"), skipped, strict=True))
    assert [row["sentence_a"] for row in predictions_of(tmp_path / "out")] == ["A one", "A two", "A three"]
    pairs = [(f"A {n}", f"B {n}") for n in ("one", "two", "three")]
    expected = scores_by_hand(plain_judgements(tiny_pair_bert, pairs), [0, 1, 1], "predict_")
    assert_scores_agree(read_results(tmp_path / "out"), expected)


def test_what_only_judges_leaves_its_predictions_beside_the_model_that_lies_there(nsp, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    path = write_pairs(tmp_path / "pairs.jsonl", PAIRS[:2], LABELS[:2])
    path.write_text(path.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    expected = scores_by_hand(plain_judgements(trained, PAIRS[:2]), LABELS[:2], "predict_")
    for number in (1, 2):
        nsp(model=out, test_file=path, on_bad_row="skip").checked()
        folder = out / f"eval-{number}"
        assert {path.name for path in folder.iterdir()} >= {"predictions.jsonl", "skipped_rows.jsonl"}
        assert [(row["sentence_a"], row["sentence_b"]) for row in predictions_of(folder)] == PAIRS[:2]
        assert_scores_agree(read_results(folder), expected)
    nsp(model=out, sentence_a="A", sentence_b="B").checked()  # which leaves nothing
    left = {path: content for path, content in contents(out).items() if path.parts[0] not in ("eval-1", "eval-2")}
    assert left == contents(trained)


def test_a_run_that_only_judges_replaces_no_results_where_an_earlier_folder_is_gone(nsp, trained, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    for _ in range(2):
        nsp(model=out, test_file=write_pairs(tmp_path / "pairs.tsv", PAIRS, LABELS)).checked()
    shutil.rmtree(out / "eval-1")
    before = contents(out)
    nsp(model=out, test_file=write_pairs(tmp_path / "pairs.tsv", PAIRS[:1], LABELS[:1])).checked()
    assert {path: content for path, content in contents(out).items() if path in before} == before


# ---------------------------------------------------------------- mistakes


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, tiny_bert, train_text):
    """A folder of documents and models that make no pairs."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copy(train_text, folder / "good.txt")
    write_documents(folder / "one.txt", [["The first sentence. The second one. Here is a third. This is the last."]])
    write_documents(folder / "single.txt", [["A single sentence."], ["Another one alone."], ["And a third."]])
    write_documents(folder / "last.txt", [["First of two. Second of two."], ["A single sentence."]])
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    small = {"vocab_size": len(tokenizer), "max_position_embeddings": 70, "pad_token_id": tokenizer.pad_token_id}
    roberta = RobertaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, **small)
    distilbert = DistilBertConfig(dim=8, n_layers=1, n_heads=1, hidden_dim=8, **small)
    for name, model in (("roberta", RobertaForMaskedLM(roberta)), ("distilbert", DistilBertForMaskedLM(distilbert))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


WAYS_ON = ["--document_separator", "--sentences_per_document", "--objective sop"]
MISTAKES = {
    "one document": (
        {"train_file": "one.txt", "validation_split_percentage": 0}, ["one.txt", "one document", *WAYS_ON]),
    "one document to validate on": (
        {"validation_file": "one.txt"}, ["one.txt", "validation part", "one document", *WAYS_ON]),
    "one document is left": ({"validation_file": "last.txt"}, ["last.txt", "one document", *WAYS_ON]),
    "too few to hold some out": (
        {"train_file": "one.txt", "document_separator": "line"}, ["one.txt", "--validation_file"]),
    "single sentences": (
        {"train_file": "single.txt", "validation_split_percentage": 0},
        ["single.txt", "no document of two sentences", "3 of one", "--document_separator"]),
    "single sentences, sop": (
        {"validation_file": "single.txt", "objective": "sop"}, ["single.txt", "no document of two sentences"]),
    "roberta": ({"model": "roberta"}, ["--model roberta", "no head", "bert, ernie", "mobilebert"]),
    "distilbert": ({"model": "distilbert"}, ["--model distilbert", "no head", "bert, ernie", "mobilebert"]),
    "A without B": (
        {"train_file": None, "sentence_a": "A"}, ["--sentence_b is missing", "--sentence_a and --sentence_b", "both"]),
    "B without A": (
        {"train_file": None, "sentence_b": "B"}, ["--sentence_a is missing", "--sentence_a and --sentence_b", "both"]),
    "empty A": ({"train_file": None, "sentence_a": " ", "sentence_b": "B"}, ["--sentence_a is missing, empty"]),
    "B in another encoding": (
        {"train_file": None, "sentence_a": "A", "sentence_b": "caf\udce9"}, ["--sentence_b is", "not UTF-8"]),
    "length 4": ({"max_seq_length": 4}, ["--max_seq_length is 4", "at least 5"]),
    "longer than the model": ({"max_seq_length": 65}, ["--max_seq_length is 65", "at most 64"]),
    "documents of one sentence": ({"sentences_per_document": 1}, ["--sentences_per_document is 1", "at least 2"]),
    "unknown objective": ({"objective": "mlm"}, ["--objective", "nsp", "sop"]),
    "segments": ({"pair_unit": "segment"}, ["--pair_unit is not a flag of this script", "run_pretraining.py makes"]),
    "short segments": ({"short_seq_prob": 0}, ["--short_seq_prob is not a flag of this script", "run_pretraining.py"]),
    "misspelt flag": ({"objectives": "sop"}, ["--objectives is not a flag", "did you mean --objective?"]),
    "missing file": ({"train_file": "missing.txt"}, ["--train_file missing.txt", "no such file"]),
    "missing pairs": ({"test_file": "missing.tsv"}, ["--test_file missing.tsv", "no such file"]),
    "nothing to judge": ({"do_predict": True}, ["--do_predict", "--test_file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_costs_nothing_that_was_there(nsp, inputs, tiny_pair_bert, tmp_path, name):
    flags, fragments = MISTAKES[name]
    shutil.copytree(tiny_pair_bert, tmp_path / "out")
    before = contents(tmp_path / "out")
    settings = {"train_file": None if "validation_file" in flags else "good.txt", "overwrite_output_dir": True}
    done = nsp(folder=inputs, **(settings | {"max_steps": 2} | flags))
    assert_one_message(done, fragments)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "name", ["one document", "single sentences", "roberta", "A without B", "missing pairs"]
)
def test_two_processes_say_it_once(nsp, inputs, name):
    flags, fragments = MISTAKES[name]
    done = nsp(folder=inputs, processes=2, **({"train_file": "good.txt", "max_steps": 2} | flags))
    assert_one_message(done, fragments)


def test_documents_of_one_sentence_are_left_out_and_counted_once(nsp, tmp_path):
    documents = [["First of two. Second of two."], ["Alone."], ["One here. And another. Three."], ["Alone again."]]
    write_documents(tmp_path / "text.txt", documents)
    for processes in (1, 2):
        done = nsp(validation_file="text.txt", processes=processes, output_dir=tmp_path / str(processes)).checked()
        (line,) = re.findall("^Documents +validation: .*", done.out, re.MULTILINE)
        assert line.split(": ")[1].startswith("2 in text.txt, with 5 sentences, ")
        assert line.endswith("; 2 of one sentence are left out")
        assert done.out.count("left out") == 1
        (line,) = re.findall("^Validation .*", done.out, re.MULTILINE)
        assert line.split(maxsplit=1)[1] == "3 pairs an epoch of text.txt"


@pytest.mark.parametrize("flags", [{"objective": "sop"}, {"sentences_per_document": 2}], ids=str)
def test_one_document_does_for_sentence_order_or_where_it_is_cut(nsp, inputs, tmp_path, flags):
    settings = {"train_file": "one.txt", "validation_split_percentage": 0, "max_steps": 3, **flags}
    nsp(folder=inputs, **settings).checked()
    assert math.isfinite(read_results(tmp_path / "out")["train_loss"])


# ---------------------------------------------------------------- what a run leaves


def test_the_results_carry_the_promised_names(trained):
    results = read_results(trained)
    scores = set(scores_by_hand([torch.zeros(2)], [0]))
    assert results.keys() == scores | {f"initial_{name}" for name in scores} | {
        "step",
        "epoch",
        "train_loss",
        "train_runtime",
        "train_samples_per_second",
    }
    assert results["train_samples_per_second"] > 0


def test_the_model_loads_whole_and_nothing_it_left_runs_code(trained):
    model, info = BertForNextSentencePrediction.from_pretrained(trained, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.hidden_dropout_prob == 0  # as --config_overrides asked
    suffixes = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".md", ".pt", ".safetensors"}
    for path in trained.rglob("*.pt"):
        assert path.name == "optimizer.pt"
        assert "state" in torch.load(path, weights_only=True)["optimizer"]


def test_the_model_card_tells_of_data_settings_and_scores(trained):
    card = (trained / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    # No tag of a task: the Hub's "text-classification" would load another head, at random.
    assert front["library_name"] == "transformers" and "pipeline_tag" not in front
    results = read_results(trained)
    assert f"{results['initial_eval_loss']:.4f} | {results['eval_loss']:.4f}" in card
    assert "train.txt" in card and "next sentence prediction" in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert (settings["learning_rate"], settings["objective"], settings["seed"]) == (CURVE["learning_rate"], "nsp", 42)


def test_the_log_begins_with_the_scores_before_training(trained):
    log = read_log(trained)
    assert [entry["step"] for entry in log if "initial_eval_loss" in entry] == [0]
    steps = [entry["step"] for entry in log if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1))
    assert all({"loss", "learning_rate", "grad_norm", "epoch"} <= entry.keys() for entry in log if "loss" in entry)


def test_a_second_run_in_the_same_folder_is_refused(nsp, trained, train_text, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = contents(tmp_path / "out")
    done = nsp(train_file=train_text, max_steps=2)
    assert_one_message(done, ["in use", "--resume_from_checkpoint", "--overwrite_output_dir"])
    assert contents(tmp_path / "out") == before


def test_settings_of_the_config_file_hold_unless_typed(nsp, train_text, tmp_path):
    settings = {"train_file": [str(train_text)], "sentences_per_document": 3, "objective": "sop", "max_steps": 3}
    settings |= {"lr_scheduler_type": "constant", "learning_rate": "1e-3", "eval_strategy": "no"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    nsp(config="run.yaml", max_steps=2, logging_steps=1).checked()
    log = read_log(tmp_path / "out", "loss")
    assert [(entry["step"], entry["learning_rate"]) for entry in log] == [(1, 1e-3), (2, 1e-3)]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "sentence order prediction" in card and "sentences_per_document: 3" in card
