# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "transformers>=5.23", "accelerate>=1.15", "datasets>=5.2", "numpy>=2.4",
#                 "pyarrow>=26.0", "huggingface-hub>=2.4", "PyYAML>=6.0", "tqdm>=4.67", "nanotoken>=0.1.0",
#                 "wandb>=0.31"]
# ///
"""Train a BERT-style model to fill in masked tokens, and report its perplexity.

    accelerate launch run_mlm.py --model bert-base-uncased --train_file corpus.txt --validation_file held_out.txt
    accelerate launch run_mlm.py --model outputs/mlm --text "The [MASK] is happy."

Reads UTF-8 text (.txt, a paragraph a line; a blank line ends a document), .jsonl, .json, .csv, .tsv and .parquet, each
also as .gz, or a data set of the Hub. Writes to --output_dir: the model and tokenizer, all_results.json (eval_loss in
nats per masked token, perplexity, eval_accuracy of masked tokens), log.jsonl, checkpoints and a model card.

Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805
"""

import argparse
import copy
import csv
import ctypes
import difflib
import glob
import gzip
import hashlib
import html
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import zlib
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path

try:
    import datasets
    import huggingface_hub
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet
    import torch
    import torch.distributed
    import torch.nn.functional as F
    import transformers
    import yaml
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import ProjectConfiguration, send_to_device, set_seed
    from torch.utils.data import DataLoader, Sampler, Subset
    from tqdm import tqdm
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, get_scheduler
except ImportError as error:
    print(f"run_mlm.py: error: {error}. Install what it needs: pip install torch transformers accelerate datasets "
          "numpy pyarrow huggingface-hub PyYAML tqdm nanotoken wandb", file=sys.stderr)
    sys.exit(2)

DEFAULT_DATASET = "stanfordnlp/imdb"  # taken where no data are named, so that a bare call runs


# ---------------------------------------------------------------- arguments


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False, formatter_class=HelpFormatter)
    parser.add_argument("--config", metavar="RUN.yaml", help="YAML file of flags; flags typed beside it win")
    add_model_and_data_flags(parser)
    add_training_flags(parser)
    add_output_flags(parser)
    args = parse_with_config(parser, argv)
    check_args(args, parser)
    return args


def add_model_and_data_flags(parser):
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--model", "--model_name_or_path", default="bert-base-uncased", help="Hub name or folder")
    add("--tokenizer_name", help="Hub name or folder of the tokenizer (default: the model's)")
    add("--model_revision", default="main", help="branch, tag or commit on the Hub")
    add_switch(group, "--from_scratch", "the model's config alone, with random weights")
    add("--config_overrides", metavar="KEY=VALUE,…", help="config settings to change, as hidden_dropout_prob=0; for "
                                                          "pretrained models too")
    add_switch(group, "--trust_remote_code", "run code that comes with the model")
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--dataset_name", help=f"Hub name or folder (default: {DEFAULT_DATASET} where no file is given)")
    add("--dataset_config_name", help="configuration of that data set")
    add("--train_file", nargs="+", help="files or globs to train on")
    add("--validation_file", nargs="+", help="files or globs to evaluate on")
    add("--test_file", nargs="+", help="files or globs for the predict_ scores at the end")
    add("--text_column_name", default="text", help="column of a table")
    add("--validation_split_percentage", type=float, default=10, help="percent of the training rows to "
        "evaluate on where there are no validation data, the same for every seed; 0 is none")
    add("--max_seq_length", type=int, default=128, help="tokens per example, [CLS] and [SEP] too")
    add_switch(group, "--line_by_line", "one example a line, cut off at --max_seq_length, not blocks of running text")
    add("--max_train_samples", type=int, help="train on a random sample of so many examples (default: all)")
    add("--max_eval_samples", type=int, help="the same for evaluation (default: all)")
    add("--max_predict_samples", type=int, help="the same for test data (default: all)")
    add("--preprocessing_num_workers", type=int, help="processes that tokenize (default: 1, with threads on all cores)")
    add_switch(group, "--overwrite_cache", "prepare the data anew even where the cache holds them")
    add_switch(group, "--prepare_only", "prepare and cache the data, without a model, and end")
    add("--text", nargs="+", help="texts with [MASK]: show the five best words for each; before and after the "
                                  "training if there are data to train on, else without any")
    group = parser.add_argument_group("masking")
    add = group.add_argument
    add("--masking", choices=["token", "whole_word"], default="token", help="hide tokens or words")
    add("--mlm_probability", type=float, default=0.15, help="share to hide")
    add("--mask_replace_prob", type=float, default=0.8, help="share of the hidden shown as [MASK]")
    add("--random_replace_prob", type=float, default=0.1, help="share shown as a random token; the rest stays as it is")


