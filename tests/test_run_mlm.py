"""run_mlm.py as its users meet it: the command line, what it prints, and the files that it leaves behind."""

import base64
import csv
import gzip
import http.server
import json
import math
import os
import re
import shutil
import threading
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import (
    ALIKE,
    ROOT,
    Run,
    accelerate_launch,
    command_line,
    contents,
    read_log,
    read_results,
    run_fresh,
    run_script,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast, pipeline

from utils.masks import mask_tokens

NO_DROPOUT = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
LENGTH = 32  # of the examples in most tests, in tokens


def write_lines(path, lines, encoding="utf-8", newline="\n"):
    path.write_bytes(newline.join([*lines, ""]).encode(encoding))
    return path


@pytest.fixture
def mlm(tiny_bert, tmp_path):
    """run_mlm.py on the tiny model, as a process of its own: mlm(flag=value, …) gives a helpers.Done."""
    defaults = {**ALIKE, "model": tiny_bert, "output_dir": tmp_path / "out", "max_seq_length": LENGTH}
    return partial(run_script, "run_mlm.py", defaults, folder=tmp_path)


@pytest.fixture(scope="session")
def lines57(tmp_path_factory, prose):
    """A file of 57 lines, in global batches of 8 seven whole ones and a last one of a single line."""
    return write_lines(tmp_path_factory.mktemp("train") / "lines57.txt", prose[100:157])


@pytest.fixture(scope="session")
def lines61(tmp_path_factory, prose):
    return write_lines(tmp_path_factory.mktemp("validation") / "lines61.txt", prose[300:361])


CURVE = {
    "line_by_line": True,
    "num_train_epochs": 2,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    **NO_DROPOUT,
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_bert, lines57, lines61):
    """Output folder of a plain run: 57 lines, twice, in batches of 8, dropout off. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {
        **ALIKE,
        "model": tiny_bert,
        "train_file": lines57,
        "validation_file": lines61,
        "test_file": lines57,
        "max_seq_length": LENGTH,
        "per_device_train_batch_size": 8,
        **CURVE,
        "output_dir": folder / "out",
        "save_strategy": "epoch",
    }
    Run("run_mlm.py", settings, folder).wait().checked()
    return folder / "out"


# ---------------------------------------------------------------- scores


def line_examples(tokenizer, lines, length):
    """Examples of --line_by_line: the tokenizer's own way to cut a line off."""
    return [tokenizer(line, truncation=True, max_length=length)["input_ids"] for line in lines]


def block_examples(tokenizer, documents, length):
    """Blocks of running text, a [SEP] between two documents, the rest dropped."""
    stream = []
    for document in documents:
        stream += [tokenizer.sep_token_id] * bool(stream)
        for paragraph in document:
            stream += tokenizer(paragraph, add_special_tokens=False)["input_ids"]
    inner = length - 2
    return [
        [tokenizer.cls_token_id, *stream[at : at + inner], tokenizer.sep_token_id]
        for at in range(0, len(stream) - inner + 1, inner)
    ]


def mask(tokenizer, ids, seed, epoch, example_id, mask_prob=0.15):
    ids = np.array(ids)
    special = np.isin(ids, tokenizer.all_special_ids)
    return mask_tokens(
        ids,
        special,
        mask_id=tokenizer.mask_token_id,
        vocab_size=len(tokenizer),
        seed=seed,
        epoch=epoch,
        example_id=example_id,
        mask_prob=mask_prob,
    )


@torch.no_grad()
def plain_scores(folder, examples, mask_prob=0.15):
    """Scores by transformers alone: one example at a time, without padding, scores for all positions."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    nats = hits = count = 0
    for i, ids in enumerate(examples):
        masked, labels = map(torch.from_numpy, mask(tokenizer, ids, 0, 0, i, mask_prob))
        logits = model(masked[None]).logits[0]  # (seq, vocab)
        nats += F.cross_entropy(logits, labels, reduction="sum").item()
        hits += (logits.argmax(dim=-1) == labels).sum().item()
        count += (labels != -100).sum().item()
    return {"eval_loss": nats / count, "perplexity": math.exp(nats / count), "eval_accuracy": hits / count}


def plain_curve(folder, examples, batch_size, epochs, learning_rate, seed=42, mask_prob=0.15):
    """Train by transformers and torch alone, without dropout: (losses of all updates, the model)."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForMaskedLM.from_pretrained(folder, **off).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    updates, losses = math.ceil(len(examples) / batch_size) * epochs, []
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(examples))
        for start in range(0, len(order), batch_size):
            nats = count = 0
            for i in order[start : start + batch_size].tolist():
                masked, labels = map(torch.from_numpy, mask(tokenizer, examples[i], seed, epoch, i, mask_prob))
                nats += F.cross_entropy(model(masked[None]).logits[0], labels, reduction="sum")
                count += (labels != -100).sum().item()
            loss = nats / max(count, 1)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - len(losses) / updates)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, model


