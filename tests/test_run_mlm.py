"""run_mlm.py as its users meet it: the command line, what it prints, and the files that it leaves behind."""

import csv
import gzip
import json
import math
import os
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import ALIKE, ROOT, Run, accelerate_launch, read_log, read_results
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast, pipeline

import run_mlm
from utils.collators import mask_tokens

NO_DROPOUT = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
LENGTH = 32  # of the examples in most tests, in tokens


def write_lines(path, lines, encoding="utf-8", newline="\n"):
    path.write_bytes(newline.join([*lines, ""]).encode(encoding))
    return path


@pytest.fixture
def mlm(tiny_bert, tmp_path):
    """run_mlm.py on the tiny model, as a process of its own: mlm(flag=value, …) gives a helpers.Done."""

    def run(*, processes=1, env=None, prepare=None, **settings):
        settings = {**ALIKE, "model": tiny_bert, "output_dir": tmp_path / "out", "max_seq_length": LENGTH, **settings}
        done = Run("run_mlm.py", settings, tmp_path, processes, env, prepare).wait()
        if done.status == 0 and "Running on" in done.out:
            assert f"{processes} process" in re.search("Running on .*", done.out)[0]  # a launch can fall back to one
        return done

    return run


@pytest.fixture(scope="session")
def lines57(tmp_path_factory, prose):
    """A file of 57 lines, in global batches of 8 seven whole ones and a last one of a single line."""
    return write_lines(tmp_path_factory.mktemp("train") / "lines57.txt", prose[100:157])


@pytest.fixture(scope="session")
def lines61(tmp_path_factory, prose):
    return write_lines(tmp_path_factory.mktemp("validation") / "lines61.txt", prose[300:361])


CURVE = {"line_by_line": True, "num_train_epochs": 2, "learning_rate": 5e-3, "logging_steps": 1, "save_strategy": "no",
         **NO_DROPOUT}


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_bert, lines57, lines61):
    """Output folder of a plain run: 57 lines, twice, in batches of 8, dropout off. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {**ALIKE, "model": tiny_bert, "train_file": lines57, "validation_file": lines61, "test_file": lines57,
                "max_seq_length": LENGTH, "per_device_train_batch_size": 8, **CURVE, "output_dir": folder / "out",
                "save_strategy": "epoch"}
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
    return [[tokenizer.cls_token_id, *stream[at : at + inner], tokenizer.sep_token_id]
            for at in range(0, len(stream) - inner + 1, inner)]


def mask(tokenizer, ids, seed, epoch, example_id, mask_prob=0.15):
    ids = np.array(ids)
    special = np.isin(ids, tokenizer.all_special_ids)
    return mask_tokens(ids, special, mask_id=tokenizer.mask_token_id, vocab_size=len(tokenizer), seed=seed, epoch=epoch,
                       example_id=example_id, mask_prob=mask_prob)


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
    return {"eval_loss": nats / count, "perplexity": math.exp(nats / count), "eval_accuracy": hits / count,
            "masked_tokens": count}


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
    """(file, flags, scores) of 61 examples, the scores by plain_scores."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    path = tmp_path_factory.mktemp("scored") / "text.txt"
    if request.param == "lines":
        examples = line_examples(tokenizer, prose[300:361], LENGTH)
        assert len({len(ids) for ids in examples}) > 5
        write_lines(path, prose[300:361])
    else:
        documents = [prose[n : n + 3] for n in range(300, 333, 3)]
        while len(block_examples(tokenizer, documents, LENGTH)) > 61:
            documents[-1] = [documents[-1][0][: len(documents[-1][0]) - 10]] if documents[-1][0] else documents.pop() and []
        examples = block_examples(tokenizer, documents, LENGTH)
        write_lines(path, [line for document in documents for line in (*document, "")])
    assert len(examples) == 61
    return path, {"line_by_line": request.param == "lines"}, plain_scores(tiny_bert, examples)
