"""Masked language modelling by transformers alone, one example at a time: what run_mlm.py is held against."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer

from utils.masks import mask_tokens

NO_DROPOUT = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
LENGTH = 32  # of the examples in most tests, in tokens
CURVE = {
    "line_by_line": True,
    "num_train_epochs": 2,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    **NO_DROPOUT,
}


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