def add_training_flags(parser):
    group = parser.add_argument_group("training")
    add = group.add_argument
    add_switch(group, "--do_train", "train, and evaluate where there are data for it; without any --do_ flag, all "
                                            "that the data allow")
    add_switch(group, "--do_eval", "evaluate")
    add_switch(group, "--do_predict", "score the test data")
    add("--per_device_train_batch_size", type=int, default=16, help="examples per process and pass")
    add("--per_device_eval_batch_size", type=int, default=16, help="the same in evaluation")
    add("--gradient_accumulation_steps", type=int, default=1, help="passes per update")
    add("--learning_rate", type=float, default=5e-5, help="peak, for AdamW")
    add("--weight_decay", type=float, default=0.0, help="never on biases and LayerNorm")
    add("--max_grad_norm", type=float, default=1.0, help="to clip at; 0 does not clip")
    add("--num_train_epochs", type=float, default=3.0, help="passes over the data")
    add("--max_steps", type=int, default=-1, help="updates, instead of epochs where above 0")
    add("--lr_scheduler_type", default="linear", help="course of the learning rate", choices=[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"])
    add("--warmup_steps", type=float, default=0, help="updates, or below 1 a share of all")
    add("--mixed_precision", choices=["auto", "no", "bf16", "fp16"], default="auto", help="auto: as the launcher says, "
        "else bf16 where the hardware computes it natively; no: float32")
    add_switch(group, "--gradient_checkpointing", "less memory, more time")
    add("--dataloader_num_workers", type=int, default=0, help="data workers per process")
    add("--cpu_threads", type=int, help="torch threads per process (default: physical cores / processes)")
    add("--seed", type=int, default=42, help="of weights, order, masks and dropout")


def add_output_flags(parser):
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output_dir", default="outputs/mlm", help="folder for all that a run leaves behind")
    add_switch(group, "--overwrite_output_dir", "train although a model or checkpoints lie there, and replace them")
    add("--eval_strategy", choices=["no", "steps", "epoch"], default="epoch", help="when to evaluate")
    add("--eval_steps", type=float, help="updates, or below 1 a share of all (default: as --logging_steps)")
    add("--save_strategy", choices=["no", "steps", "epoch"], default="epoch", help="when to save")
    add("--save_steps", type=float, default=500, help="updates, or below 1 a share of all")
    add("--logging_steps", type=float, default=10, help="updates between two lines of the log, or below 1 a share")
    add("--save_total_limit", type=int, default=2, help="checkpoints that are kept")
    add_switch(group, "--load_best_model_at_end", "keep the model with the lowest eval_loss")
    add("--resume_from_checkpoint", nargs="?", const="latest", metavar="latest|PATH",
        help="go on from a checkpoint; latest: the newest whole one in --output_dir")
    add("--report_to", nargs="+", choices=["none", "wandb", "trackio", "tensorboard"], default=["none"], help="tracker")
    add("--run_name", help="name in the trackers (default: --output_dir)")
    add_switch(group, "--push_to_hub", "upload the model to the Hub at the end")
    add("--hub_model_id", help="repository to push to (default: the last part of --output_dir)")


def check_args(args, parser):
    """Find settings that cannot work before anything is loaded, and fill in those that depend on others."""
    args.eval_steps = args.logging_steps if args.eval_steps is None else args.eval_steps
    probabilities = "mask_replace_prob random_replace_prob"
    bounds = {"max_seq_length": (3, math.inf, "3 or more: [CLS], one token and [SEP]"), "validation_split_percentage": (
        0, 99, "0 to 99"), "mlm_probability": (1e-9, 1, "a share above 0 and up to 1"), probabilities: (0, 1, "0 to 1"),
        "dataloader_num_workers learning_rate weight_decay max_grad_norm warmup_steps": (0, math.inf, "0 or more"),
        "seed": (0, 2**32 - 1, "0 to 4294967295"),
        "eval_steps save_steps logging_steps num_train_epochs": (1e-9, math.inf, "more than 0"),
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps save_total_limit "
        "cpu_threads max_train_samples max_eval_samples max_predict_samples preprocessing_num_workers": (
            1, math.inf, "1 or more")}
    for names, (low, high, expected) in bounds.items():
        for name in names.split():
            value = getattr(args, name)
            if value is not None and not low <= value <= high:
                parser.error(f"--{name} is {value}; expected {expected}")
    if args.mask_replace_prob + args.random_replace_prob > 1:
        parser.error("--mask_replace_prob and --random_replace_prob add up to more than 1; give shares as 0.8 and 0.1")
    if args.load_best_model_at_end and (args.save_strategy == "no" or args.eval_strategy != args.save_strategy or (
            args.save_strategy == "steps" and args.save_steps % args.eval_steps)):
        parser.error("--load_best_model_at_end needs scores of every model that is saved: give --save_strategy and "
                     "--eval_strategy the same value, and --save_steps a multiple of --eval_steps")
    if args.resume_from_checkpoint and args.overwrite_output_dir:
        parser.error("--overwrite_output_dir would remove what --resume_from_checkpoint goes on with; give one of them")
    args.report_to = sorted({*args.report_to} - {"none"})
    for package in args.report_to:
        if not importlib.util.find_spec(package):  # accelerate would log nothing and say nothing
            parser.error(f"--report_to {package}: the package is not installed; pip install {package}")
    files = args.train_file or args.validation_file or args.test_file
    todo = args.do_train or args.do_eval or args.do_predict
    if files and args.dataset_name:
        parser.error("--dataset_name and files were given; expected one of the two")
    if not files and not args.dataset_name and (todo or not args.text):
        args.dataset_name = DEFAULT_DATASET
    if not todo:
        args.do_train, args.do_predict = bool(args.train_file or args.dataset_name), bool(args.test_file)
        args.do_eval = bool(args.train_file or args.validation_file or args.dataset_name)
    if args.do_train and not (args.train_file or args.dataset_name):
        parser.error("--do_train has nothing to train on: give --train_file or --dataset_name")
    args.run_name = args.run_name or args.output_dir


# ---------------------------------------------------------------- data


class ExampleCutter:
    """Cut tokenized paragraphs into examples: blocks of running text, or lines.

    A block is [CLS], `size` tokens and [SEP], with one [SEP] between two documents. What one batch of `map` leaves over
    goes on in the next, so that only the last remainder is dropped. A line is cut off at `size` tokens.

    Args:
        size: tokens per example, without [CLS] and [SEP].
        edges: ids of [CLS] and [SEP]. unknown_id: of [UNK], which is counted.
        line_by_line: examples are lines instead of blocks.
        rows: which of the paragraphs to take; bool array of shape (paragraphs,).
    """

    def __init__(self, size, edges, unknown_id, line_by_line, rows):
        self.size, self.edges, self.unknown_id = size, edges, unknown_id
        self.line_by_line, self.rows = line_by_line, rows
        self.rest, self.document, self.examples = np.zeros(0, np.int32), None, 0
        self.counts = {"tokens": 0, "unknown": 0, "shortened": 0}

    def __call__(self, table, indices):
        lists, documents = table["ids"].combine_chunks(), table["document"].to_numpy()
        offsets = lists.offsets.to_numpy()
        lengths = np.diff(offsets)  # (paragraphs,)
        kept = self.rows[indices] & (lengths > 0)  # a paragraph of control characters has no tokens
        flat = lists.values.to_numpy()[offsets[0] : offsets[-1]][np.repeat(kept, lengths)]  # (tokens,)
        self.counts["tokens"] += len(flat)
        self.counts["unknown"] += int((flat == self.unknown_id).sum())
        rows, bounds = (self.cut_lines(flat, lengths[kept]) if self.line_by_line
                        else self.cut_blocks(flat, lengths[kept], documents[kept]))
        ids = np.arange(self.examples, self.examples + len(bounds) - 1)
        self.examples += len(ids)
        return pa.table({"id": ids, "input_ids": pa.LargeListArray.from_arrays(bounds, rows)})

    def cut_lines(self, flat, lengths):
        place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # of each token in its line
        self.counts["shortened"] += int((lengths > self.size).sum())
        flat, lengths = flat[place < self.size], np.minimum(lengths, self.size)
        ends = np.cumsum(lengths)
        edges = np.stack([ends - lengths, ends], axis=1).ravel()  # where a line begins, and where it ends
        return np.insert(flat, edges, self.edges * len(ends)), np.cumsum([0, *(lengths + 2)])

    def cut_blocks(self, flat, lengths, documents):
        if len(documents):
            before = np.concatenate([documents[:1] if self.document is None else [self.document], documents[:-1]])
            self.document = documents[-1]
            flat = np.insert(flat, (np.cumsum(lengths) - lengths)[documents != before], self.edges[1])
        flat = np.concatenate([self.rest, flat])
        blocks = flat[: len(flat) // self.size * self.size].reshape(-1, self.size)
        self.rest = flat[blocks.size :]
        first, last = (np.full((len(blocks), 1), edge, dtype=np.int32) for edge in self.edges)
        return np.hstack([first, blocks, last]).ravel(), np.arange(len(blocks) + 1) * (self.size + 2)


def prepare_split(source, part, tokenizer, *, max_seq_length, line_by_line, num_proc, overwrite, overwrite_text):
    """Turn the text of a source into examples, or find them in the cache, by content.

    Args:
        source: (fingerprint, function that yields batches, name), as find_sources returns.
        part: (which, percent): "all" paragraphs, "drawn" ones of so many percent, by row number alone, or the "rest".

    Returns:
        (examples, counts): a Dataset of `id` and `input_ids` (int32 lists, special tokens included), and a dict of
        counts, whose `key` tells apart what was prepared from other content or with other settings.
    """
    tokens, counts = tokenize_source(source, tokenizer, num_proc=num_proc, overwrite=overwrite_text)
    edges, unknown_id = edge_ids(tokenizer), tokenizer.unk_token_id
    settings = f"{counts['key']} {max_seq_length} {line_by_line} {part} {edges} {unknown_id}"
    key = hashlib.sha256(settings.encode()).hexdigest()[:32]
    prepared = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts", f"examples-{key}.arrow")
    facts = prepared.with_suffix(".json")
    if overwrite or not (prepared.exists() and facts.exists()):
        drawn = np.zeros(len(tokens), dtype=bool)
        share = min(max(1, round(len(tokens) * part[1] / 100)), len(tokens) - 1)
        drawn[np.random.default_rng(0).permutation(len(tokens))[:share]] = True
        rows = {"all": np.ones_like(drawn), "drawn": drawn, "rest": ~drawn}[part[0]]
        cutter = ExampleCutter(max_seq_length - 2, edges, unknown_id, line_by_line, rows)
        at_once = max(1, int(2e6 * counts["paragraphs"] / counts["characters"]))  # paragraphs in about 2 MB
        tokens.map(cutter, batched=True, batch_size=at_once, with_indices=True, remove_columns=["ids", "document"],
                   load_from_cache_file=False, new_fingerprint=key, cache_file_name=str(prepared), desc="Cutting")
        lengths = pa.compute.list_value_length(tokens.data["ids"])
        write_json(facts, counts | cutter.counts | {"key": key, "text_tokens": pa.compute.sum(lengths).as_py()})
    return datasets.Dataset.from_file(str(prepared)).with_format("numpy"), json.loads(facts.read_text(encoding="utf-8"))


def prepare_data(args, tokenizer):
    """Prepare the splits that the run needs: dict of split to (examples, counts, name of the source)."""
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    splits = ["train", "validation"]
    if args.do_predict or (args.prepare_only and args.test_file):
        splits.append("test")
    sources = find_sources(files, args.dataset_name, args.dataset_config_name, args.text_column_name, splits)
    parts = choose_parts(sources, args.validation_split_percentage, {
        "train": args.do_train, "validation": args.do_eval, "test": args.do_predict}, args.load_best_model_at_end)
    data, seen = {}, set()
    overwrite = args.overwrite_cache and int(os.environ.get("RANK", 0)) == 0  # the others find what the first prepared
    for split, (source, part) in parts.items():
        examples, counts = prepare_split(source, part, tokenizer, max_seq_length=args.max_seq_length,
                                         line_by_line=args.line_by_line, num_proc=args.preprocessing_num_workers,
                                         overwrite=overwrite, overwrite_text=overwrite and source[0] not in seen)
        seen.add(source[0])
        if not len(examples):
            raise InputError(f"{source[2]}: its {split} part has {counts['tokens']:,} tokens, too few for one block of "
                             f"{args.max_seq_length}. Give more text, a smaller --max_seq_length, --line_by_line"
                             + (", or --validation_file." if part[0] == "drawn" else "."))
        number = {"train": args.max_train_samples, "validation": args.max_eval_samples,
                  "test": args.max_predict_samples}[split]
        if number is not None and number < len(examples):  # drawn for evaluation with the same seed in every run
            order = np.random.default_rng(args.seed if split == "train" else 0).permutation(len(examples))
            examples = examples.select(np.sort(order[:number]))
        data[split] = (examples, counts, source[2])
    return data


def describe_data(data, begun, max_seq_length, line_by_line, say):
    """Say what the data are, how long it took to prepare them since `begun`, and what looks wrong with them."""
    say(f"Prepared    in {time.perf_counter() - begun:.2f} s")
    for split, (examples, counts, name) in data.items():
        kind = "lines of up to" if line_by_line else "blocks of"
        say(f"{split.capitalize():<11} {len(examples):,} {kind} {max_seq_length} tokens, out of {counts['tokens']:,} "
            f"in {name}")
    counts = next(iter(data.values()))[1]
    pieces = counts["text_tokens"] / counts["words"]
    repeated, shortened = counts["repeated"] / counts["paragraphs"], counts["shortened"] / counts["paragraphs"]
    unknown = counts["unknown"] / max(1, counts["tokens"])
    say(f"Text        {counts['paragraphs']:,} paragraphs, {repeated:.1%} of them repeated; {pieces:.2f} tokens a "
        f"word, {unknown:.2%} unknown" + (f"; {counts['shortened']:,} lines cut off" if line_by_line else ""))
    for wrong, warning in (
            (repeated > 0.1, "many paragraphs stand there more than once; some may be trained and evaluated on alike"),
            (unknown > 0.01 or pieces > 2.5, "the tokenizer knows few of these words; another model may fit better"),
            (shortened > 0.1, "many lines are cut off; a larger --max_seq_length, or blocks, would use all of them")):
        if wrong:
            say(f"  Careful:  {warning}")


# ---------------------------------------------------------------- masks and order


# ==== utils/masks.py, whole (to change it, change it there; `make fix` copies it) ====
# Tokens that are hidden, and the scores of a model where they are.

def mask_tokens(input_ids, special, *, mask_id, vocab_size, seed, epoch, example_id, mask_prob=0.15,
                mask_replace_prob=0.8, random_replace_prob=0.1, continues=None):
    """Hide tokens for masked language modelling: by default 80% become [MASK], 10% a random token, 10% stay.

    An example is masked alike on one GPU or eight, in any data worker, and after a resume.

    Args:
        input_ids: token ids before padding, int64 array of shape (seq,).
        special: True where a token is left alone, such as [CLS]; bool array of shape (seq,).
        mask_id: id of [MASK].
        vocab_size: random replacements are drawn from [0, vocab_size).
        seed: seed of the run, at least 0; evaluation always uses 0, so that scores of different runs can be compared.
        epoch: pass over the data, from 0; evaluation always uses 0.
        example_id: index of the example in the dataset, before shuffling and sharding.
        mask_prob: chance that a token is chosen, or a word where continues is given; from 0 to 1.
        mask_replace_prob: share of the chosen tokens that become [MASK], from 0 to 1.
        random_replace_prob: share of the chosen tokens that become a random token; what is left of 1 stays.
        continues: for whole-word masking, True where a token goes on with the word before it; bool, shape (seq,).

    Returns:
        (masked_ids, labels): int64 arrays of shape (seq,). Labels are -100 where nothing is predicted.

    Raises:
        ValueError: a probability is outside [0, 1], or the two shares add up to more than 1.

    Source: Devlin et al. 2018, section 3.1 and appendix A.1, https://arxiv.org/abs/1810.04805; whole words:
    https://github.com/google-research/bert, "whole word masking" (each token of a word meets its own fate).
    """
    if not 0 <= mask_prob <= 1:
        raise ValueError(f"mask_prob is {mask_prob}; give a fraction from 0 to 1, such as 0.15")
    if min(mask_replace_prob, random_replace_prob) < 0 or mask_replace_prob + random_replace_prob > 1:
        raise ValueError(f"mask_replace_prob is {mask_replace_prob} and random_replace_prob is {random_replace_prob}; "
                         "give two fractions from 0 to 1 that add up to at most 1, such as 0.8 and 0.1")
    # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 what seed 0 does in epoch 1.
    rng = np.random.default_rng((seed, epoch, example_id))
    chosen = rng.random(len(input_ids)) < mask_prob  # (seq,)
    if continues is not None:  # the draw of a word's first token decides for the whole word
        chosen = chosen[np.maximum.accumulate(np.where(continues, 0, np.arange(len(input_ids))))]
    chosen &= ~special
    fate = rng.random(len(input_ids))  # (seq,), uniform in [0, 1)
    substitutes = rng.integers(vocab_size, size=len(input_ids))  # (seq,)
    masked_ids = np.where(chosen & (fate < mask_replace_prob), mask_id, input_ids)
    masked_ids = np.where(chosen & (fate >= 1 - random_replace_prob), substitutes, masked_ids)
    return masked_ids, np.where(chosen, input_ids, -100)


def word_continuations(tokenizer):
    """Say for each token of the vocabulary whether it goes on with the word before it: bool array of shape (vocab,).

    WordPiece (`##ing`), byte-level BPE (`Ġword`) and SentencePiece (`▁word`) are told apart by the sign that most
    tokens carry; without any, each token is a word of its own. Index it with ids to get mask_tokens' `continues`.
    """
    size = max(tokenizer.get_vocab().values()) + 1  # more than there are tokens where ids are left out
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(size))]
    counts = {sign: sum(token.startswith(sign) for token in tokens) for sign in ("##", "Ġ", "▁")}
    sign = max(counts, key=counts.get)
    starts = ("Ġ", "Ċ", "ĉ", "č") if sign == "Ġ" else sign  # line feed, tab and carriage return part words too
    continues = np.array([token.startswith(starts) == (sign == "##") for token in tokens])
    continues[list(tokenizer.added_tokens_decoder)] = False  # [CLS] and its like, and words that a user added
    return continues


def masked_outputs(model, batch):
    """Run a masked language model, with its output layer only where a token is to be predicted.

    That layer costs as much as the encoder in small models, and six in seven of its rows would be thrown away. A hook
    keeps the wanted ones; of a model that does not call its output embeddings as a layer, all are computed.

    Args:
        model: a model with get_output_embeddings, also inside DistributedDataParallel.
        batch: positions (predicted,) in the flattened batch, targets, perhaps next_sentence_label, and the model's
            inputs: input_ids (batch, seq).

    Returns:
        float32 scores of shape (predicted, vocab), and all that the model returned.
    """
    aims = ("positions", "targets", "next_sentence_label")
    inputs = {name: tensor for name, tensor in batch.items() if name not in aims}
    positions, tokens = batch["positions"], batch["input_ids"].numel()
    head = getattr(model, "module", model).get_output_embeddings()

    def keep_positions(_, args):
        hidden = args[0]  # (batch, seq, hidden), or for some models (batch x seq, hidden)
        fits = hidden.shape[:-1].numel() == tokens
        return (hidden.reshape(tokens, -1)[positions], *args[1:]) if fits else None

    hook = head.register_forward_pre_hook(keep_positions) if isinstance(head, torch.nn.Module) else nullcontext()
    with hook:
        outputs = model(**inputs)
    logits = outputs.prediction_logits if "prediction_logits" in outputs else outputs.logits
    if logits.dim() == 3:
        logits = logits[:, : batch["input_ids"].shape[1]].flatten(0, 1)[positions]
    return logits.float(), outputs  # a sum of thousands of bfloat16 terms loses its last digits


# ==== utils/batches.py, whole (to change it, change it there; `make fix` copies it) ====
# Which examples a batch holds, and how rows of different length stand in it.

def pad(rows, value):
    """Put int64 arrays of shape (length,) under each other: a tensor (batch, longest), filled up with value."""
    padded = np.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


class GlobalBatchSampler(Sampler):
    """Micro-batches of one process, such that update k sees the same examples on any number of processes.

    An epoch's order is `default_rng((seed, epoch)).permutation(n)`, cut into global batches of batch_size x
    accumulation_steps x num_processes examples; the last may be smaller, and no example stands twice. Set `epoch`
    before each pass, and `first_update` where a resume goes on within it: nothing before it is read.

    Args:
        n: number of examples, or a function that gives it for each epoch, from 0.
        batch_size: examples per process and pass. accumulation_steps: passes per update.
        num_processes, rank: how many processes train together, and which this is.
        seed: seed of the run, at least 0.
    """

    def __init__(self, n, batch_size, accumulation_steps, num_processes, rank, seed):
        self.n, self.batch_size, self.accumulation_steps = n, batch_size, accumulation_steps
        self.num_processes, self.rank, self.seed, self.epoch, self.first_update = num_processes, rank, seed, 0, 0
        self.global_batch = batch_size * accumulation_steps * num_processes

    def __iter__(self):
        n, size, order = self.examples_in(self.epoch), self.global_batch, self.order()
        for start in range(self.first_update * size, n - size + 1, size):
            for i in range(self.accumulation_steps):
                at = start + (i * self.num_processes + self.rank) * self.batch_size
                yield order[at : at + self.batch_size].tolist()
        if n % size and self.first_update <= n // size:  # the rest, split evenly; a piece may be empty
            pieces = np.array_split(order[n - n % size :], self.accumulation_steps * self.num_processes)
            yield from (piece.tolist() for piece in pieces[self.rank :: self.num_processes])

    def __len__(self):
        return self.updates_in(self.epoch) * self.accumulation_steps

    def order(self):
        """Draw the order of the examples of the epoch: int64, (examples,)."""
        # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 the order of seed 0 in epoch 1.
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.examples_in(self.epoch))

    def examples_in(self, epoch):
        return self.n(epoch) if callable(self.n) else self.n

    def updates_in(self, epoch):
        return -(-self.examples_in(epoch) // self.global_batch)

    def updates_until(self, epochs):
        """Count the updates of so many epochs, which may be a fraction."""
        whole = int(epochs)
        rest = round((epochs - whole) * self.updates_in(whole), 6) if epochs > whole else 0  # 0.1 x 50 is 5
        return sum(map(self.updates_in, range(whole))) + math.ceil(rest)

    def place(self, update):
        """Say where in the run an update stands: (epoch, updates of that epoch before it)."""
        epoch = 0
        while update and update >= (updates := self.updates_in(epoch)):
            epoch, update = epoch + 1, update - updates
        return epoch, update

    def epochs_until(self, update):
        """Count the epochs that the updates up to this one make, as a fraction."""
        epoch, done = self.place(update)
        return epoch + (done / self.updates_in(epoch) if done else 0)

    def examples_until(self, update):
        """Count the examples, of all processes, that the updates up to this one have seen."""
        epoch, done = self.place(update)
        return sum(map(self.examples_in, range(epoch))) + done * self.global_batch


# ==== run_mlm.py ====


class MaskingCollator:
    """Pad a batch to its longest example and hide tokens, freshly each epoch (set `epoch`).

    Args:
        pad_id: id of the padding token.
        special: True for tokens that are never hidden; bool array of shape (vocab,).
        continues: what word_continuations returned, for whole-word masking; None hides single tokens.
        settings: arguments of mask_tokens: mask_id, vocab_size, seed and the probabilities.
    """

    def __init__(self, *, pad_id, special, continues=None, **settings):
        self.pad_id, self.special, self.continues, self.settings, self.epoch = pad_id, special, continues, settings, 0

    def __call__(self, examples):
        """Make a batch of examples, each a dict of `id` and `input_ids` (seq,). There may be none.

        Returns:
            input_ids: (batch, seq). attention_mask: the same, only where a row is padded. positions: of the tokens to
            predict in the flattened batch, (predicted,). targets: their ids, (predicted,).
        """
        if not examples:  # the last global batch can leave a process without any: it joins, and predicts nothing
            examples = [{"id": 0, "input_ids": np.flatnonzero(self.special)[:1]}]
        pairs = []
        for example in examples:
            ids = np.asarray(example["input_ids"], dtype=np.int64)
            continues = None if self.continues is None else self.continues[ids]
            pairs.append(mask_tokens(ids, self.special[ids], epoch=self.epoch, example_id=int(example["id"]),
                                     continues=continues, **self.settings))
        labels = pad([labels for _, labels in pairs], -100).ravel()  # (batch x seq,)
        positions = (labels != -100).nonzero().ravel()  # found here, on the CPU: a GPU would have to be waited for
        batch = {"input_ids": pad([ids for ids, _ in pairs], self.pad_id), "positions": positions,
                 "targets": labels[positions]}
        if len({len(ids) for ids, _ in pairs}) > 1:  # without padding, attention is faster with no mask at all
            batch["attention_mask"] = pad([np.ones_like(ids) for ids, _ in pairs], 0)
        return batch


# ---------------------------------------------------------------- model


@torch.no_grad()
def fill_masks(model, tokenizer, texts, top_k=5):
    """Fill the masks of texts: a dict of text to a list for each mask of its best (word, probability) pairs.

    Raises:
        InputError: a text is too long for the model.
    """
    model.eval()
    answers = {}
    for asked in texts:
        text = asked
        if tokenizer.mask_token not in text:  # models differ in how a mask is written; [MASK] will do for all
            text = text.replace("[MASK]", tokenizer.mask_token)
        inputs = tokenizer(text, return_tensors="pt").to(model.device)
        masks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().ravel()
        length, longest = inputs["input_ids"].shape[1], longest_input(model.config, tokenizer)
        if length > longest:
            raise InputError(f"--text {text[:60]!r}: it has {length} tokens; the model takes at most {longest}")
        best = model(**inputs).logits[0, masks].softmax(dim=-1).topk(top_k)  # (masks, top_k)
        answers[asked] = [[(tokenizer.decode([i]), p) for i, p in zip(ids, chances, strict=True)]
                          for ids, chances in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return answers


# ---------------------------------------------------------------- evaluate and train


def masked_logits(model, batch):
    """Score the vocabulary where a token is to be predicted, as masked_outputs does: float32, (predicted, vocab)."""
    return masked_outputs(model, batch)[0]


@torch.no_grad()
def evaluate(model, examples, collator, batch_size, device, processes):
    """Score a model on examples, exactly: sums over all processes, divided once. Masks depend on the example alone.

    Args:
        model: not wrapped for several processes: the first pass of a wrapped one hangs where a process has no example.
        examples: the same Dataset on each process, which scores its share.
        collator: a MaskingCollator with seed 0 and epoch 0.

    Returns:
        dict of eval_loss (nats per masked token), perplexity, eval_accuracy (of masked tokens).

    Raises:
        InputError: not one token was masked.
    """
    model.eval()
    mine = Subset(examples, range(processes.rank, len(examples), processes.num_processes))  # no example stands twice
    losses, hits, count = [], [], 0
    batches = DataLoader(mine, batch_size=batch_size, collate_fn=collator, generator=torch.Generator())
    for batch in tqdm(batches, desc="Evaluating", disable=processes.rank > 0 or None, leave=False):
        batch = send_to_device(batch, device)
        logits = masked_logits(model, batch)  # (predicted, vocab)
        losses.append(F.cross_entropy(logits, batch["targets"], reduction="sum"))
        hits.append((logits.argmax(dim=-1) == batch["targets"]).sum())
        count += len(batch["targets"])
    nll, hits, count = processes.sum(sum(x.item() for x in losses), sum(x.item() for x in hits), count)
    if not count:
        raise InputError("no token was hidden in the evaluation data; give more text, or a higher --mlm_probability")
    return {"eval_loss": nll / count, "perplexity": math.exp(min(nll / count, 700)), "eval_accuracy": hits / count}


def train(accelerator, model, optimizer, scheduler, loader, *, processes, start, max_steps, accumulation_steps, seed,
          max_grad_norm, stop_signal, after_update):
    """Train from update `start` to update max_steps, or until after_update returns True.

    after_update is given the number of the update, from 1; the negative log-likelihood of this process's tokens, (1,),
    nats; a list of the number of tokens predicted by all; the gradient's norm; whether any process noted a signal.
    """
    sampler, collator, device, update = loader.batch_sampler, loader.collate_fn, accelerator.device, start
    while update < max_steps:
        epoch, sampler.first_update = sampler.place(update)
        collator.epoch = sampler.epoch = epoch
        batches = iter(loader)
        while update < max_steps and (micro_batches := list(islice(batches, accumulation_steps))):
            model.train()
            # Dropout is a function of (seed, update, rank), so a checkpoint need not carry the state of any generator.
            dropout_seed = np.random.SeedSequence((seed, update, processes.rank)).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(dropout_seed))
            # Batches differ in how many tokens they mask. One count for the whole update, over all processes, gives
            # every token the same weight; averaging the averages would not.
            counts = [len(batch["targets"]) for batch in micro_batches]
            predicted, stop = processes.sum(sum(counts), stop_signal.number > 0)
            nll = torch.zeros((), device=device)
            for i, batch in enumerate(micro_batches):
                is_last = i == len(micro_batches) - 1
                with nullcontext() if is_last else accelerator.no_sync(model):
                    batch = send_to_device(batch, device, non_blocking=True)
                    loss = F.cross_entropy(masked_logits(model, batch), batch["targets"], reduction="sum")
                    # Gradients are averaged over processes; this factor turns the average back into a sum.
                    accelerator.backward(loss * processes.num_processes / max(predicted, 1))
                    nll += loss.detach()
            norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
            optimizer.step()
            scheduler.step()  # kept out of accelerator.prepare(), where it would tick once per process
            optimizer.zero_grad()
            update += 1
            if after_update(update, nll[None], [predicted], norm, stop > 0):
                return


def mean_loss(sums, counts):
    """What is logged of an update, or of several: the loss in nats per masked token."""
    return {"loss": sums[0] / max(counts[0], 1)}


def fit(args, accelerator, processes, model, tokenizer, examples, collator, score, state, checkpoint, say):
    """Train, from a checkpoint where there is one: (model, results, the number of the signal that stopped it, or 0)."""
    sampler = GlobalBatchSampler(len(examples), args.per_device_train_batch_size, args.gradient_accumulation_steps,
                                 processes.num_processes, processes.rank, args.seed)
    # The generator keeps iter() from drawing its seed out of the global one, which would shift dropout after a resume.
    loader = DataLoader(examples, batch_sampler=sampler, collate_fn=collator, num_workers=args.dataloader_num_workers,
                        generator=torch.Generator(), pin_memory=accelerator.device.type == "cuda",
                        worker_init_fn=ignore_interrupts)
    max_steps = args.max_steps if args.max_steps > 0 else sampler.updates_until(args.num_train_epochs)
    warmup = math.ceil(args.warmup_steps * max_steps) if args.warmup_steps < 1 else int(args.warmup_steps)
    optimizer = build_optimizer(model, args.learning_rate, args.weight_decay)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup, max_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    network = accelerator.unwrap_model(model, keep_torch_compile=True)
    if checkpoint:
        optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
        scheduler.load_state_dict(state["scheduler"] | {"lr_lambdas": [None] * len(optimizer.param_groups)})
        if accelerator.scaler and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    say(f"Updates     {max_steps:,}, {sampler.updates_in(0):,} an epoch, with {sampler.global_batch} examples "
        f"each (processes {processes.num_processes} x batch {sampler.batch_size} x accumulation "
        f"{sampler.accumulation_steps})"
        + (f"; going on from {checkpoint}" if checkpoint else ""))
    scores = score(network) if score and not checkpoint else None
    if args.push_to_hub and accelerator.is_main_process:
        args.hub_model_id = claim_repository(args.hub_model_id, args.output_dir)
    start_trackers(accelerator, "mlm", vars(args), state)
    if accelerator.is_main_process:  # only now that nothing is left to go wrong
        clear_output(args.output_dir, state["step"], args.overwrite_output_dir)
    run = TrainingRun(vars(args), accelerator, processes, network, tokenizer, optimizer, scheduler, sampler, score,
                      mean_loss, state, max_steps)
    if scores:
        run.evaluate(scores, prefix="initial_")
        state["initial"] = {f"initial_{name}": value for name, value in scores.items()}
    start, run.paused, begun = state["step"], 0.0, time.perf_counter()
    with StopSignal() as stop_signal:
        train(accelerator, model, optimizer, scheduler, loader, processes=processes, start=start, max_steps=max_steps,
              accumulation_steps=args.gradient_accumulation_steps, seed=args.seed, max_grad_norm=args.max_grad_norm,
              stop_signal=stop_signal, after_update=run.after_update)
    run.bar.close()
    if state["step"] < max_steps:
        return network, {}, stop_signal.number or signal.SIGTERM
    seconds = time.perf_counter() - begun - run.paused
    results = {"step": state["step"], "epoch": sampler.epochs_until(state["step"]), **state["initial"],
               **{f"train_{name}": value for name, value in mean_loss(**state["train"]).items()}}
    seen = sampler.examples_until(state["step"]) - sampler.examples_until(start)
    if seen:  # otherwise it was a finished run that was resumed, and these are known already
        results |= {"train_runtime": seconds, "train_samples_per_second": seen / seconds}
    if score and state["latest"]["step"] != state["step"]:  # a resume that had nothing left to do
        run.evaluate()
    if state["best"] and state["best"]["eval_loss"] < state["latest"]["eval_loss"]:
        say(f"Best        the model of update {state['best']['step']} is kept")
        folder = Path(args.output_dir, f"checkpoint-{state['best']['step']}")
        network.load_state_dict(AutoModelForMaskedLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=args.trust_remote_code).state_dict())
        state["latest"] = state["best"]
    return network, results | {name: value for name, value in (state["latest"] or {}).items() if name != "step"}, 0