@pytest.fixture(scope="session", params=["blocks", "lines"])
def scored(request, tmp_path_factory, tiny_bert, prose):
    """(file, flags, scores): a file with an odd number of examples, and their scores by plain_scores."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    path = tmp_path_factory.mktemp("scored") / "text.txt"
    if request.param == "lines":
        examples = line_examples(tokenizer, prose[300:361], LENGTH)
        assert len({len(ids) for ids in examples}) > 5
        write_lines(path, prose[300:361])
    else:
        documents = [prose[n : n + 3] for n in range(300, 330, 3)]
        while len(examples := block_examples(tokenizer, documents, LENGTH)) % 2 == 0:
            documents.append([prose[330 + len(documents)]])
        write_lines(path, [line for document in documents for line in (*document, "")])
    assert len(examples) > 32
    assert len(examples) % 2 == 1
    return path, {"line_by_line": request.param == "lines"}, plain_scores(tiny_bert, examples)


@pytest.mark.parametrize(("batch_size", "processes"), [(4, 1), (8, 1), (32, 1), (4, 2), (8, 3)])
def test_scores_are_those_of_a_plain_computation_for_any_batch_size_and_process_count(
    mlm, scored, tmp_path, batch_size, processes
):
    path, layout, expected = scored
    mlm(validation_file=path, per_device_eval_batch_size=batch_size, processes=processes, **layout).checked()
    results = read_results(tmp_path / "out")
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert results["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert results["eval_accuracy"] == expected["eval_accuracy"]


def test_perplexity_of_a_uniform_model_is_the_vocabulary_size(mlm, tiny_bert, lines61, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    model.config.tie_word_embeddings = False  # so that the encoder keeps its embeddings
    model.cls.predictions.decoder.weight = torch.nn.Parameter(torch.zeros_like(model.cls.predictions.decoder.weight))
    torch.nn.init.zeros_(model.cls.predictions.bias)
    model.save_pretrained(tmp_path / "uniform")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(tmp_path / "uniform")
    mlm(model=tmp_path / "uniform", validation_file=lines61).checked()
    assert read_results(tmp_path / "out")["perplexity"] == pytest.approx(len(tokenizer), rel=1e-5)


def test_every_seed_is_scored_on_the_same_held_out_rows(mlm, lines57, tmp_path):
    scores = {}
    for seed in (1, 2):
        done = mlm(train_file=lines57, line_by_line=True, max_steps=2, seed=seed, output_dir=tmp_path / f"seed{seed}")
        assert "Train       51 lines" in done.checked().out  # 10% of 57 are held out, and not trained on
        assert "Validation  6 lines" in done.out
        scores[seed] = read_results(tmp_path / f"seed{seed}")
    mlm(train_file=lines57, line_by_line=True, do_eval=True, seed=3).checked()
    assert (
        scores[1]["initial_eval_loss"] == scores[2]["initial_eval_loss"] == read_results(tmp_path / "out")["eval_loss"]
    )
    assert scores[1]["eval_loss"] != scores[2]["eval_loss"]


def test_a_sample_is_drawn_from_the_whole_file(mlm, lines57, lines61, tmp_path):
    done = mlm(
        train_file=lines57,
        validation_file=lines61,
        test_file=lines57,
        line_by_line=True,
        max_steps=1,
        max_train_samples=20,
        max_eval_samples=9,
        max_predict_samples=5,
    ).checked()
    assert [int(n) for n in re.findall(r"^(?:Train|Validation|Test) +(\d+) lines", done.out, re.MULTILINE)] == [
        20,
        9,
        5,
    ]
    sample = read_results(tmp_path / "out")["initial_eval_loss"]
    head = write_lines(tmp_path / "head.txt", lines61.read_text(encoding="utf-8").splitlines()[:9])
    mlm(validation_file=head, line_by_line=True, output_dir=tmp_path / "head").checked()
    assert read_results(tmp_path / "head")["eval_loss"] != sample


# ---------------------------------------------------------------- curves


def losses_of(output_dir):
    return [entry["loss"] for entry in read_log(output_dir, "loss")]


def assert_weights_agree(weights, expected):
    """Hold a state dict against another, to what 16 updates make of the last digits of a gradient."""
    assert weights.keys() <= expected.keys()
    for name in weights:
        # Attention does not depend on the bias of its keys: that gradient is noise, which Adam makes large.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(
                weights[name], expected[name], rtol=0, atol=5e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_loss_curve_is_that_of_a_plain_loop(trained, tiny_bert, lines57):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    examples = line_examples(tokenizer, lines57.read_text(encoding="utf-8").splitlines(), LENGTH)
    losses, model = plain_curve(tiny_bert, examples, 8, epochs=2, learning_rate=CURVE["learning_rate"])
    assert len(losses) == 16
    assert losses[-1] < losses[0] - 0.3  # it learns, so that equal curves say something
    np.testing.assert_allclose(losses_of(trained), losses, rtol=0, atol=1e-4)
    assert_weights_agree(load_file(trained / "model.safetensors"), model.state_dict())


@pytest.mark.parametrize(("processes", "batch_size", "accumulation"), [(1, 2, 4), (2, 4, 1), (2, 1, 4), (4, 2, 1)])
def test_the_curve_is_the_same_for_any_split_of_the_global_batch(
    mlm, trained, lines57, lines61, tmp_path, processes, batch_size, accumulation
):
    # The last batch of an epoch is a single line: most processes and most of the accumulated batches get nothing.
    mlm(
        train_file=lines57,
        validation_file=lines61,
        processes=processes,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **CURVE,
    ).checked()
    assert len(losses_of(trained)) == 16
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained), rtol=0, atol=1e-4)
    for now, then in zip(read_log(tmp_path / "out", "eval_loss"), read_log(trained, "eval_loss"), strict=True):
        assert now["step"] == then["step"]
        assert now["eval_loss"] == pytest.approx(then["eval_loss"], abs=1e-4)
    assert_weights_agree(load_file(tmp_path / "out" / "model.safetensors"), load_file(trained / "model.safetensors"))


def test_accelerate_launch_on_two_processes_gives_the_curve_of_one(trained, tiny_bert, lines57, lines61, tmp_path):
    done = accelerate_launch(
        ROOT / "run_mlm.py",
        {
            **ALIKE,
            **CURVE,
            "model": tiny_bert,
            "train_file": lines57,
            "validation_file": lines61,
            "max_seq_length": LENGTH,
            "per_device_train_batch_size": 4,
            "output_dir": "out",
        },
        tmp_path,
        processes=2,
    ).checked()
    assert re.search("Running on .* 2 process", done.out)
    assert done.out.count("Running on") == 1
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-4),
        ({"dataloader_num_workers": 2}, 0),
        ({"per_device_eval_batch_size": 3}, 0),
    ],
)
def test_what_changes_speed_or_memory_changes_no_loss(mlm, trained, lines57, lines61, tmp_path, flags, tolerance):
    mlm(train_file=lines57, validation_file=lines61, per_device_train_batch_size=8, **CURVE, **flags).checked()
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "flags",
    [
        {"masking": "whole_word"},
        {"seed": 7},
        {"mlm_probability": 0.3},
        {"weight_decay": 5},
        {"mask_replace_prob": 0.1},
        {"random_replace_prob": 0.2},
        {"max_grad_norm": 0},
        {"config_overrides": "hidden_dropout_prob=0.1"},
        {"lr_scheduler_type": "cosine"},
        {"learning_rate": 1e-3},
        {"warmup_steps": 3},
    ],
    ids=str,
)
def test_what_is_another_task_gives_another_curve(mlm, trained, lines57, lines61, tmp_path, flags):
    mlm(train_file=lines57, validation_file=lines61, per_device_train_batch_size=8, **(CURVE | flags)).checked()
    losses = losses_of(tmp_path / "out")
    assert np.isfinite(losses).all()
    assert np.abs(np.subtract(losses, losses_of(trained))).max() > 1e-3


def test_dropout_differs_from_update_to_update(mlm, prose, tmp_path):
    # One line of which all is hidden, and nothing learned from it: what is left to differ is dropout.
    settings = {"mlm_probability": 1, "mask_replace_prob": 1, "random_replace_prob": 0, "learning_rate": 0}
    text = write_lines(tmp_path / "line.txt", prose[:1])
    distinct = {}
    for name, flags in {"on": {"config_overrides": None}, "off": {}}.items():
        flags = CURVE | settings | {"num_train_epochs": 6, "validation_split_percentage": 0} | flags
        mlm(train_file=text, output_dir=tmp_path / name, **flags).checked()
        distinct[name] = len(set(losses_of(tmp_path / name)))
    assert distinct == {"on": 6, "off": 1}


def test_bfloat16_ends_near_float32(mlm, trained, lines57, lines61, tmp_path):
    done = mlm(
        train_file=lines57,
        validation_file=lines61,
        per_device_train_batch_size=8,
        **(CURVE | {"mixed_precision": "bf16"}),
    ).checked()
    assert re.search("Running on .* bf16", done.out)
    results, expected = read_results(tmp_path / "out"), read_results(trained)
    assert results["eval_loss"] != expected["eval_loss"]
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], rel=0.01)
    assert load_file(tmp_path / "out" / "model.safetensors")["cls.predictions.bias"].dtype == torch.float32


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_batch_in_which_nothing_is_masked_does_no_harm(mlm, tiny_bert, tmp_path, accumulation):
    lines = [f"{word} is a name ." for word in "abcdefghijklmn"]
    examples = line_examples(AutoTokenizer.from_pretrained(tiny_bert), lines, LENGTH)
    mlm(
        train_file=write_lines(tmp_path / "short.txt", lines),
        line_by_line=True,
        validation_split_percentage=0,
        mlm_probability=0.08,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        logging_steps=1,
        learning_rate=1e-3,
        **NO_DROPOUT,
    ).checked()
    expected, model = plain_curve(tiny_bert, examples, accumulation, epochs=2, learning_rate=1e-3, mask_prob=0.08)
    assert 0 in expected  # an update without any masked token
    assert len(set(expected)) > 4  # and several with some
    np.testing.assert_allclose(losses_of(tmp_path / "out"), expected, rtol=0, atol=1e-4)
    assert all(math.isfinite(entry["grad_norm"]) for entry in read_log(tmp_path / "out", "loss"))
    assert_weights_agree(load_file(tmp_path / "out" / "model.safetensors"), model.state_dict())


LINEAR = [min(k / 4, (16 - k) / 12) for k in range(1, 17)]  # after k of 16 updates, 4 of them warm-up


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"warmup_steps": 0.25}, LINEAR),
        ({"warmup_steps": 4}, LINEAR),
        ({}, [(16 - k) / 16 for k in range(1, 17)]),
        ({"lr_scheduler_type": "constant"}, [1] * 16),
        ({"lr_scheduler_type": "cosine"}, [(1 + math.cos(math.pi * k / 16)) / 2 for k in range(1, 17)]),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, [0.5] + [1] * 15),
        ({"max_steps": 4, "gradient_accumulation_steps": 2}, [0.75, 0.5, 0.25, 0]),  # max_steps wins over epochs
        ({"num_train_epochs": 0.5}, [0.75, 0.5, 0.25, 0]),
        ({"logging_steps": 0.25}, [0.75, 0.5, 0.25, 0]),  # a share of all updates
        ({"logging_steps": 7}, [9 / 16, 2 / 16, 0]),  # and the last one always
    ],
    ids=str,
)
def test_updates_and_learning_rate_follow_the_schedule(mlm, lines57, tmp_path, flags, expected):
    settings = {
        **CURVE,
        "train_file": lines57,
        "validation_split_percentage": 0,
        "per_device_train_batch_size": 8,
        **flags,
    }
    mlm(**settings).checked()
    logged = [entry["learning_rate"] for entry in read_log(tmp_path / "out", "loss")]
    np.testing.assert_allclose(logged, np.multiply(expected, settings["learning_rate"]), rtol=1e-6, atol=1e-12)


def test_a_logged_loss_is_the_mean_over_all_tokens_since_the_last(mlm, trained, lines57, lines61, tiny_bert, tmp_path):
    mlm(
        train_file=lines57, validation_file=lines61, per_device_train_batch_size=8, **(CURVE | {"logging_steps": 8})
    ).checked()
    tokenizer, losses = AutoTokenizer.from_pretrained(tiny_bert), losses_of(trained)
    examples = line_examples(tokenizer, lines57.read_text(encoding="utf-8").splitlines(), LENGTH)
    counts = []  # of masked tokens in each update
    for epoch in (0, 1):
        order = np.random.default_rng((42, epoch)).permutation(57)
        masked = [sum(mask(tokenizer, examples[i], 42, epoch, i)[1] != -100) for i in order]
        counts += [sum(masked[at : at + 8]) for at in range(0, 57, 8)]
    expected = [np.average(losses[at : at + 8], weights=counts[at : at + 8]) for at in (0, 8)]
    np.testing.assert_allclose(losses_of(tmp_path / "out"), expected, rtol=1e-5)
    assert read_results(tmp_path / "out")["train_loss"] == pytest.approx(np.average(losses, weights=counts), rel=1e-5)


# ---------------------------------------------------------------- data


def write_formats(folder, texts):
    """Write the same texts in every format, a document a line or a row: name to path or glob."""
    rows = [{"number": n, "text": text} for n, text in enumerate(texts)]
    paths = {name: folder / f"texts.{name}" for name in ("txt", "jsonl", "json", "csv", "tsv", "parquet")}
    write_lines(paths["txt"], texts)
    write_lines(paths["jsonl"], map(json.dumps, rows))
    paths["json"].write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        with open(paths[name], "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["number", "text"], delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    pa.parquet.write_table(pa.Table.from_pylist(rows), paths["parquet"])
    for name in list(paths):
        paths[f"{name}.gz"] = folder / f"texts.{name}.gz"
        paths[f"{name}.gz"].write_bytes(gzip.compress(paths[name].read_bytes()))
    paths["of Windows"] = write_lines(folder / "windows.txt", texts, "utf-8-sig", "\r\n")
    paths["with blank lines around"] = write_lines(folder / "blank.txt", ["", " ", *texts, "\t", ""])
    paths["without a line feed at the end"] = folder / "end.txt"
    paths["without a line feed at the end"].write_text("\n".join(texts), encoding="utf-8")
    paths["{data: []} json"] = folder / "squadlike.json"
    paths["{data: []} json"].write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    write_lines(folder / "part1.txt", texts[:17])
    write_lines(folder / "part2.txt", texts[17:])
    paths["a glob"] = folder / "part?.txt"
    paths["two files"] = [folder / "part1.txt", folder / "part2.txt"]
    return paths


@pytest.fixture(scope="session")
def formats(tmp_path_factory, tiny_bert, prose):
    texts = [*prose[300:339], 'Commas, "quotes", a\ttab, naïve café, and 日本語.']
    folder = tmp_path_factory.mktemp("formats")
    examples = block_examples(AutoTokenizer.from_pretrained(tiny_bert), [[text] for text in texts], LENGTH)
    return write_formats(folder, texts), plain_scores(tiny_bert, examples)


@pytest.mark.parametrize(
    "name",
    [
        "txt",
        "jsonl",
        "json",
        "csv",
        "tsv",
        "parquet",
        "txt.gz",
        "jsonl.gz",
        "json.gz",
        "csv.gz",
        "tsv.gz",
        "parquet.gz",
        "of Windows",
        "with blank lines around",
        "without a line feed at the end",
        "{data: []} json",
        "a glob",
        "two files",
    ],
)
def test_the_same_texts_score_the_same_in_every_format(mlm, formats, tmp_path, name):
    paths, expected = formats
    mlm(validation_file=paths[name]).checked()
    results = read_results(tmp_path / "out")
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert results["eval_accuracy"] == expected["eval_accuracy"]


def test_a_folder_with_a_data_set_scores_as_its_files_do(mlm, formats, tmp_path):
    paths, expected = formats
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        shutil.copy(paths["jsonl"], tmp_path / "set" / f"{split}.jsonl")
    mlm(dataset_name=tmp_path / "set", max_steps=1).checked()
    assert read_results(tmp_path / "out")["initial_eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)


def test_another_column_of_the_same_file_is_another_text(mlm, lines57, lines61, tmp_path):
    texts = [path.read_text(encoding="utf-8").splitlines()[:50] for path in (lines57, lines61)]
    table = write_lines(
        tmp_path / "two.jsonl", [json.dumps({"text": a, "summary": b}) for a, b in zip(*texts, strict=True)]
    )
    losses = {}
    for name, column in (("text", None), ("summary", "summary")):
        mlm(validation_file=table, text_column_name=column, output_dir=tmp_path / name).checked()
        losses[name] = read_results(tmp_path / name)["eval_loss"]
        plain = write_lines(tmp_path / f"{name}.txt", texts[name == "summary"])
        mlm(validation_file=plain, output_dir=tmp_path / f"plain {name}").checked()
        assert losses[name] == read_results(tmp_path / f"plain {name}")["eval_loss"]
    done = mlm(validation_file=table, text_column_name="title")
    assert_one_message(done, ["two.jsonl", "'title'", "text, summary"])


def test_the_same_bytes_under_another_ending_are_read_anew(mlm, prose, tmp_path):
    rows = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in prose[500:530]).encode())
    for name in ("rows.txt.gz", "rows.jsonl.gz"):
        (tmp_path / name).write_bytes(rows)
        mlm(validation_file=name, output_dir=tmp_path / name.split(".")[1]).checked()
    write_lines(tmp_path / "plain.txt", prose[500:530])
    mlm(validation_file="plain.txt").checked()
    assert read_results(tmp_path / "jsonl")["eval_loss"] == read_results(tmp_path / "out")["eval_loss"]
    assert read_results(tmp_path / "jsonl")["eval_loss"] != read_results(tmp_path / "txt")["eval_loss"]


def cached_files():
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize("processes", [1, 2])
def test_what_prepare_only_cached_is_found_by_a_later_run(mlm, tiny_bert, prose, tmp_path, processes):
    weightless = tmp_path / "weightless"  # to prepare, no model is needed
    shutil.copytree(tiny_bert, weightless)
    (weightless / "model.safetensors").unlink()
    text = write_lines(tmp_path / "text.txt", [f"{processes} {line}" for line in prose[400:440]])
    before = cached_files()
    done = mlm(model=weightless, train_file=text, prepare_only=True, processes=processes).checked()
    assert done.out.count("Train  ") == 1
    assert not (tmp_path / "out").exists()
    prepared = cached_files()
    assert len(prepared) > len(before)

    moved = Path(shutil.move(text, tmp_path / "another name.txt"))
    done = mlm(train_file=moved, processes=processes, max_steps=1).checked()
    assert "Tokenizing" not in done.err
    assert cached_files() == prepared

    moved.write_text(moved.read_text(encoding="utf-8").replace("e", "a", 1), encoding="utf-8")
    mlm(train_file=moved, do_eval=True, output_dir=tmp_path / "changed").checked()
    assert len(cached_files()) > len(prepared)

    mlm(train_file=moved, do_eval=True, overwrite_cache=True, output_dir=tmp_path / "anew").checked()
    assert read_results(tmp_path / "changed") == read_results(tmp_path / "anew")


@pytest.mark.parametrize(
    "flag", [{"max_seq_length": 24}, {"line_by_line": True}, {"validation_split_percentage": 30}], ids=str
)
def test_another_way_to_cut_the_same_file_is_not_taken_from_the_cache(mlm, lines61, tmp_path, flag):
    scores = []
    for n, flags in enumerate([{}, flag, {}]):
        mlm(train_file=lines61, do_eval=True, output_dir=tmp_path / str(n), **flags).checked()
        scores.append(read_results(tmp_path / str(n)))
    assert scores[0] == scores[2]
    assert scores[0] != scores[1]


def test_several_processes_that_tokenize_change_nothing(mlm, prose, tmp_path):
    text = write_lines(tmp_path / "text.txt", [f"Three {line}" for line in prose[440:470]])
    for workers in (None, 3):
        mlm(
            validation_file=text,
            preprocessing_num_workers=workers,
            overwrite_cache=True,
            output_dir=tmp_path / f"out{workers}",
        ).checked()
    assert read_results(tmp_path / "outNone") == read_results(tmp_path / "out3")


# ---------------------------------------------------------------- mistakes


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, tiny_bert, lines57, lines61):
    """A folder of files that are not what the script wants, next to good.txt and other.txt."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copy(lines57, folder / "good.txt")
    shutil.copy(lines61, folder / "other.txt")
    files = {
        "empty.txt": b"",
        "empty.jsonl": b"",
        "empty.csv": b"",
        "header.csv": b"text\n",
        "blank.txt": b" \n\t\n\r\n",
        "blank.jsonl": b'{"text": " "}\n',
        "latin1.txt": b"one\ntwo\ncaf\xe9 au lait\nfour\n",
        "latin1.csv": b"text\none\ncaf\xe9\n",
        "utf16.txt": "one\n".encode("utf-16"),
        "latin1.txt.gz": gzip.compress(b"one\ncaf\xe9\n"),
        "half.txt.gz": gzip.compress(b"one " * 100)[:-9],
        "plain.txt.gz": b"this is not gzip\n",
        "column.jsonl": b'{"title": "A", "body": "B"}\n',
        "column2.jsonl": b'{"text": "A"}\n{"title": "A", "body": "B"}\n',
        "column.csv": b"number,body\n1,B\n",
        "number.jsonl": b'{"text": "A"}\n\n{"text": 7}\n',
        "list.jsonl": b'["A"]\n',
        "half.jsonl": b'{"text": "A"}\n{"text": "A\n',
        "half.json": b'[{"text": "A"},\n {"text"',
        "uneven.csv": b"text,number\nA,1\nB\n",
        "quote.csv": b'text\n"A\n',
        "broken.parquet": b"PAR1 and nothing more",
        "short.txt": b"Too short.\n",
        "key.yaml": b"learning_rte: 1\n",
        "list.yaml": b"- learning_rate\n",
        "text.yaml": b"a: b: c\n",
        "value.yaml": b"learning_rate: fast\n",
        "mapping.yaml": b"text:\n  - Note: the [MASK]\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    pa.parquet.write_table(pa.table({"number": [1], "body": ["B"]}), folder / "column.parquet")
    (folder / "folder").mkdir()
    for name, rows in {"numbers": [{"text": 1}], "blanks": [{"text": " "}], "titles": [{"title": "A"}]}.items():
        (folder / name).mkdir()
        write_lines(folder / name / "train.jsonl", map(json.dumps, rows))
    for name, leave_out in {"maskless": "mask_token", "padless": "pad_token", "clsless": "cls_token"}.items():
        shutil.copytree(tiny_bert, folder / name)
        settings = json.loads((folder / name / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings = {k: v for k, v in settings.items() if k != leave_out} | {
            "tokenizer_class": "PreTrainedTokenizerFast"
        }
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.copytree(tiny_bert, folder / "damaged")
    (folder / "damaged" / "model.safetensors").write_bytes((tiny_bert / "model.safetensors").read_bytes()[:-100])
    return folder


# fmt: off
MISTAKES = {  # the flags that differ from those of a good run; what the message has to name
    "missing file": ({"train_file": "missing.txt"}, ["--train_file missing.txt", "no such file"]),
    "missing validation file": ({"validation_file": "missing.txt"}, ["--validation_file missing.txt", "no such file"]),
    "one of two files missing": ({"train_file": ["good.txt", "missing.txt"]}, ["--train_file missing.txt"]),
    "glob without match": ({"train_file": "*.nothing"}, ["--train_file *.nothing", "no such file"]),
    "directory": ({"train_file": "folder"}, ["--train_file folder", "folder", "*.txt"]),
    "empty file": ({"train_file": "empty.txt"}, ["empty.txt", "no text"]),
    "empty jsonl": ({"train_file": "empty.jsonl"}, ["empty.jsonl", "no text"]),
    "empty csv": ({"train_file": "empty.csv"}, ["empty.csv", "no text"]),
    "csv of a header alone": ({"train_file": "header.csv"}, ["header.csv", "no text"]),
    "empty validation file": ({"validation_file": "empty.txt"}, ["empty.txt", "no text"]),
    "white space only": ({"train_file": "blank.txt"}, ["blank.txt", "no text", "white space"]),
    "white space only in jsonl": ({"train_file": "blank.jsonl"}, ["blank.jsonl", "no text"]),
    "not UTF-8": ({"train_file": "latin1.txt"}, ["latin1.txt, line 3", "byte 4", "0xe9", "UTF-8", "iconv"]),
    "not UTF-8 in csv": ({"train_file": "latin1.csv"}, ["latin1.csv, line 3", "byte 4", "UTF-8"]),
    "not UTF-8 in gz": ({"train_file": "latin1.txt.gz"}, ["latin1.txt.gz, line 2", "byte 4", "UTF-8"]),
    "UTF-16": ({"train_file": "utf16.txt"}, ["utf16.txt, line 1", "byte 1", "UTF-8"]),
    "half a gz": ({"train_file": "half.txt.gz"}, ["half.txt.gz", "cut off"]),
    "not a gz": ({"train_file": "plain.txt.gz"}, ["plain.txt.gz", "gzip"]),
    "no column in jsonl": (
        {"train_file": "column.jsonl"}, ["column.jsonl, line 1", "'text'", "title, body", "--text_column_name"]),
    "no column later on": ({"train_file": "column2.jsonl"}, ["column2.jsonl, line 2", "'text'", "title, body"]),
    "no column in csv": ({"train_file": "column.csv"}, ["column.csv", "'text'", "number, body", "--text_column_name"]),
    "no column in parquet": ({"train_file": "column.parquet"}, ["column.parquet", "'text'", "number, body"]),
    "numbers for text": ({"train_file": "number.jsonl"}, ["number.jsonl, line 3", "'text'", "7"]),
    "no objects": ({"train_file": "list.jsonl"}, ["list.jsonl, line 1", "object"]),
    "jsonl cut off": ({"train_file": "half.jsonl"}, ["half.jsonl, line 2", "JSON"]),
    "json cut off": ({"train_file": "half.json"}, ["half.json, line 2", "JSON", "cut off"]),
    "uneven csv": ({"train_file": "uneven.csv"}, ["uneven.csv, line 3", "2 columns", "found 1"]),
    "open quote": ({"train_file": "quote.csv"}, ["quote.csv, line", "quotes"]),
    "broken parquet": ({"train_file": "broken.parquet"}, ["broken.parquet", "Parquet"]),
    "too short for a block": (
        {"train_file": "short.txt", "validation_split_percentage": 0},
        ["short.txt", "too few", "--max_seq_length", "--line_by_line"],
    ),
    "validation too short": ({"validation_file": "short.txt"}, ["short.txt", "validation", "too few"]),
    "test file too short": ({"test_file": "short.txt"}, ["short.txt", "test", "too few"]),
    "no mask token": ({"model": "maskless"}, ["maskless", "no mask token"]),
    "no mask token in tokenizer": ({"tokenizer_name": "maskless"}, ["--tokenizer_name maskless", "no mask token"]),
    "no padding token": ({"model": "padless"}, ["padless", "no padding token"]),
    "no [CLS]": ({"model": "clsless"}, ["clsless", "[CLS]"]),
    "longer than the model": ({"max_seq_length": 65}, ["--max_seq_length is 65", "at most 64"]),
    "output folder in use": (
        {"overwrite_output_dir": False}, ["in use", "--resume_from_checkpoint", "--overwrite_output_dir"]),
    "output folder is a file": ({"output_dir": "good.txt"}, ["--output_dir good.txt", "file"]),
    "output folder below a file": ({"output_dir": "good.txt/out"}, ["--output_dir good.txt/out"]),
    "unknown model": ({"model": "no-such/model"}, ["--model no-such/model", "ithout network", "folder"]),
    "folder without a model": ({"model": "folder"}, ["--model folder", "config.json"]),
    "damaged model": ({"model": "damaged"}, ["--model damaged", "cannot be loaded"]),
    "unknown tokenizer": ({"tokenizer_name": "no-such/model"}, ["--tokenizer_name no-such/model"]),
    "unknown config setting": (
        {"config_overrides": "dropout_of_hidden=0"}, ["--config_overrides", "dropout_of_hidden"]),
    "config setting without value": ({"config_overrides": "hidden_dropout_prob"}, ["--config_overrides", "KEY=VALUE"]),
    "unknown key in --config": (
        {"config": "key.yaml"}, ["key.yaml", "--learning_rte", "did you mean --learning_rate?"]),
    "no such --config": ({"config": "missing.yaml"}, ["missing.yaml"]),
    "--config is a list": ({"config": "list.yaml"}, ["list.yaml", "flag"]),
    "--config is not YAML": ({"config": "text.yaml"}, ["text.yaml", "line 1"]),
    "bad value in --config": ({"config": "value.yaml"}, ["--learning_rate", "'fast'"]),
    "mapping in a list of --config": ({"config": "mapping.yaml"}, ["mapping.yaml", "text"]),
    "data set without network": (
        {"train_file": None, "dataset_name": "stanfordnlp/imdb"},
        ["--dataset_name stanfordnlp/imdb", "Without network", "--train_file"],
    ),
    "default data set without network": ({"train_file": None}, ["stanfordnlp/imdb", "Without network", "--train_file"]),
    "no column in a data set": (
        {"train_file": None, "dataset_name": "titles"}, ["titles", "'text'", "title", "--text_column_name"]),
    "numbers in a data set": ({"train_file": None, "dataset_name": "numbers"}, ["numbers", "text"]),
    "blanks in a data set": ({"train_file": None, "dataset_name": "blanks"}, ["blanks", "text"]),
    "files and a data set": ({"dataset_name": "titles"}, ["--dataset_name", "one of the two"]),
    "misspelt flag": ({"lerning_rate": 1}, ["--lerning_rate is not a flag", "did you mean --learning_rate?"]),
    "shortened flag": ({"num_train": 1}, ["--num_train is not a flag"]),
    "mlm_probability 0": ({"mlm_probability": 0}, ["--mlm_probability is 0"]),
    "mlm_probability 15": ({"mlm_probability": 15}, ["--mlm_probability is 15", "at most 1"]),
    "replacements over 1": (
        {"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, ["--mask_replace_prob", "--random_replace_prob"]),
    "batch 0": ({"per_device_train_batch_size": 0}, ["--per_device_train_batch_size is 0"]),
    "batch of half": ({"per_device_train_batch_size": 0.5}, ["--per_device_train_batch_size", "0.5"]),
    "accumulation 0": ({"gradient_accumulation_steps": 0}, ["--gradient_accumulation_steps is 0"]),
    "negative rate": ({"learning_rate": -1}, ["--learning_rate is -1"]),
    "no number": ({"weight_decay": "nan"}, ["--weight_decay is nan"]),
    "negative seed": ({"seed": -1}, ["--seed is -1"]),
    "seed too large": ({"seed": 2**32}, ["--seed"]),
    "length 2": ({"max_seq_length": 2}, ["--max_seq_length is 2"]),
    "split of 100%": ({"validation_split_percentage": 100}, ["--validation_split_percentage is 100"]),
    "no epochs": ({"num_train_epochs": 0}, ["--num_train_epochs is 0"]),
    "unknown choice": ({"masking": "words"}, ["--masking", "whole_word"]),
    "not a switch": ({"line_by_line": "maybe"}, ["--line_by_line", "maybe"]),
    "training without data": (
        {"train_file": None, "validation_file": "good.txt", "do_train": True}, ["--do_train", "--train_file"]),
    "nothing to predict": ({"do_predict": True}, ["--do_predict", "--test_file"]),
    "nothing to evaluate": ({"do_eval": True, "validation_split_percentage": 0}, ["--do_eval", "--validation_file"]),
    "best of none": (
        {"load_best_model_at_end": True, "eval_strategy": "no"}, ["--load_best_model_at_end", "--eval_strategy"]),
    "best of nothing scored": (
        {"load_best_model_at_end": True, "validation_split_percentage": 0}, ["--load_best_model_at_end"]),
    "resume and overwrite": (
        {"resume_from_checkpoint": "latest"}, ["--resume_from_checkpoint", "--overwrite_output_dir"]),
    "no such checkpoint": (
        {"resume_from_checkpoint": "folder", "overwrite_output_dir": False},
        ["--resume_from_checkpoint folder", "not a whole checkpoint"],
    ),
    "text without mask": (
        {"text": ["A [MASK] is fine.", "Nothing is hidden."]}, ["'Nothing is hidden.'", "no mask", "[MASK]"]),
    "text too long": ({"text": "[MASK] " * 70}, ["--text", "64"]),
    "fp16 on a CPU": ({"mixed_precision": "fp16"}, ["--mixed_precision fp16", "GPU"]),
    "nothing to be masked": ({"mlm_probability": 1e-09}, ["--mlm_probability"]),
    "push without network": ({"push_to_hub": True}, ["--push_to_hub"]),
}
# fmt: on


def assert_one_message(done, fragments):
    assert done.status == 2, done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.count("error:") == 1
    message = done.err.rstrip().splitlines()[-1]
    assert message.startswith("run_mlm.py: error: ")
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_costs_nothing_that_was_there(mlm, inputs, trained, tmp_path, name):
    flags, fragments = MISTAKES[name]
    out = tmp_path / "out"
    shutil.copytree(trained, out)
    before = contents(out)
    settings = {"train_file": "good.txt", "overwrite_output_dir": True, "max_steps": 2, **flags}
    done = mlm(folder=inputs, **settings)
    assert_one_message(done, fragments)
    assert contents(out) == before


@pytest.mark.parametrize(
    "name",
    [
        "missing file",
        "not UTF-8",
        "misspelt flag",
        "unknown model",
        "too short for a block",
        "output folder in use",
        "text without mask",
        "nothing to be masked",
        "damaged model",
    ],
)
def test_two_processes_say_it_once(mlm, inputs, trained, tmp_path, name):
    flags, fragments = MISTAKES[name]
    shutil.copytree(trained, tmp_path / "out")
    done = mlm(folder=inputs, processes=2, **{"train_file": "good.txt", "overwrite_output_dir": True, **flags})
    assert_one_message(done, fragments)


def hide_wandb():
    import sys

    sys.modules["wandb"] = None  # as if it were not installed


def test_a_tracker_that_is_not_installed_is_named_with_its_pip_line(mlm, lines57, tmp_path):
    assert_one_message(mlm(train_file=lines57, report_to="wandb", prepare=hide_wandb), ["wandb", "pip install wandb"])


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_fsdp_and_deepspeed_are_refused(mlm, lines57, variable):
    assert_one_message(mlm(train_file=lines57, env={variable: "true"}), ["--multi_gpu"])


@pytest.mark.slow
def test_accelerate_launch_on_two_processes_says_it_once(tiny_bert, tmp_path):
    settings = {**ALIKE, "model": tiny_bert, "max_seq_length": LENGTH, "train_file": "missing.txt"}
    done = accelerate_launch(ROOT / "run_mlm.py", settings, tmp_path, processes=2)
    assert done.status != 0
    assert done.err.count("run_mlm.py: error: --train_file missing.txt") == 1
    assert "exitcode  : 2" in done.err  # what the launcher says of the first that ended


def test_settings_of_the_config_file_hold_unless_typed(mlm, lines57, tmp_path):
    settings = {
        "learning_rate": "1e-3",
        "max_steps": 3,
        "line_by_line": True,
        "train_file": [str(lines57)],
        "eval_strategy": "no",
        "config_overrides": {"hidden_dropout_prob": 0},
        "lr_scheduler_type": "constant",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    mlm(config="run.yaml", max_steps=2, logging_steps=1).checked()
    assert [(entry["step"], entry["learning_rate"]) for entry in read_log(tmp_path / "out", "loss")] == [
        (1, 1e-3),
        (2, 1e-3),
    ]
    assert [entry["step"] for entry in read_log(tmp_path / "out", "eval_loss")] == [2]
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_dropout_prob"] == 0


# ---------------------------------------------------------------- what a run leaves, and fills


def test_the_results_carry_the_promised_names(trained):
    results = read_results(trained)
    for name in ("eval_loss", "perplexity", "eval_accuracy"):
        assert {name, f"initial_{name}"} <= results.keys()
    assert {"train_samples_per_second", "predict_loss", "predict_perplexity", "predict_accuracy"} <= results.keys()
    for prefix, loss in (("", "eval_loss"), ("initial_", "initial_eval_loss"), ("predict_", "predict_loss")):
        assert results[f"{prefix}perplexity"] == pytest.approx(math.exp(results[loss]))
    assert results["eval_loss"] < results["initial_eval_loss"]
    assert results["train_samples_per_second"] > 0


def test_the_scores_before_and_after_are_those_of_the_two_models(trained, tiny_bert, lines57, lines61):
    results, tokenizer = read_results(trained), AutoTokenizer.from_pretrained(tiny_bert)
    validation, test = (
        line_examples(tokenizer, path.read_text(encoding="utf-8").splitlines(), LENGTH) for path in (lines61, lines57)
    )
    for prefix, folder, examples in (
        ("initial_eval_", tiny_bert, validation),
        ("eval_", trained, validation),
        ("predict_", trained, test),
    ):
        expected = plain_scores(folder, examples)
        assert results[f"{prefix}loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
        assert results[f"{prefix}accuracy"] == expected["eval_accuracy"]


def test_the_model_loads_whole_and_nothing_it_left_runs_code(trained):
    model, info = AutoModelForMaskedLM.from_pretrained(trained, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.hidden_dropout_prob == 0  # as --config_overrides asked
    assert {path.suffix for path in trained.rglob("*") if path.is_file()} == {
        ".json",
        ".jsonl",
        ".md",
        ".pt",
        ".safetensors",
    }
    pickles = list(trained.rglob("*.pt"))
    assert {path.name for path in pickles} == {"optimizer.pt"}
    for path in pickles:
        assert "state" in torch.load(path, weights_only=True)["optimizer"]


def test_the_model_card_tells_of_data_settings_and_scores(trained):
    card = (trained / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "fill-mask")
    results = read_results(trained)
    assert f"{results['initial_perplexity']:.4f} | {results['perplexity']:.4f}" in card
    assert "lines57.txt" in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert (settings["learning_rate"], settings["per_device_train_batch_size"], settings["seed"]) == (5e-3, 8, 42)


def test_the_log_has_a_line_for_each_update_and_each_evaluation(trained):
    log = read_log(trained)
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 17))
    assert [entry["step"] for entry in log if "initial_eval_loss" in entry] == [0]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [8, 16]
    assert [entry["epoch"] for entry in log if "eval_loss" in entry] == [1, 2]


@pytest.mark.parametrize(
    ("flags", "evaluations", "checkpoints"),
    [
        ({}, [8, 16], [8, 16]),
        ({"eval_strategy": "no", "save_strategy": "no"}, [16], []),
        (
            {
                "eval_strategy": "steps",
                "eval_steps": 6,
                "save_strategy": "steps",
                "save_steps": 5,
                "save_total_limit": 9,
            },
            [6, 12, 16],
            [5, 10, 15],
        ),
        (
            {
                "eval_strategy": "steps",
                "logging_steps": 7,
                "save_strategy": "steps",
                "save_steps": 0.25,
                "save_total_limit": 3,
            },
            [7, 14, 16],
            [8, 12, 16],
        ),
        ({"num_train_epochs": 1.5, "save_total_limit": 1}, [8, 12], [12]),
        ({"save_strategy": "steps", "save_steps": 2, "save_total_limit": 5}, [8, 16], [8, 10, 12, 14, 16]),
        ({"save_strategy": "steps", "save_steps": 3, "save_total_limit": 5}, [8, 16], [3, 6, 9, 12, 15]),
        ({"num_train_epochs": 3, "save_total_limit": 2}, [8, 16, 24], [16, 24]),
    ],
    ids=str,
)
def test_it_evaluates_and_saves_when_asked_to(mlm, lines57, lines61, tmp_path, flags, evaluations, checkpoints):
    mlm(
        train_file=lines57,
        validation_file=lines61,
        per_device_train_batch_size=8,
        **(CURVE | {"save_strategy": "epoch"} | flags),
    ).checked()
    assert [entry["step"] for entry in read_log(tmp_path / "out", "eval_loss")] == evaluations
    assert sorted(int(path.name.split("-")[1]) for path in (tmp_path / "out").glob("checkpoint-*")) == checkpoints
    assert not list((tmp_path / "out").glob("tmp-*"))


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_best_model_is_kept(mlm, prose, lines61, tmp_path, limit):
    # Eight lines learned by heart: the score on others gets better first, then worse.
    text = write_lines(tmp_path / "text.txt", prose[100:108])
    steps = {"max_steps": 30, "eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    settings = CURVE | steps | {"learning_rate": 0.01, "lr_scheduler_type": "constant", "save_total_limit": limit}
    mlm(train_file=text, validation_file=lines61, load_best_model_at_end=True, **settings).checked()
    logged = {entry["step"]: entry["eval_loss"] for entry in read_log(tmp_path / "out", "eval_loss")}
    best = min(logged, key=logged.get)
    assert best < 30  # or else this would test nothing
    assert read_results(tmp_path / "out")["eval_loss"] == logged[best]
    mlm(model=tmp_path / "out", validation_file=lines61, line_by_line=True, output_dir=tmp_path / "again").checked()
    assert read_results(tmp_path / "again")["eval_loss"] == pytest.approx(logged[best], rel=1e-6)
    assert (tmp_path / "out" / f"checkpoint-{best}").exists()
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == max(limit, 2)  # the last and the best


def test_a_run_that_only_does_harm_keeps_its_least_bad_model(mlm, trained, lines57, lines61, tmp_path):
    mlm(
        model=trained,
        train_file=lines57,
        validation_file=lines61,
        line_by_line=True,
        num_train_epochs=2,
        learning_rate=3,
        load_best_model_at_end=True,
    ).checked()
    results = read_results(tmp_path / "out")
    assert results["eval_loss"] <= min(entry["eval_loss"] for entry in read_log(tmp_path / "out", "eval_loss"))
    mlm(model=tmp_path / "out", validation_file=lines61, line_by_line=True, output_dir=tmp_path / "again").checked()
    assert read_results(tmp_path / "again")["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)


TEXTS = ["The [MASK] is happy.", "An [MASK] is [MASK] by a name .", "[MASK]"]


def read_fills(out, text, when=""):
    """What was printed below a text: a list for each of its masks, of (word, probability)."""
    lines = out.split(f"\n{text}\n", 1)[1].split("\n\n")[0].splitlines()
    rows = [re.findall(r"(\S+) ([01]\.\d{3})(?!\d)", line) for line in lines if line.startswith(f"  {when}")]
    return [[(word, float(p)) for word, p in row] for row in rows if row]


def assert_fills_agree(fills, folder, text):
    expected = pipeline("fill-mask", folder, device="cpu")(text, top_k=5)
    expected = expected if isinstance(expected[0], list) else [expected]
    assert len(fills) == text.count("[MASK]")
    for words, answers in zip(fills, expected, strict=True):
        assert [word for word, _ in words] == [answer["token_str"] for answer in answers]
        assert [p for _, p in words] == pytest.approx([answer["score"] for answer in answers], abs=5.1e-4)


@pytest.mark.parametrize("flags", [{}, {"mixed_precision": "bf16"}, {"processes": 2}], ids=str)
def test_text_gives_the_five_best_words_as_the_pipeline_does(mlm, trained, tmp_path, flags):
    before = contents(trained)
    done = mlm(model=trained, output_dir=trained, text=TEXTS, **flags).checked()
    for text in TEXTS:
        fills = read_fills(done.out, text)
        assert all(len(words) == 5 for words in fills)
        assert_fills_agree(fills, trained, text)
    assert contents(trained) == before  # nothing is trained, nothing written


def test_text_in_a_training_run_shows_the_fills_before_and_after(mlm, trained, tiny_bert, lines57, tmp_path):
    done = mlm(train_file=lines57, max_steps=4, learning_rate=0.01, text=TEXTS[:2]).checked()
    for text in TEXTS[:2]:
        before, after = read_fills(done.out, text, "before"), read_fills(done.out, text, "after")
        assert_fills_agree(before, tiny_bert, text)
        assert_fills_agree(after, tmp_path / "out", text)
        assert before != after


# ---------------------------------------------------------------- models


def test_from_scratch_takes_the_config_alone(mlm, tiny_bert, lines57, lines61, tmp_path):
    losses = {}
    for name, flags in {
        "pretrained": {},
        "scratch": {"from_scratch": True},
        "again": {"from_scratch": True},
        "other seed": {"from_scratch": True, "seed": 1},
        "two": {"from_scratch": True, "processes": 2},
    }.items():
        done = mlm(
            train_file=lines57, validation_file=lines61, max_steps=1, output_dir=tmp_path / name, **flags
        ).checked()
        assert ("random" in done.out) == ("from_scratch" in flags)
        losses[name] = read_results(tmp_path / name)["initial_eval_loss"]
    assert losses["scratch"] == losses["again"]
    assert losses["scratch"] == pytest.approx(losses["two"], rel=1e-6)
    assert len({losses["scratch"], losses["pretrained"], losses["other seed"]}) == 3
    shapes = {name: tensor.shape for name, tensor in load_file(tiny_bert / "model.safetensors").items()}
    assert {
        name: tensor.shape for name, tensor in load_file(tmp_path / "scratch" / "model.safetensors").items()
    } == shapes


def test_a_model_without_a_head_is_said_to_start_at_random(mlm, tiny_bert, lines57, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "headless")
    weights = {
        name: tensor
        for name, tensor in load_file(tiny_bert / "model.safetensors").items()
        if not name.startswith("cls.")
    }
    save_file(weights, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    done = mlm(model=tmp_path / "headless", train_file=lines57, max_steps=1).checked()
    assert "random" in re.search(r"Model  .*headless.*", done.out)[0]
    done = mlm(train_file=lines57, max_steps=1, output_dir=tmp_path / "with head").checked()
    assert "random" not in re.search(r"Model  .*", done.out)[0]


def test_embeddings_grow_with_the_tokenizer(mlm, tiny_bert, tmp_path):
    tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
    assert tokenizer.add_tokens([f"newword{letter}" for letter in "abcdefg"]) == 7
    tokenizer.save_pretrained(tmp_path / "larger")
    text = write_lines(
        tmp_path / "text.txt", [f"a newword{letter} is a name , and newword{letter} is not" for letter in "abcdefg" * 5]
    )
    done = mlm(
        tokenizer_name=tmp_path / "larger",
        train_file=text,
        line_by_line=True,
        num_train_epochs=2,
        config_overrides="hidden_dropout_prob=0.0",
    ).checked()
    assert "607" in done.out
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 607
    assert model(torch.tensor([[2, 606, 3]])).logits.shape[-1] == 607
    old = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    unused = tokenizer.convert_tokens_to_ids("##ing")  # the old ones are kept: this one is not in the text
    difference = (model.get_input_embeddings().weight[unused] - old.get_input_embeddings().weight[unused]).abs().max()
    assert difference < 1e-2
    assert math.isfinite(read_results(tmp_path / "out")["perplexity"])
    done = mlm(model=tmp_path / "out", validation_file=text, line_by_line=True, output_dir=tmp_path / "again").checked()
    assert read_results(tmp_path / "again")["perplexity"] > 1


def test_a_model_larger_than_its_tokenizer_keeps_its_size(mlm, tiny_bert, lines57, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    model.resize_token_embeddings(640)  # as some are padded to a multiple of 64
    model.save_pretrained(tmp_path / "padded")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "padded")
    mlm(model=tmp_path / "padded", train_file=lines57, max_steps=1).checked()
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.vocab_size == 640


class Trap:
    """Unpickled, it leaves a file behind: what a model from a stranger could do to a home folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["weights in a pickle", "code of its own", "code of its own for a known kind"])
def test_a_model_from_a_stranger_runs_no_code(mlm, tiny_bert, lines57, tmp_path, kind):
    model, sprung = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(tiny_bert, model)
    if kind == "weights in a pickle":
        (model / "model.safetensors").unlink()
        torch.save({"cls.predictions.bias": Trap(sprung)}, model / "pytorch_model.bin")
    else:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config["auto_map"] = {"AutoConfig": "strange.Config", "AutoModelForMaskedLM": "strange.Model"}
        if kind == "code of its own":
            config["model_type"] = "strange"
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        code = ["import os", f"os.mkdir({str(sprung)!r})", "from transformers import BertConfig as Config"]
        write_lines(model / "strange.py", [*code, "from transformers import BertForMaskedLM as Model"])
    done = mlm(model=model, train_file=lines57, max_steps=1)
    assert not sprung.exists()
    if kind == "code of its own for a known kind":
        done.checked()  # the library's own code is as good
    else:
        assert_one_message(done, ["--model", str(model)])


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "modernbert"])
def test_other_encoders_train_as_a_plain_computation_scores_them(mlm, tiny_bert, lines57, lines61, tmp_path, kind):
    from transformers import AutoConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dim": 64,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "embedding_size": 32,
        "max_position_embeddings": 80,
        "type_vocab_size": 1,
        "initializer_range": 0.15,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
    }
    ids = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind)
    config = type(config)(**{name: value for name, value in (sizes | ids).items() if hasattr(config, name)})
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    mlm(
        model=tmp_path / kind,
        train_file=lines57,
        validation_file=lines61,
        line_by_line=True,
        num_train_epochs=1,
        learning_rate=1e-2,
    ).checked()
    results = read_results(tmp_path / "out")
    examples = line_examples(tokenizer, lines61.read_text(encoding="utf-8").splitlines(), LENGTH)
    assert results["initial_eval_loss"] == pytest.approx(plain_scores(tmp_path / kind, examples)["eval_loss"], rel=1e-5)
    assert results["eval_loss"] == pytest.approx(plain_scores(tmp_path / "out", examples)["eval_loss"], rel=1e-5)
    assert results["eval_loss"] < results["initial_eval_loss"]


# ---------------------------------------------------------------- the Hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's interface as it takes to make a repository of `someone`, and to commit small files to it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            assert self.headers["Authorization"] == "Bearer hf_of_this_test"
            repository = f"someone/{json.loads(body)['name'].removeprefix('someone/')}"
            self.server.made.append(repository)
            self.answer({"url": f"{here}/{repository}", "name": repository, "id": repository})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif not any(self.path.startswith(f"/api/models/{repository}/") for repository in self.server.made):
            self.answer({"error": "Repository not found"}, 404)
        elif "/preupload/" in self.path:
            self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"{here}/{self.server.made[0]}/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                    "commitMessage": "",
                    "success": True,
                }
            )
        else:
            self.answer({"error": "not here"}, 404)

    def do_GET(self):
        if self.path.startswith("/api/whoami"):
            self.answer({"name": "someone", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        elif any(self.path.startswith(f"/api/models/{repository}") for repository in self.server.made):
            self.answer({"id": self.server.made[0], "sha": "0" * 40, "siblings": [], "private": False, "tags": []})
        else:
            self.answer({"error": "not here"}, 404)

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.committed = [], {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["someone/model", None])
def test_push_to_hub_uploads_the_model_and_no_checkpoint(hub, tiny_bert, lines57, tmp_path, name):
    settings = {
        **ALIKE,
        "model": tiny_bert,
        "train_file": lines57,
        "max_steps": 2,
        "max_seq_length": LENGTH,
        "output_dir": "model",
        "push_to_hub": True,
        "hub_model_id": name,
    }
    env = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_of_this_test",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = run_fresh([ROOT / "run_mlm.py", *command_line(**settings)], tmp_path, env).checked()
    assert "someone/model" in done.out
    assert hub.made == ["someone/model"]
    left = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "all_results.json",
        "log.jsonl",
    } <= left.keys()
    assert hub.committed == left
