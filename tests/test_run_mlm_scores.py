"""run_mlm.py: its scores and loss curves are those of plain computations, however a batch is split."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ALIKE, ROOT, accelerate_launch, read_log, read_results, write_lines
from plain_mlm import CURVE, LENGTH, NO_DROPOUT, block_examples, line_examples, mask, plain_scores
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

# ---------------------------------------------------------------- scores


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
        assert "Train       51 lines" in done.checked().out  # 10% of 57 are held out, and not trained_mlm on
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


def test_the_loss_curve_is_that_of_a_plain_loop(trained_mlm, tiny_bert, lines57):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    examples = line_examples(tokenizer, lines57.read_text(encoding="utf-8").splitlines(), LENGTH)
    losses, model = plain_curve(tiny_bert, examples, 8, epochs=2, learning_rate=CURVE["learning_rate"])
    assert len(losses) == 16
    assert losses[-1] < losses[0] - 0.3  # it learns, so that equal curves say something
    np.testing.assert_allclose(losses_of(trained_mlm), losses, rtol=0, atol=1e-4)
    assert_weights_agree(load_file(trained_mlm / "model.safetensors"), model.state_dict())


@pytest.mark.parametrize(("processes", "batch_size", "accumulation"), [(1, 2, 4), (2, 4, 1), (2, 1, 4), (4, 2, 1)])
def test_the_curve_is_the_same_for_any_split_of_the_global_batch(
    mlm, trained_mlm, lines57, lines61, tmp_path, processes, batch_size, accumulation
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
    assert len(losses_of(trained_mlm)) == 16
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained_mlm), rtol=0, atol=1e-4)
    for now, then in zip(read_log(tmp_path / "out", "eval_loss"), read_log(trained_mlm, "eval_loss"), strict=True):
        assert now["step"] == then["step"]
        assert now["eval_loss"] == pytest.approx(then["eval_loss"], abs=1e-4)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", trained_mlm))
    assert_weights_agree(weights, expected)


def test_accelerate_launch_on_two_processes_gives_the_curve_of_one(trained_mlm, tiny_bert, lines57, lines61, tmp_path):
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
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained_mlm), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-4),
        ({"dataloader_num_workers": 2}, 0),
        ({"per_device_eval_batch_size": 3}, 0),
    ],
)
def test_what_changes_speed_or_memory_changes_no_loss(mlm, trained_mlm, lines57, lines61, tmp_path, flags, tolerance):
    mlm(train_file=lines57, validation_file=lines61, per_device_train_batch_size=8, **CURVE, **flags).checked()
    np.testing.assert_allclose(losses_of(tmp_path / "out"), losses_of(trained_mlm), rtol=0, atol=tolerance)


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
def test_what_is_another_task_gives_another_curve(mlm, trained_mlm, lines57, lines61, tmp_path, flags):
    mlm(train_file=lines57, validation_file=lines61, per_device_train_batch_size=8, **(CURVE | flags)).checked()
    losses = losses_of(tmp_path / "out")
    assert np.isfinite(losses).all()
    assert np.abs(np.subtract(losses, losses_of(trained_mlm))).max() > 1e-3


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


def test_bfloat16_ends_near_float32(mlm, trained_mlm, lines57, lines61, tmp_path):
    done = mlm(
        train_file=lines57,
        validation_file=lines61,
        per_device_train_batch_size=8,
        **(CURVE | {"mixed_precision": "bf16"}),
    ).checked()
    assert re.search("Running on .* bf16", done.out)
    results, expected = read_results(tmp_path / "out"), read_results(trained_mlm)
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


def test_a_logged_loss_is_the_mean_over_all_tokens_since_the_last(
    mlm, trained_mlm, lines57, lines61, tiny_bert, tmp_path
):
    mlm(
        train_file=lines57, validation_file=lines61, per_device_train_batch_size=8, **(CURVE | {"logging_steps": 8})
    ).checked()
    tokenizer, losses = AutoTokenizer.from_pretrained(tiny_bert), losses_of(trained_mlm)
    examples = line_examples(tokenizer, lines57.read_text(encoding="utf-8").splitlines(), LENGTH)
    counts = []  # of masked tokens in each update
    for epoch in (0, 1):
        order = np.random.default_rng((42, epoch)).permutation(57)
        masked = [sum(mask(tokenizer, examples[i], 42, epoch, i)[1] != -100) for i in order]
        counts += [sum(masked[at : at + 8]) for at in range(0, 57, 8)]
    expected = [np.average(losses[at : at + 8], weights=counts[at : at + 8]) for at in (0, 8)]
    np.testing.assert_allclose(losses_of(tmp_path / "out"), expected, rtol=1e-5)
    assert read_results(tmp_path / "out")["train_loss"] == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