# ---------------------------------------------------------------- main


def made_with(args, data, model_type, num_processes):
    """What a checkpoint is made with, and a resume may not change: dict of name to value."""
    made = {split: f"{len(examples)} examples of {counts['key']}" for split, (examples, counts, _) in data.items()
            if split != "test"}
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
    made |= {"task": "mlm", "kind of model": model_type, "global batch": batch}
    return made | {f"--{name}": getattr(args, name) for name in (
        "seed", "learning_rate", "weight_decay", "config_overrides", "masking", "mlm_probability", "mask_replace_prob",
        "random_replace_prob")}


def finish(args, model, tokenizer, data, results, note):
    """Leave behind what the run has made: results; of a training run the model and its card, on the Hub if asked."""
    if args.do_train:
        save_model(args.output_dir, model, tokenizer)
        write_model_card(args.output_dir, args.model, f"trained on {data['train'][2]} by masked language modelling; "
                         f"{note}.", "fill-mask", {split: (len(rows), counts["tokens"], name) for split, (
                             rows, counts, name) in data.items()}, results, vars(args))
    same_model = args.resume_from_checkpoint or Path(args.model).resolve() == Path(args.output_dir).resolve()
    write_results(args.output_dir, results, same_model, args.do_train)
    if args.push_to_hub:
        upload(args.output_dir, args.hub_model_id)


def show_fills(before, after, say):
    """Print the best words for each mask, before the training and after it."""
    for text in after:
        say(f"\n{text}")
        for when, answers in (("before", before), ("after" if before else "", after)):
            for words in answers.get(text, ()):
                say(f"  {when:<8}" + "   ".join(f"{word} {p:.3f}" for word, p in words))


def collator_settings(tokenizer, masking, mlm_probability, mask_replace_prob, random_replace_prob):
    """Put together what a MaskingCollator needs, all but the seed."""
    special = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=bool)
    special[tokenizer.all_special_ids] = True
    return {"pad_id": tokenizer.pad_token_id, "special": special, "mask_id": tokenizer.mask_token_id,
            "vocab_size": len(tokenizer), "mask_prob": mlm_probability, "mask_replace_prob": mask_replace_prob,
            "random_replace_prob": random_replace_prob,
            "continues": word_continuations(tokenizer) if masking == "whole_word" else None}


def main(argv=None):
    args = parse_args(argv)
    rank = int(os.environ.get("RANK", 0))
    say = partial(print, flush=True) if rank == 0 else lambda *_: None
    transformers.logging.set_verbosity_error()  # what it says of heads and lengths, the lines below say
    transformers.logging.disable_progress_bar()
    if rank:
        datasets.disable_progress_bars()
    hub = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    todo = args.do_train or args.do_eval or args.do_predict
    longest = args.max_seq_length if todo or args.prepare_only else 0
    config, tokenizer = load_config_and_tokenizer(args.model, args.tokenizer_name, args.config_overrides, longest,
                                                  **hub)
    for text in args.text or ():
        if "[MASK]" not in text and tokenizer.mask_token not in text:
            raise InputError(f"--text {text[:60]!r}: there is no mask in it; write {tokenizer.mask_token} for a word")
    describe = partial(describe_data, max_seq_length=args.max_seq_length, line_by_line=args.line_by_line, say=say)
    if args.prepare_only:
        if rank == 0:
            begun = time.perf_counter()
            describe(prepare_data(args, tokenizer), begun)
            say(f"Cache       a run with the same data and settings finds them in {datasets.config.HF_DATASETS_CACHE}")
        return
    checkpoint, state = None, {"step": 0, "fills": {}, "run_id": ""}
    if todo:
        checkpoint, state = open_output(args.output_dir, args.do_train, args.resume_from_checkpoint,
                                        args.overwrite_output_dir, say)
    accelerator, processes, threads = start_processes(
        args.mixed_precision, args.cpu_threads, args.report_to, args.output_dir,
        config.model_type in ("big_bird", "esm", "fnet", "layoutlm", "longformer"))
    data = {}
    if todo:
        begun = time.perf_counter()
        data = processes.main_first(partial(prepare_data, args, tokenizer))
        describe(data, begun)
    set_seed(args.seed)
    model, note = load_model(AutoModelForMaskedLM, str(checkpoint or args.model), None if checkpoint else config,
                             args.from_scratch and not checkpoint, len(tokenizer), "masked-language-modelling head",
                             **hub)
    say(f"Model       {checkpoint or args.model}, {model.num_parameters():,} weights; {note}")
    note = state.setdefault("note", note)  # of the model that the run began with
    describe_processes(accelerator, processes, threads, say)
    masks = collator_settings(tokenizer, args.masking, args.mlm_probability, args.mask_replace_prob,
                              args.random_replace_prob)
    score = {split: partial(evaluate, examples=data[split][0], collator=MaskingCollator(seed=0, **masks),
                            processes=processes, batch_size=args.per_device_eval_batch_size, device=accelerator.device)
             for split in data if split != "train"}
    results = {}
    try:
        if args.do_train:
            check_resume(made_with(args, data, config.model_type, processes.num_processes), processes, state,
                         checkpoint, args.output_dir)
            if args.text and not checkpoint:
                state["fills"] = fill_masks(model, tokenizer, args.text)
            if args.gradient_checkpointing:
                checkpoint_gradients(model)
            collator = MaskingCollator(seed=args.seed, **masks)
            model, results, stopped_by = fit(args, accelerator, processes, model, tokenizer, data["train"][0], collator,
                                             score.get("validation"), state, checkpoint, say)
            if stopped_by:
                end_stopped_run(accelerator, stopped_by, state["step"], say)
        else:
            start_trackers(accelerator, "mlm", vars(args), state)
            model = accelerator.prepare_model(model, evaluation_mode=True)
            results = score["validation"](model) if args.do_eval else {}
        if args.do_predict:
            results |= {f"predict_{name.removeprefix('eval_')}": value for name, value in score["test"](model).items()}
    except torch.OutOfMemoryError:
        raise out_of_memory(*((args.per_device_train_batch_size, args.max_seq_length, args.gradient_accumulation_steps)
                              if args.do_train else (args.per_device_eval_batch_size, args.max_seq_length))) from None
    # What is shown and saved is computed in float32.
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False, keep_torch_compile=False)
    fills = fill_masks(model, tokenizer, args.text or [])
    accelerator.log({k: value for k, value in results.items() if k not in ("step", "epoch")}, step=state["step"])
    if rank == 0 and results:
        finish(args, model, tokenizer, data, results, note)
    show_results(results, note, args.output_dir, say)
    show_fills(state["fills"], fills, say)
    accelerator.end_training()


# ---------------------------------------------------------------- sections that scripts share: plumbing


# ==== utils/errors.py, whole (to change it, change it there; `make fix` copies it) ====
# Mistakes of the user: one message, and exit status 2.

class InputError(ValueError):
    """A mistake in what the user gave. Its message is all they are shown; the exit status is 2."""

    only_here = False  # True where the other processes of the run know that this one has something to say


def out_of_memory(batch_size, max_seq_length, accumulation_steps=None):
    """Make the InputError for a GPU that is too small: batch, length, and what gives the same result in less memory.

    accumulation_steps: None where the run does not train.
    """
    said = f"the GPU ran out of memory at {batch_size} examples of {max_seq_length} tokens per pass."
    if accumulation_steps is None:
        return InputError(f"{said} The same scores in less: --per_device_eval_batch_size {max(1, batch_size // 2)}; a "
                          "smaller --max_seq_length helps, too.")
    parts = next((n for n in range(2, batch_size + 1) if batch_size % n == 0), 1)  # into which the batch divides
    same = (f" The same result in less: --per_device_train_batch_size {batch_size // parts} "
            f"--gradient_accumulation_steps {accumulation_steps * parts}." if parts > 1 else "")
    return InputError(f"{said}{same} --gradient_checkpointing and a smaller --max_seq_length help, too.")


def run_main(main):
    """Call main; a mistake of the user's ends it with one message on stderr and exit status 2.

    Of several processes that find the same mistake the first speaks, and the launcher ends the others meanwhile.
    """
    rank = int(os.environ.get("RANK", 0))
    sys.stdout.reconfigure(errors="replace")  # a word that a terminal of another encoding cannot show
    try:
        main()
    except (InputError, KeyboardInterrupt) as error:
        if rank and not getattr(error, "only_here", False):
            time.sleep(10)
        status, message = 130, "stopped by Ctrl-C; what was saved stays as it is"
        if isinstance(error, InputError):
            status, message = 2, f"error: {error}"
        print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr, flush=True)
        if torch.distributed.is_initialized():  # to take it down while others wait in it can abort, and lose the status
            sys.stdout.flush()
            os._exit(status)
        sys.exit(status)


# ==== utils/arguments.py, whole (to change it, change it there; `make fix` copies it) ====
# Command lines: what argparse does not do by itself.

class ArgumentParser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print its usage, once for each process
        raise InputError(f"{message}; see --help")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):  # says what the default is, where there is one
        return action.help if action.default is None else super()._get_help_string(action)


def read_config(path, flags):
    """Turn a YAML file of flags into command-line arguments, which the parser then checks like any others.

    Args:
        path: YAML file, a flag a line: `learning_rate: 5e-5`, `train_file: [a.txt, b.txt]`, `line_by_line: true`.
        flags: names of the flags that may stand there, without the dashes.

    Returns:
        list of strings to stand before the arguments that the user typed, so that those win.

    Raises:
        InputError: no such file, not a YAML mapping (line named), or a key that is no flag.
    """
    try:
        # Every value as the text that stands there: `no` is a strategy here, not False, and 5e-5 is a number.
        settings = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise InputError(f"--config {path}: expected one `flag: value` a line, found {str(settings)[:40]!r}")
    arguments = []
    for key, value in settings.items():
        if key not in flags:
            raise InputError(f"--config {path}: {key!r} is not a flag of this script; see --help for those that are")
        if isinstance(value, dict):
            value = ",".join(f"{name}={part}" for name, part in value.items())
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            raise InputError(f"--config {path}: {key!r} holds more than a list of values; put each one in quotes")
        if value not in ("", "null", "~"):
            arguments += [f"--{key}", *value] if isinstance(value, list) else [f"--{key}={value}"]
    return arguments


def parse_with_config(parser, argv=None):
    """Parse a command line, and before it the flags of the YAML file that --config names.

    Args:
        parser: an ArgumentParser with a flag --config.
        argv: arguments; None takes those of the process.

    Raises:
        InputError: an argument that the parser does not know, with one like it, or a fault in the file.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    only_config = ArgumentParser(add_help=False, allow_abbrev=False)
    only_config.add_argument("--config")
    flags = {name[2:] for name in parser._option_string_actions} - {"config", "help"}
    config = only_config.parse_known_args(argv)[0].config
    args, unknown = parser.parse_known_args((read_config(config, flags) if config else []) + argv)
    if unknown:
        close = difflib.get_close_matches(unknown[0].split("=")[0], [f"--{flag}" for flag in flags], n=1)
        parser.error(f"unknown argument {unknown[0]}" + (f" (did you mean {close[0]}?)" if close else ""))
    return args


# ==== utils/loop_arguments.py, whole (to change it, change it there; `make fix` copies it) ====
# Flags that are on or off.

def true_or_false(text):
    """Read the value of a switch, in the words that transformers takes."""
    words = {"true": True, "t": True, "yes": True, "y": True, "1": True,
             "false": False, "f": False, "no": False, "n": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return words[text.lower()]


def add_switch(group, name, help):
    """Add a flag that is on or off, as transformers writes them: --flag, --flag true or --flag false."""
    group.add_argument(name, nargs="?", const=True, default=False, metavar="BOOL", type=true_or_false, help=help)


# ==== utils/reading.py, whole (to change it, change it there; `make fix` copies it) ====
# Files of the user, and their lines and objects, each with its place.

def find_files(patterns, flag):
    """Expand paths and globs to a list of files, sorted within a glob. InputError where there is none, or a folder."""
    files = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else [p for p in sorted(glob.glob(pattern, recursive=True))
                                                           if not os.path.isdir(p)]
        if not found or os.path.isdir(pattern):
            fault = ("this is a folder, expected a file" if found else "no file matches this pattern"
                     if glob.has_magic(pattern) else "there is no such file")
            raise InputError(f"{flag} {pattern}: {fault} (looked in {os.getcwd()}). Give a file, or a glob like *.txt")
        files += found
    return files


def read_chunks(path):
    """Read a UTF-8 file, also .gz, in pieces of whole lines: yields (number of the first line, from 1, and the bytes).

    A byte order mark is taken off. InputError names the line and the byte that is not UTF-8.
    """
    number = 1
    try:
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
            while raw := file.read(1 << 22) + file.readline():
                raw.decode("utf-8")  # only to check it
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                number += raw.count(b"\n")
    except UnicodeDecodeError as error:
        line, byte = number + raw.count(b"\n", 0, error.start), error.start - raw.rfind(b"\n", 0, error.start)
        raise InputError(f"{path}, line {line}: byte {byte} of the line (0x{raw[error.start]:02x}) is not UTF-8. "
                         f"Convert it to UTF-8, for instance with: iconv -f latin1 -t utf-8 {path} > new.txt") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}. Was it cut off, or is it of another kind?") from None


def read_lines(path):
    """Read a UTF-8 file, also .gz, in batches: yields (number of the first line, from 1, and the lines without end)."""
    for number, raw in read_chunks(path):
        yield number, [line.removesuffix("\r") for line in raw.removesuffix(b"\n").decode("utf-8").split("\n")]


def read_json(path, on_fault=None):
    """Read .jsonl, or .json that is a list, an object with a list under `data`, or lines: yields (place, object).

    InputError names line and column of what is not JSON, or what stands there instead of an object; on_fault, if given,
    is called with place and InputError of such a row instead.
    """
    rows = ((f"{path}, line {n}", line) for first, batch in read_lines(path) for n, line in enumerate(batch, first))
    parsed = False
    if path.lower().removesuffix(".gz").endswith(".json"):
        rows = list(rows)
        try:
            value = json.loads("\n".join(line for _, line in rows))
            value = value.get("data", [value]) if isinstance(value, dict) else value
            value = value if isinstance(value, list) else [value]
            rows, parsed = [(f"{path}, entry {n}", row) for n, row in enumerate(value, 1)], True
        except (ValueError, RecursionError) as error:
            if not str(error).startswith("Extra data"):  # otherwise it has one object a line, and is read as such
                line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
                raise InputError(f"{path}, line {line}, column {column}: not JSON: {getattr(error, 'msg', error)}. "
                                 "Was the file cut off?") from None
    for place, row in rows:
        if not (parsed or row.strip()):
            continue
        try:
            row = row if parsed else json.loads(row)
        except (ValueError, RecursionError) as error:
            column, fault = getattr(error, "colno", 1), getattr(error, "msg", error)
            fault = InputError(f"{place}, column {column}: not JSON: {fault} in {row[:40]!r}. Expected one object a "
                               "line.")
        else:
            if isinstance(row, dict):
                yield place, row
                continue
            found = json.dumps(row, ensure_ascii=False)[:40]
            fault = InputError(f"{place}: expected an object such as {{\"text\": …}}, found {found!r}")
        if on_fault is None:
            raise fault from None
        on_fault(place, fault)


# ==== utils/tables.py, whole (to change it, change it there; `make fix` copies it) ====
# Rows of CSV and Parquet files, each with its place.

def read_csv(path, on_fault=None):
    """Read .csv or .tsv with a header: yields (place, dict of the row). InputError names the line of a faulty row.

    on_fault, if given, is called with place and InputError of a row that has not the columns of the header instead.
    """
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.lower().removesuffix(".gz").endswith(".tsv") else ","
    lines = (f"{line}\n" for _, batch in read_lines(path) for line in batch)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next((row for row in rows if row), [])
        if len(set(header)) < len(header):
            raise InputError(f"{path}, line {rows.line_num}: a column stands there twice: {', '.join(header)}")
        for row in rows:
            place = f"{path}, line {rows.line_num}"
            if row and len(row) != len(header):
                fault = InputError(f"{place}: expected {len(header)} columns ({', '.join(header)}), found {len(row)}. "
                                   "Put a value that holds the separator in double quotes.")
                if on_fault is None:
                    raise fault
                on_fault(place, fault)
            elif row:
                yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not a well-formed table: {error}. Check the quotes.") from None


def read_parquet(path):
    """Read .parquet: yields (place, dict of the row). InputError where the file is damaged."""
    try:
        with gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb") as file:
            batches = pa.parquet.ParquetFile(file).iter_batches()
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"{path}, row {n}", row) for n, row in enumerate(rows, 1))
    except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())[:100]}") from None


# ==== utils/splits.py, whole (to change it, change it there; `make fix` copies it) ====
# Data sets of the Hub, and what each split of a run is made of.

def load_splits(dataset_name, dataset_config_name):
    """Load a data set of the Hub, or of a folder: dict of split to Dataset. InputError where that fails."""
    try:
        return datasets.load_dataset(dataset_name, dataset_config_name)
    except Exception as error:  # whatever the Hub, a proxy, the file system or a damaged file comes up with
        fault = " ".join(str(error).split())[:200]
        raise InputError(f"--dataset_name {dataset_name}: cannot be loaded: {fault} Check the name and "
                         "--dataset_config_name. Without network, give --train_file with a file of your own, or a "
                         "folder that holds the data set, or bring along a cache from where there is network: "
                         f"{datasets.config.HF_DATASETS_CACHE}") from None


def choose_parts(sources, percent, tasks, load_best_model_at_end):
    """Say what each split of a run is made of: dict of split to (source, part), a part being (which, percent).

    Where there are no validation data, so many percent of the training data are "drawn" for it, and training takes the
    "rest"; else parts are "all".

    Args:
        sources: as find_sources returns. percent: --validation_split_percentage.
        tasks: dict of "train", "validation" and "test" to whether the run does what needs it.

    Raises:
        InputError: something that the run is to do has no data.
    """
    parts = {split: (source, ("all", 0)) for split, source in sources.items()}
    if "validation" not in sources and "train" in sources and percent:
        parts["train"] = (sources["train"], ("rest", percent))
        parts["validation"] = (sources["train"], ("drawn", percent))
    if not tasks["train"]:
        parts.pop("train", None)
    if not (tasks["train"] or tasks["validation"]):
        parts.pop("validation", None)
    for flag, split in (("do_train", "train"), ("do_predict", "test"), ("do_eval", "validation")):
        if tasks[split] and split not in parts and not (tasks["train"] and split == "validation"):
            raise InputError(f"--{flag} has no data: give --{split}_file, or a data set with a split named {split}")
    if not parts:
        raise InputError("there are no data to prepare: give --train_file, --validation_file or --dataset_name")
    if load_best_model_at_end and "validation" not in parts:
        raise InputError("--load_best_model_at_end has nothing to tell the best by: give --validation_file")
    return parts


# ==== utils/texts.py, whole (to change it, change it there; `make fix` copies it) ====
# Text to train on, out of files and data sets.

def hash_files(paths):
    """SHA-256 over the endings and contents of files: the same wherever they lie and whenever they were written."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        ending = os.path.splitext(path.lower().removesuffix(".gz"))[1] + ".gz" * path.lower().endswith(".gz")
        digest.update(f"{ending} {content}\n".encode())
    return digest.hexdigest()


def read_paragraphs(path, separator="auto"):
    """Read plain text, a paragraph a line, as read_texts does: yields (texts, documents).

    A blank line ends a document; a file without blank lines between its lines has one document a line ("auto"). Or one
    of the two, whatever the file has: "blank_line" or "line".
    """
    def read_trimmed():  # without a Python object for each line, which would take most of the time
        for _, raw in read_chunks(path):
            raw = raw.removesuffix(b"\n")
            starts = np.flatnonzero(np.frombuffer(raw, np.uint8) == ord("\n")) + 1
            offsets = pa.py_buffer(np.concatenate([[0], starts, [len(raw)]]))
            lines = pa.LargeStringArray.from_buffers(len(starts) + 1, offsets, pa.py_buffer(raw))
            lines = pa.compute.utf8_trim_whitespace(lines)  # (lines,); line ends, too
            yield lines, pa.compute.binary_length(lines).to_numpy() > 0

    separated, lines, first, filled = separator == "blank_line", 0, None, 0
    for _, has_text in read_trimmed() if separator == "auto" else ():
        places = lines + np.flatnonzero(has_text)
        if len(places):
            first = places[0] if first is None else first
            filled += len(places)
            separated = places[-1] - first >= filled  # a blank line stands between two others
        if separated:
            break
        lines += len(has_text)
    number = 0
    for texts, has_text in read_trimmed():
        ends = ~has_text if separated else np.ones_like(has_text)  # where the next line is another document
        documents = number + np.cumsum(ends) - ends
        number += ends.sum()
        yield texts.filter(pa.array(has_text)), documents[has_text]


def number_rows(texts, first, separator):
    """Number the documents of a table's rows from `first` on: (texts and documents as of read_texts, the next number).

    Each row is a document; where the separator is "blank_line", a row without text ends one.
    """
    texts = [(text or "").strip() for text in texts]
    ends = np.array([separator != "blank_line" or not text for text in texts], dtype=np.int64)
    documents = first + np.cumsum(ends) - ends
    filled = np.array(list(map(bool, texts)), dtype=bool)
    return pa.array([text for text in texts if text], pa.large_string()), documents[filled], first + ends.sum()


def read_texts(path, column, separator="auto"):
    """Read the texts of a file, without the empty ones: paragraphs, or the rows of a table.

    Plain text, which any ending but those of tables is, is read by read_paragraphs. In .jsonl, .json, .csv, .tsv and
    .parquet each row is a document.

    Args:
        path: the file; all kinds also as .gz.
        column: which column or key of a table holds the text.
        separator: what ends a document: "auto", as said above; "blank_line", also a row without text; "line" or "row".

    Yields:
        (texts, documents): an Arrow array of large_string, and the number of the document of each, from 0 (int64).

    Raises:
        InputError: it cannot be read, or a row has no such column, or something else than text in it.
    """
    readers = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet}
    reader = readers.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])
    if reader is None:
        yield from read_paragraphs(path, "line" if separator == "row" else separator)
        return
    rows, number = reader(path), 0
    while batch := list(itertools.islice(rows, 10_000)):
        for place, row in batch:
            if column not in row or not isinstance(row[column], str | None):
                fault = (f"expected text in column {column!r}, found {str(row[column])[:40]!r}" if column in row else
                         f"there is no column {column!r}; the columns are {', '.join(map(str, row))}")
                raise InputError(f"{place}: {fault}. Name the column that holds the text with --text_column_name.")
            if re.search("[\ud800-\udfff]", row[column] or ""):
                raise InputError(f"{place}: column {column!r} holds half a character (a lone surrogate, such as a "
                                 "cut-off emoji leaves). Expected Unicode text; take it out of the file.")
        texts, documents, number = number_rows([row[column] for _, row in batch], number, separator)
        yield texts, documents


def read_all_texts(paths, column, separator="auto"):
    """Read several files as read_texts does, documents numbered through. InputError where none of them has any text."""
    start = rows = 0
    for path in paths:
        last = -1
        for texts, documents in read_texts(path, column, separator):
            yield texts, documents + start
            rows, last = rows + len(texts), documents[-1] if len(documents) else last
        start += last + 1
    if not rows:
        is_table = paths[0].lower().removesuffix(".gz").endswith((".csv", ".tsv", ".json", ".jsonl", ".parquet"))
        fault = "no row with text" if is_table else "nothing but white space"
        fault = fault if sum(map(os.path.getsize, paths)) else "empty, 0 bytes"
        raise InputError(f"{', '.join(paths[:3])}: there is no text in it ({fault}). "
                         "Expected UTF-8 text, a paragraph a line, or a table with a column of texts.")


def find_sources(files, dataset_name, dataset_config_name, column, splits, separator="auto"):
    """Find the text of each split: dict of split to (fingerprint of its content, function that yields batches, name).

    Args:
        files: dict of split to paths and globs, or None.
        dataset_name, dataset_config_name: a data set of the Hub, or a folder, instead of files.
        column: the column that holds the text.
        splits: the splits that are wanted.
        separator: what ends a document, as for read_texts.

    Raises:
        InputError: a file, the data set or its column is not there.
    """
    sources = {}
    for split in splits if not dataset_name else ():
        if files[split]:
            paths = find_files(files[split], f"--{split}_file")
            name = os.path.basename(paths[0]) + (f" and {len(paths) - 1} more files" if paths[1:] else "")
            sources[split] = (f"{hash_files(paths)} {column} {separator}",
                              partial(read_all_texts, paths, column, separator), name)
    if not dataset_name:
        return sources
    loaded = load_splits(dataset_name, dataset_config_name)
    for split in splits:
        if split in loaded:
            if column not in loaded[split].column_names:
                raise InputError(f"--dataset_name {dataset_name}: there is no column {column!r}; the columns are "
                                 f"{', '.join(loaded[split].column_names)}. Name one with --text_column_name.")
            name = f"{dataset_name} ({split})"
            sources[split] = (f"{loaded[split]._fingerprint} {column} {separator}",
                              partial(read_dataset, loaded[split], column, f"--dataset_name {name}", separator), name)
    return sources


def read_dataset(rows, column, name, separator="auto"):
    """Read the texts of a Dataset as read_all_texts reads those of files: yields (texts, documents)."""
    found, document = False, 0
    for start in range(0, len(rows), 10_000):
        texts = rows[start : start + 10_000][column]
        for number, text in enumerate(texts, start):
            if not isinstance(text, str | None):
                raise InputError(f"{name}, row {number}: expected text in column {column!r}, found {str(text)[:40]!r}. "
                                 "Name the column that holds the text with --text_column_name.")
        texts, documents, document = number_rows(texts, document, separator)
        found |= bool(len(texts))
        yield texts, documents
    if not found:
        raise InputError(f"{name}: there is no text in column {column!r}. Name another with --text_column_name.")


def write_texts(batches, path):
    """Write batches of (texts, documents) to an Arrow file. Returns counts: paragraphs, repeated, words, characters."""
    schema = pa.schema({"text": pa.large_string(), "document": pa.int64()})
    counts, hashes, aside = {"paragraphs": 0, "words": 0, "characters": 0}, [], f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with pa.OSFile(aside, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for texts, documents in tqdm(batches, desc="Reading", unit=" batches", disable=None, leave=False):
                writer.write_batch(pa.record_batch({"text": texts, "document": documents}, schema))
                strings = texts.to_pylist()
                counts["paragraphs"] += len(strings)
                counts["words"] += len(strings) + sum(map(str.count, strings, itertools.repeat(" ")))
                counts["characters"] += sum(map(len, strings))
                hashes.append(np.fromiter(map(hash, strings), dtype=np.int64, count=len(strings)))
    except BaseException:
        os.unlink(aside)
        raise
    os.replace(aside, path)  # at once, as another run may be preparing the same text
    return counts | {"repeated": counts["paragraphs"] - len(np.unique(np.concatenate(hashes)))}


# ==== utils/tokenizing.py, whole (to change it, change it there; `make fix` copies it) ====
# Token ids of many texts, as one flat array with offsets.

class FlatTokenizer:
    """Turn many texts into one flat array of token ids with offsets, without special tokens.

    Encodes with nanotoken (WordPiece) or gigatoken (BPE) where one is installed, takes the tokenizer, and agrees with
    the model's own tokenizer on every text it is held against; else with `tokenizers`; else as transformers does.
    `name` says which. Can be pickled.

    Args:
        tokenizer: the model's own tokenizer, of transformers.
        samples: texts to hold a fast library against, besides a fixed set of awkward ones.
        log: called with one line where a fast library is passed over.
    """

    AWKWARD = (
        "", " ", "Hello, world!  It's a test-case: 3.14 (or so)…",
        "naïve Ångström ﬁne ﬀ ß ẞ İ ı ς Σ e\u0301a\u0308 x\u0327\u0301",
        "中文字符和English混合。日本語カタカナ 한국어 नमस्ते दुनिया ไทย العربية עברית",
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☃️ \u0378\ufffe\U000e0001\U0010ffff\ue000",
        "zero\u200bwidth\u200djoin\ufeffmark soft\u00adhyphen tab\tfeed\x0c vt\x0b nul\x00 bel\x07 del\x7f",
        "nbsp\u00a0em\u2003line\u2028nel\x85",
        "x" * 99, "y" * 100, "z" * 101, "w" * 200,
        "[MASK] [mask] x[MASK]y [SEP][CLS] <mask> a<mask>b </s> ##ing # #a ▁x Ġy Ċ",
        "  leading and trailing  ",
        "UPPER MiXeD ÀÉÎ ЁЖ $100 €5 £3 a_b@c.de http://x.y/z?q=1&r=2 ''``--...!!!???",
    )  # fmt: skip

    def __init__(self, tokenizer, samples, log):
        self.tokenizer, self.encode = tokenizer, None
        texts = [*self.AWKWARD, *samples]
        for added in tokenizer.added_tokens_decoder.values():  # where fast libraries stumble: also inside a word
            texts += [added.content, f"a{added.content}b", f"a {added.content} {added.content.upper()} b"]
        expected = self.encoder("transformers")(texts)
        for self.name in ("nanotoken", "gigatoken", "tokenizers"):
            try:
                self.encode = self.encoder(self.name)
                if all(map(np.array_equal, self.encode(texts), expected)):
                    return
                log(f"{self.name} is not used: its ids differ from those of the model's own tokenizer")
            except ImportError:
                pass  # optional
            except Exception as error:  # whatever a young library stumbles over: the next one is tried
                log(f"{self.name} is not used: {type(error).__name__}: {str(error)[:100]}")
        self.name, self.encode = "transformers", self.encoder("transformers")

    def encoder(self, name):
        """Make the function that turns a list of texts into int32 ids (tokens,) and int64 offsets (texts + 1,)."""

        def flatten(rows):
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            return np.fromiter((i for row in rows for i in row), dtype=np.int32, count=offsets[-1]), offsets

        if name == "transformers":
            return lambda texts: flatten(self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.no_truncation()  # settings that other uses of the tokenizer leave behind
        backend.no_padding()
        if name == "nanotoken":
            import nanotoken

            fast = nanotoken.Tokenizer.from_json(backend.to_str())

            def encode(texts):
                rows = fast.encode_batch(texts, add_special_tokens=False)
                return rows.ids.astype(np.int32), rows.offsets

            return encode
        if name == "gigatoken":
            import awkward
            import gigatoken

            fast = gigatoken.Tokenizer.from_json(backend.to_str())

            def encode(texts):
                rows = fast.encode_batch(texts)
                return (awkward.to_numpy(awkward.flatten(rows)).astype(np.int32),
                        np.cumsum([0, *awkward.num(rows)], dtype=np.int64))

            return encode
        return lambda texts: flatten([row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)])

    def __getstate__(self):
        return self.__dict__ | {"encode": None}  # made anew in each data worker: the fast libraries do not pickle

    def __call__(self, texts):
        """Tokenize a list of texts: int32 ids (tokens,) and int64 offsets (texts + 1,) into them."""
        self.encode = self.encode or self.encoder(self.name)
        return self.encode(texts)


def tokenize_batch(table, tokenizer):
    """Tokenize the column `text` of an Arrow table: lists of int32 over one flat array, in the column `ids`."""
    ids, offsets = tokenizer(table["text"].to_pylist())
    return pa.table({"ids": pa.LargeListArray.from_arrays(offsets, ids), "document": table["document"]})


def tokenize_source(source, tokenizer, *, num_proc, overwrite):
    """Turn the text of a source into token ids without special tokens, or find them in the cache, by content.

    Args:
        source: (fingerprint, function that yields batches of texts and documents, name), as find_sources returns.
        tokenizer: the model's own. num_proc: processes that tokenize. overwrite: do it anew.

    Returns:
        (tokens, counts): a Dataset of `ids` (int32 lists) and `document`, a row for each text, in the Arrow format; and
        a dict of counts, whose `key` tells apart what was made from other content or with another vocabulary.
    """
    fingerprint, batches, _ = source
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else f"{tokenizer!r} {tokenizer.get_vocab()}"
    key = hashlib.sha256(f"2 {fingerprint} {vocabulary}".encode()).hexdigest()[:32]
    cache = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    cache.mkdir(parents=True, exist_ok=True)
    text, facts, made = cache / f"text-{key}.arrow", cache / f"text-{key}.json", cache / f"tokens-{key}.arrow"
    if overwrite or not (text.exists() and facts.exists()):
        write_json(facts, write_texts(batches(), text))
    counts = json.loads(facts.read_text(encoding="utf-8")) | {"key": key}
    if made.exists() and not overwrite:
        return datasets.Dataset.from_file(str(made)).with_format("arrow"), counts
    texts = datasets.Dataset.from_file(str(text)).with_format("arrow")
    flat_tokenizer = FlatTokenizer(tokenizer, texts[:100]["text"].to_pylist(), tqdm.write)
    at_once = max(1, int(2e6 * counts["paragraphs"] / counts["characters"]))  # paragraphs in about 2 MB
    tokens = texts.map(tokenize_batch, batched=True, batch_size=at_once, fn_kwargs={"tokenizer": flat_tokenizer},
                       remove_columns=["text"], num_proc=num_proc, desc=f"Tokenizing ({flat_tokenizer.name})",
                       load_from_cache_file=not overwrite, new_fingerprint=key, cache_file_name=str(made))
    return tokens, counts


# ==== utils/models.py, whole (to change it, change it there; `make fix` copies it) ====
# Models and tokenizers: loading them, and what they can take.

def load_pretrained(load, flag, name, **settings):
    """Call a `from_pretrained`. What cannot be loaded is an InputError that says what to do."""
    try:
        return load(name, **settings)
    except Exception as error:  # a wrong name, no network, a damaged file, sizes that do not fit: the user's to mend
        advice = ("Expected a folder of config.json, tokenizer.json and model.safetensors; check the path."
                  if os.path.isdir(name) or name.startswith((".", "/", "~")) else
                  "It is no folder, so it was looked up on the Hub: check the spelling. Without network, load it where "
                  f"there is one (hf download {name} --local-dir DIR) and give that folder.")
        raise InputError(f"{flag} {name}: cannot be loaded: {' '.join(str(error).split())[:300]} {advice}") from None


def load_config_and_tokenizer(model, tokenizer_name, config_overrides, max_seq_length, **hub):
    """Load what is needed to prepare data: (config, tokenizer). InputError where they do not fit the task."""
    config = load_pretrained(AutoConfig.from_pretrained, "--model", model, **hub)
    try:
        if config_overrides:
            config.update_from_string(config_overrides)
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"--config_overrides {config_overrides}: {error}. Expected KEY=VALUE,KEY=VALUE with keys "
                         "of the model's config.json") from None
    flag, name = ("--tokenizer_name", tokenizer_name) if tokenizer_name else ("--model", model)
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, flag, name, **hub)
    if not {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}:  # what transformers makes where there is none
        raise InputError(f"{flag} {name}: there is no tokenizer in it, or one without words. Save the tokenizer beside "
                         "the model, or give --tokenizer_name.")
    for kind, token in (("mask", tokenizer.mask_token_id), ("padding", tokenizer.pad_token_id),
                        ("[CLS]", edge_ids(tokenizer)[0]), ("[SEP]", edge_ids(tokenizer)[1])):
        if token is None:
            raise InputError(f"{flag} {name}: its tokenizer has no {kind} token. Take a model that was made for masked "
                             "language modelling, such as bert-base-uncased.")
    if tokenizer.is_fast:  # what a tokenizer.json says of lengths is for other uses, and would change with each use
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    longest = longest_input(config, tokenizer)
    if max_seq_length > longest:
        raise InputError(f"--max_seq_length is {max_seq_length}; {model} takes at most {longest}. Give that or less.")
    return config, tokenizer


def edge_ids(tokenizer):
    """Ids that begin and end an example: [CLS] and [SEP], or what stands for them."""
    return [tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id,
            tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id]


def longest_input(config, tokenizer):
    """Count the tokens, special ones included, that a model can take; infinity where it has no limit."""
    longest = min(getattr(config, "max_position_embeddings", None) or math.inf, tokenizer.model_max_length)
    offset = ("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "xmod")
    if "roberta" in config.model_type or config.model_type in offset:  # their positions begin behind the padding id
        longest = min(longest, config.max_position_embeddings - (config.pad_token_id or 0) - 1)
    return longest


def load_model(kind, name, config, from_scratch, vocab_size, head, *, revision, trust_remote_code, new_head=False):
    """Load a model in float32, whatever it was stored in: (model, note), which says what of it starts at random.

    Args:
        kind: class to load it with, such as AutoModelForMaskedLM. name: Hub name or folder. config: its config or None.
        from_scratch: random weights. vocab_size: of the tokenizer, to which smaller embeddings grow.
        head: words for the head, as "masked-language-modelling head". new_head: the weights that the model has for it
            are for other labels: leave it at random.
    """
    if from_scratch:
        build = partial(kind.from_config, config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        model, note = load_pretrained(lambda _: build(), "--model", name), "all of it starts at random"
    else:
        model, info = load_pretrained(kind.from_pretrained, "--model", name, config=config, dtype=torch.float32,
                                      output_loading_info=True, revision=revision, trust_remote_code=trust_remote_code,
                                      ignore_mismatched_sizes=new_head)
        missing = sorted({key.rpartition(".")[0] for key in info["missing_keys"]})
        note = (f"these parts start at random, as it has no weights for them: {', '.join(missing)}" if missing
                else f"its {head} comes trained")
    if new_head and not from_scratch:
        parts = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
                 and not name.startswith(model.base_model_prefix) and module.out_features == config.num_labels}
        for part in parts.values():  # of the same shape as the weights of other labels
            torch.nn.init.normal_(part.weight, std=getattr(config, "initializer_range", 0.02))
            if part.bias is not None:
                torch.nn.init.zeros_(part.bias)
        note = f"these parts start at random, as its own are for other labels: {', '.join(parts)}"
    size = model.get_input_embeddings().num_embeddings
    if vocab_size > size:
        note += f"; its vocabulary grows from {size} to {vocab_size} tokens, as the tokenizer's, the new ones at random"
        model.resize_token_embeddings(vocab_size)
    return model, note


def checkpoint_gradients(model):
    """Let a model forget most of what backward needs, and compute it again. InputError where its kind cannot."""
    if not model.supports_gradient_checkpointing:
        raise InputError(f"--gradient_checkpointing: a model of the kind {model.config.model_type} has none")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


# ==== utils/checkpoints.py, whole (to change it, change it there; `make fix` copies it) ====
# Checkpoints that count only when they are whole.

def write_json(path, value):
    """Write a JSON file so that a reader, or a kill, never meets half of it."""
    aside = Path(f"{path}.{os.urandom(4).hex()}.tmp")
    aside.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
    os.replace(aside, path)


def write_manifest(folder):
    """Write manifest.json into a checkpoint: size in bytes and SHA-256 of each file. Written last."""
    files = {}
    for path in sorted(Path(folder).iterdir()):
        with open(path, "rb") as file:
            files[path.name] = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    Path(folder, "manifest.json").write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def checkpoint_fault(folder):
    """Say in words why a checkpoint does not agree with its manifest.json; None if it does."""
    try:
        files = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))["files"]
        files = {name: (expected["size"], expected["sha256"]) for name, expected in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json is missing or damaged ({error})"
    for name, expected in files.items():
        try:
            with open(Path(folder, name), "rb") as file:
                found = (os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            return f"{name} is missing or cannot be read ({error.strerror})"
        if found[0] != expected[0]:
            return f"{name} has {found[0]:,} bytes instead of {expected[0]:,}"
        if found != expected:
            return f"{name} is not what was written (its SHA-256 differs)"
    return None


def list_checkpoints(output_dir):
    """List the folders named checkpoint-N in output_dir, oldest first, whether they are whole or not."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def remove_folder(folder):
    """Remove a folder, if it is there, so that a kill halfway leaves nothing under its name."""
    aside = folder.with_name(f"tmp-old-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def save_checkpoint(output_dir, step, write, limit, keep=None):
    """Save checkpoint-{step}: write aside, add the manifest, rename, and only then let older ones go.

    Args:
        output_dir: folder of the run.
        step: number of updates done.
        write: function that writes the checkpoint's files into the empty folder that it is given.
        limit: how many checkpoints stay, at least 1.
        keep: name of one that stays whatever its age, such as the best, and counts; None for none.
    """
    folder, aside = Path(output_dir, f"checkpoint-{step}"), Path(output_dir, f"tmp-checkpoint-{step}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    write_manifest(aside)
    remove_folder(folder)  # a damaged one of this name stands in the way of the rename
    os.replace(aside, folder)
    old = [path for path in list_checkpoints(output_dir)  # those without a manifest are not of this kind
           if path != folder and path.name != keep and (path / "manifest.json").exists()]
    kept = limit - 1 - (keep not in (None, folder.name) and Path(output_dir, keep).exists())
    for path in old[: max(0, len(old) - max(0, kept))]:
        remove_folder(path)


# ==== utils/output.py, whole (to change it, change it there; `make fix` copies it) ====
# The folder of a run: what may lie there, and what a run goes on from.

def open_output(output_dir, training, resume, overwrite, say):
    """Make the output folder, or refuse one in use; find the checkpoint to go on from: (folder or None, state).

    Args:
        output_dir: folder of the run. training: the run trains, and does not only evaluate.
        resume: "latest", a folder, or None. overwrite: replace what lies there. say: called with lines for the user.

    Raises:
        InputError: the folder is in use or cannot be made, or the checkpoint is not whole.
    """
    if not output_dir:
        raise InputError("--output_dir is empty; name a folder")
    output_dir, checkpoint = Path(output_dir), None
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: cannot be made, or is a file: {error.strerror}. Name another "
                         "folder.") from None
    if training and resume == "latest":
        for folder in reversed(list_checkpoints(output_dir)):
            fault = checkpoint_fault(folder)
            if fault is None:
                checkpoint = folder
                break
            say(f"Warning     {folder} is passed over: {fault}")
        else:
            say(f"Resume      there is no whole checkpoint in {output_dir}: starting anew")
    elif training and resume:
        checkpoint = Path(resume)
        fault = checkpoint_fault(checkpoint)
        if fault:
            raise InputError(f"--resume_from_checkpoint {checkpoint}: not a whole checkpoint: {fault}. Give another, "
                             "or latest.")
    used = [output_dir / "model.safetensors"]
    if resume != "latest":  # which passes over damaged checkpoints, and may replace them
        used = [*list_checkpoints(output_dir), *used]
    goes_on = overwrite or (checkpoint and checkpoint.resolve().parent == output_dir.resolve())
    for path in used if training and not goes_on else ():
        if path.exists():
            raise InputError(f"--output_dir {output_dir} is in use: {path} lies there. To go on with that run, give "
                             "--resume_from_checkpoint latest; to replace it, --overwrite_output_dir; or name another "
                             "folder.")
    if not checkpoint:
        return None, {"step": 0, "window": None, "train": None, "latest": None, "best": None, "initial": {},
                      "fills": {}, "run_id": os.urandom(8).hex()}
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if state["best"] and not Path(output_dir, f"checkpoint-{state['best']['step']}").exists():
        state["best"] = None  # it lies in another folder, from which this run goes on
    return checkpoint, state


def check_resume(made_with, processes, state, checkpoint, output_dir):
    """Hold a checkpoint against the run that is to go on from it, or note in its state what the run is made with.

    Args:
        made_with: dict of name to value of all that a resume would silently ignore or mix if it changed.
    """
    for name, value in made_with.items() if checkpoint else ():
        if state["made_with"].get(name) != value:
            before = state["made_with"].get(name)
            batch = (f" Give --per_device_train_batch_size and --gradient_accumulation_steps that make {before} with "
                     f"{processes.num_processes} processes." if name == "global batch" else "")
            raise InputError(f"{checkpoint}: {name} was {before} and is now {value}. A run goes on with the text, "
                             "settings and global batch (processes x batch size x accumulation steps) that it began "
                             f"with.{batch}")
    state["made_with"] = made_with
    if processes.sum(state["step"])[0] != state["step"] * processes.num_processes:
        raise InputError(f"the processes found different checkpoints in {output_dir}. Expected a folder that all "
                         "machines see; put --output_dir on a shared disk.")


def cut_log(path, step):
    """Cut a log.jsonl back to the lines up to an update, when a run goes on from there; a missing file is fine."""
    kept = []
    for line in Path(path).read_text(encoding="utf-8").splitlines(True) if os.path.exists(path) else ():
        # A kill can leave the last line half written, without its end.
        found = re.fullmatch(r'\{"step": (\d+)(, .*)?\}\n', line)
        if found and int(found[1]) <= step:
            kept.append(line)
    Path(f"{path}.tmp").write_text("".join(kept), encoding="utf-8")
    os.replace(f"{path}.tmp", path)


def clear_output(output_dir, step, overwrite):
    """Clear the output folder of what the run replaces: later checkpoints, halves, the log from this update on."""
    output_dir = Path(output_dir)
    replaced = [folder for folder in list_checkpoints(output_dir) if int(folder.name.split("-")[1]) > step]
    left = [*output_dir.glob("tmp-checkpoint-*"), *output_dir.glob("tmp-old-*"), output_dir / "tmp-model"]
    for folder in left + (replaced if overwrite or step else []):
        remove_folder(folder)  # later than what is resumed, or left by a run that was killed while it saved
    for name in ("model.safetensors", "all_results.json") if overwrite else ():
        (output_dir / name).unlink(missing_ok=True)
    cut_log(output_dir / "log.jsonl", step if step else -1)


# ==== utils/devices.py, whole (to change it, change it there; `make fix` copies it) ====
# Devices, precision, threads, and what the processes of a run tell each other.

def pick_precision(wanted, launcher, device_type):
    """Choose "bf16", "fp16" or "no" (float32).

    "auto" leaves it to the launcher, and where that says "no", as it does when told nothing, to the hardware: bfloat16
    where the device (its type: "cpu", "cuda" …) computes it natively. Emulated, it is slower than float32.
    """
    if wanted != "auto":
        return wanted
    if launcher in ("bf16", "fp16"):
        return launcher
    native = {"cpu": lambda: any(torch.cpu.get_capabilities().get(k) for k in ("amx_bf16", "avx512_bf16", "bf16")),
              "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
              "xpu": torch.xpu.is_bf16_supported}
    return "bf16" if native.get(device_type, bool)() else "no"


def set_cpu_threads(wanted, local_processes):
    """Set torch's threads: `wanted`, or physical cores / processes of this machine. Returns their number.

    `accelerate launch` leaves one thread on a CPU, which halves the speed of two cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(torch.cpu.get_capabilities().get("num_physical_cores", allowed), allowed)
    torch.set_num_threads(wanted or max(1, cores // local_processes))
    return torch.get_num_threads()


def keep_freed_memory():
    """Have the C library keep what is freed for the next update. To give it back and fetch it anew costs a tenth of it.

    For training on a CPU with glibc; elsewhere there is no such setting, and nothing is done.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX: no memory map of its own for a large tensor
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes
    except (OSError, AttributeError, TypeError):
        pass


def choose_device(mixed_precision, cpu_threads):
    """Choose what to run on, and set torch's threads: (whether on the CPU, precision, threads).

    Raises:
        InputError: the launcher asks for what these scripts do not support, or for fp16 on a CPU.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise InputError(f"accelerate is set to {name}, which this script does not support: encoders of this size "
                             "train fastest with plain data parallelism, accelerate launch --multi_gpu")
    on_cpu = (not torch.accelerator.is_available()
              or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"))
    device_type = "cpu" if on_cpu else torch.accelerator.current_accelerator().type
    precision = pick_precision(mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), device_type)
    if precision == "fp16" and on_cpu:
        raise InputError("--mixed_precision fp16 needs a GPU; give bf16, no or auto")
    threads = set_cpu_threads(cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if on_cpu:
        keep_freed_memory()
    return on_cpu, precision, threads


class Processes:
    """What the processes of a run tell each other on the CPU: sums of counts, and whose turn it is.

    Over gloo: with NCCL the CPU would wait for the GPU, and whoever waits for more than ten minutes is given up.
    """

    def __init__(self, num_processes, rank, local_rank):
        self.num_processes, self.rank, self.local_rank, self.group = num_processes, rank, local_rank, None
        if num_processes > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))

    def sum(self, *values):
        """Add up numbers over all processes, in float64: a list of as many floats."""
        totals = torch.tensor(values, dtype=torch.float64)
        if self.group is not None:
            torch.distributed.all_reduce(totals, group=self.group)
        return totals.tolist()

    def add(self, *arrays):
        """Add up arrays of numbers over all processes, each in its place."""
        for numbers in arrays if self.group is not None else ():
            torch.distributed.all_reduce(torch.from_numpy(numbers), group=self.group)

    def main_first(self, function):
        """Call function on the first process, then on the first of each machine, then on the others.

        What one has cached, the next find. Where it raises InputError, that process says why and all end.
        """
        result = failure = None
        for turn in range(3):
            if turn == (0 if self.rank == 0 else 1 if self.local_rank == 0 else 2):
                try:
                    result = function()
                except InputError as error:
                    failure = error
                    failure.only_here = True
            failures = self.sum(failure is not None)[0]
            if failure:
                raise failure
            if failures:
                time.sleep(10)  # the launcher ends all as soon as one is gone: let the other speak first
                sys.exit(2)
        return result


def join_processes(num_processes, rank, local_rank):
    """Make the Processes of a run. InputError where the launcher started more than train together."""
    if int(os.environ.get("WORLD_SIZE", 1)) != num_processes:
        raise InputError(f"{os.environ['WORLD_SIZE']} processes were started, but each would train alone. On a CPU: "
                         "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N run_….py …")
    return Processes(num_processes, rank, local_rank)


# ==== utils/signals.py, whole (to change it, change it there; `make fix` copies it) ====
# SIGTERM and Ctrl-C.

class StopSignal:
    """Notes SIGTERM or Ctrl-C in `number`, for the loop to finish its update and save. A second Ctrl-C ends at once."""

    def __enter__(self):
        self.number, self.since = 0, 0.0
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, _frame):
        # Launchers pass a Ctrl-C on to processes that had it from the terminal already: that is not a second one.
        if self.number and number == signal.SIGINT and time.monotonic() - self.since > 2:
            raise KeyboardInterrupt
        self.number, self.since = self.number or number, self.since or time.monotonic()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_interrupts(_worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loop, which still needs the data of its update


def end_stopped_run(accelerator, number, step, say):
    """End a run that a signal has stopped, whose checkpoint is saved, and say how to go on. Status: 128 + number."""
    say(f"Stopped by {signal.Signals(number).name} after update {step}, which is saved. To go on, give the same "
        "command with --resume_from_checkpoint latest")
    accelerator.end_training()
    sys.exit(128 + number)


# ==== utils/results.py, whole (to change it, change it there; `make fix` copies it) ====
# What a run leaves behind: trackers, results, model and card.

def start_trackers(accelerator, project, settings, state):
    """Start the trackers of --report_to; where a run is resumed, go on with its own. settings: dict of all flags."""
    shown = {k: value if isinstance(value, int | float | str) else str(value) for k, value in settings.items()}
    name = settings["run_name"]
    try:
        accelerator.init_trackers(os.environ.get("WANDB_PROJECT", project), shown, {
            "wandb": {"name": name, "id": state["run_id"], "resume": "allow", "dir": settings["output_dir"]},
            "trackio": {"name": name, "resume": "allow" if state["step"] else "never"},
            "tensorboard": {"purge_step": state["step"] + (state["step"] > 0)}})  # hides what stood there from here on
    except Exception as error:  # no account, no network, a server that refuses
        fault = " ".join(str(error).split())[:200]
        raise InputError(f"--report_to {' '.join(settings['report_to'])}: cannot start: {fault}. For wandb, 'wandb "
                         "login' or WANDB_MODE=offline.") from None


def claim_repository(hub_model_id, output_dir):
    """Make the repository that the model is to be pushed to: its full name. Before the training, in case it fails."""
    try:
        return huggingface_hub.create_repo(hub_model_id or Path(output_dir).resolve().name, exist_ok=True).repo_id
    except Exception as error:  # no account, no network, a name that is not allowed
        raise InputError(f"--push_to_hub: cannot start: {' '.join(str(error).split())[:200]}. Log in with 'hf auth "
                         "login', and give --hub_model_id NAME/MODEL.") from None


def score_rows(results):
    """List (name, before, after) of the scores, as text."""
    names = [name for name in results if name.startswith(("eval_", "perplexity", "predict_"))]
    values = [[results.get(f"initial_{name}"), results.get(name)] for name in names]
    return [(name, *("-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
                     for value in pair)) for name, pair in zip(names, values, strict=True)]


def write_model_card(output_dir, base, task, tag, data, results, settings, tables=()):
    """Write README.md: what the model was made of, and its scores before and after.

    Args:
        base: Hub name or folder of the model it began with. task: a sentence that says what was done with it.
        tag: the Hub's name of the task, or None. data: dict of split to (examples, tokens, name of the source).
        settings: dict of all flags. tables: more lines to stand below the scores.
    """
    named = [] if os.path.exists(base) else [f"base_model: {base}"]
    sizes = [f"| {split} | {examples:,} | {tokens:,} | {html.escape(name).replace('|', '&#124;')} |"
             for split, (examples, tokens, name) in data.items()]
    scores = [f"| {' | '.join(row)} |" for row in score_rows(results)]
    chosen = {name: value for name, value in sorted(settings.items())
              if not (value is None or value is False or value == [])}  # a 0 is a setting
    lines = ["---", "library_name: transformers", *([f"pipeline_tag: {tag}"] if tag else []), *named, "---", "",
             f"# {Path(output_dir).name}", "", f"{Path(base).name}, {task}", "",
             "| data | examples | tokens | source |", "| --- | ---: | ---: | --- |", *sizes, "",
             "| score | before | after |", "| --- | ---: | ---: |", *scores, "",
             "Losses are in nats, a mean over what is predicted.", "", *tables, "```yaml",
             *(f"{name}: {json.dumps(value)}" for name, value in chosen.items()), "```", ""]
    Path(output_dir, "README.md").write_text("\n".join(lines), encoding="utf-8")


def save_model(output_dir, model, tokenizer):
    """Leave model and tokenizer in the output folder, file by file, so that a kill leaves no half of one."""
    aside = Path(output_dir, "tmp-model")
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    umask = os.umask(0)
    os.umask(umask)
    for path in aside.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors lets the owner alone read its files
        os.replace(path, Path(output_dir, path.name))
    aside.rmdir()


def write_results(output_dir, results, same_model, trained):
    """Write all_results.json, beside the scores that stand there already if they are of the same model."""
    path = Path(output_dir, "all_results.json")
    older = json.loads(path.read_text(encoding="utf-8")) if path.exists() and same_model else {}
    # What was scored before the training may have been other data than these.
    if not trained and any(name.startswith("eval_") for name in results):
        older = {name: value for name, value in older.items() if not name.startswith("initial_")}
    write_json(path, older | results)


def upload(output_dir, repository):
    """Push what the output folder holds, but for checkpoints, to a repository of the Hub."""
    try:
        print("Uploaded to", huggingface_hub.upload_folder(
            repo_id=repository, folder_path=output_dir, ignore_patterns=["checkpoint-*", "tmp-*", "wandb/*"]))
    except Exception as error:  # network, rights, quota
        raise InputError(f"--push_to_hub: {' '.join(str(error).split())[:200]}. The model is safe in {output_dir}; "
                         f"upload it with: hf upload NAME/MODEL {output_dir}") from None


def show_results(results, note, output_dir, say):
    """Print the scores, before the training and after it, and where things are. note: what started at random."""
    trained, rows = any(name.startswith("initial_") for name in results), score_rows(results)
    width = max([20, *(len(name) + 2 for name, *_ in rows)])
    for name, *values in ([("", "before", "after")] * trained + rows if results else ()):
        say(f"{name:<{width}}" + "".join(f"{value:>16}" for value in values[0 if trained else 1 :]))
    if trained:
        say(f"Before: {note}")
    if results:
        say(f"Results are in {Path(output_dir, 'all_results.json')}"
            + (f", model and log in {output_dir}" if "step" in results else ""))


# ==== utils/loop.py, whole (to change it, change it there; `make fix` copies it) ====
# What stands around the updates of a loop.

def start_processes(mixed_precision, cpu_threads, report_to, output_dir, unused_weights):
    """Start accelerate as the launcher asks: (accelerator, processes, threads). InputError for what cannot work.

    unused_weights: the model leaves some of its weights without a gradient. To look for them takes time.
    """
    on_cpu, precision, threads = choose_device(mixed_precision, cpu_threads)
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=precision, log_with=report_to or None,
        project_config=ProjectConfiguration(output_dir, logging_dir=f"{output_dir}/runs"),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_weights)])
    processes = join_processes(accelerator.num_processes, accelerator.process_index, accelerator.local_process_index)
    return accelerator, processes, threads


def describe_processes(accelerator, processes, threads, say):
    """Say what the run runs on."""
    plural = "es" if processes.num_processes > 1 else ""
    say(f"Running on  {accelerator.device.type}, {processes.num_processes} process{plural}, {threads} CPU threads "
        f"each, {accelerator.mixed_precision.replace('no', 'float32')}")


def build_optimizer(model, learning_rate, weight_decay):
    """Fused AdamW that decays matrices alone: biases and the weights of normalisation have one dimension."""
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


class TrainingRun:
    """What stands around the updates: losses are logged, the model scored and saved, and all of it can be resumed.

    Args:
        settings: the flags, a dict: output_dir, when to log, evaluate and save, and what to keep.
        accelerator, processes: as start_processes made them.
        model, tokenizer, optimizer, scheduler: what a checkpoint holds.
        sampler: the GlobalBatchSampler, which knows where epochs end.
        score: function that scores the model, a dict of results; None where there are no validation data.
        means: function that makes what is logged, a dict, of sums of losses (nats) and of counts, a list of each.
        state: what a checkpoint carries besides: `step`, the updates done; sums of losses and counts since they were
            last logged (`window`) and since the start (`train`); the latest and the best scores, with their step.
        max_steps: updates of the run.
    """

    def __init__(self, settings, accelerator, processes, model, tokenizer, optimizer, scheduler, sampler, score, means,
                 state, max_steps):
        self.settings, self.accelerator, self.processes = settings, accelerator, processes
        self.model, self.tokenizer, self.optimizer, self.scheduler = model, tokenizer, optimizer, scheduler
        self.sampler, self.score, self.means, self.state, self.max_steps = sampler, score, means, state, max_steps
        self.pending, self.paused = [], 0.0  # losses that are still on the device; seconds spent on scoring and saving
        self.bar = tqdm(total=max_steps, initial=state["step"], desc="Training", unit=" updates",
                        disable=processes.rank > 0 or None)

    def is_due(self, strategy, every):
        step, every = self.state["step"], math.ceil(every * self.max_steps) if every < 1 else int(every)
        if strategy == "epoch":
            return self.sampler.place(step)[1] == 0 or step == self.max_steps
        return strategy == "steps" and step % every == 0

    def log(self, values):
        if self.processes.rank == 0:
            with open(Path(self.settings["output_dir"], "log.jsonl"), "a", encoding="utf-8") as file:
                epoch = round(self.sampler.epochs_until(self.state["step"]), 4)
                file.write(json.dumps({"step": self.state["step"], "epoch": epoch, **values}) + "\n")
        self.accelerator.log(values, step=self.state["step"])

    def settle(self):
        """Read the losses that are still on the device, and add them up over all processes."""
        if self.pending:
            sums = self.processes.sum(*torch.stack(self.pending).cpu().double().sum(dim=0).tolist())
            before = self.state["window"]["sums"]
            self.state["window"]["sums"] = [a + b for a, b in zip(before, sums, strict=True)]
        self.pending.clear()

    def evaluate(self, scores=None, prefix=""):
        self.settle()
        begun, scores = time.perf_counter(), scores or self.score(self.model)
        self.log({prefix + name: value for name, value in scores.items()})
        self.state["latest"] = {"step": self.state["step"], **scores}
        if self.processes.rank == 0:
            shown = "  ".join(f"{name} {value:.6g}" for name, value in islice(scores.items(), 6))
            tqdm.write(f"Update {self.state['step']:>6}  {shown}")
        self.paused += time.perf_counter() - begun

    def save(self):
        self.settle()
        begun, state = time.perf_counter(), self.state
        if self.settings["load_best_model_at_end"] and state["latest"]["step"] == state["step"] and (
                not state["best"] or state["latest"]["eval_loss"] < state["best"]["eval_loss"]):
            state["best"] = state["latest"]  # of models that are saved, so that it can be loaded
        if self.processes.rank == 0:
            save_checkpoint(self.settings["output_dir"], state["step"], self.write, self.settings["save_total_limit"],
                            keep=f"checkpoint-{state['best']['step']}" if state["best"] else None)
        self.processes.sum(0)  # the others wait: none trains on if this one fails
        self.paused += time.perf_counter() - begun

    def write(self, folder):
        self.accelerator.unwrap_model(self.model, keep_torch_compile=False).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        state = dict(self.state, scheduler={k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
                     scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler else None)
        (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    def after_update(self, update, losses, counts, norm, stop):
        """Log, score and save what is due after an update. Returns True where the run is to end.

        losses: sums of this process, (kinds,), nats, on the device. counts: of all processes, a list of as many.
        """
        state, last, nothing = self.state, update == self.max_steps, {"sums": [0.0] * len(counts),
                                                                      "counts": [0.0] * len(counts)}
        state["step"], state["window"] = update, state["window"] or nothing
        state["window"]["counts"] = [a + b for a, b in zip(state["window"]["counts"], counts, strict=True)]
        self.pending.append(losses)
        self.bar.update()
        if self.is_due("steps", self.settings["logging_steps"]) or last:
            self.settle()
            window, total, state["window"] = state["window"], state["train"] or nothing, None
            state["train"] = {name: [a + b for a, b in zip(total[name], window[name], strict=True)] for name in total}
            shown = self.means(**window)
            self.log({**shown, "learning_rate": self.scheduler.get_last_lr()[0], "grad_norm": norm.item()})
            self.bar.set_postfix(loss=f"{shown['loss']:.3f}")
            if self.bar.disable and self.processes.rank == 0:  # no terminal to show a bar on
                print(f"Update {update:>6}  " + "  ".join(f"{name} {value:.6g}" for name, value in shown.items()),
                      flush=True)
        if self.score and (self.is_due(self.settings["eval_strategy"], self.settings["eval_steps"]) or last):
            self.evaluate()
        if self.is_due(self.settings["save_strategy"], self.settings["save_steps"]) or (stop and not last):
            self.save()
        return stop


# ==== run_mlm.py ====


if __name__ == "__main__":
    run_main(main)
