# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch>=2.13",
#     "transformers>=5.23",
#     "accelerate>=1.15",
#     "datasets>=5.2",
#     "numpy>=2.4",
#     "pyarrow>=26.0",
#     "safetensors>=0.8",
#     "huggingface-hub>=2.4",
#     "PyYAML>=6.0",
#     "tqdm>=4.67",
#     "nanotoken>=0.1.0",
#     "wandb>=0.31",
# ]
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
import csv
import difflib
import glob
import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import time
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
    import pyarrow.parquet
    import torch
    import torch.distributed
    import torch.nn.functional as F
    import transformers
    import yaml
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import send_to_device, set_seed
    from safetensors.torch import load_model
    from torch.utils.data import DataLoader, Sampler, Subset
    from tqdm import tqdm
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, get_scheduler
except ImportError as error:
    print(f"run_mlm.py: error: {error}. Install what it needs:\n    pip install torch transformers accelerate datasets "
          "numpy pyarrow safetensors huggingface-hub PyYAML tqdm nanotoken wandb", file=sys.stderr)
    sys.exit(2)

DEFAULT_DATASET = "stanfordnlp/imdb"  # taken where no data are named, so that the first command above runs as typed


# ---------------------------------------------------------------- arguments


class ArgumentParser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print its usage once for each process
        raise InputError(f"{message}; see --help")


def switch(text):
    """Read the value of a flag that is on or off."""
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "yes", "1")


def add_model_and_data_flags(parser):
    on_off = {"type": switch, "nargs": "?", "const": True, "default": False, "metavar": "BOOL"}
    model = parser.add_argument_group("model")
    model.add_argument("--model", "--model_name_or_path", default="bert-base-uncased",
                       help="name on the Hub, or a folder (default: %(default)s)")
    model.add_argument("--tokenizer_name", help="name or folder of the tokenizer (default: the model's)")
    model.add_argument("--model_revision", default="main", help="branch, tag or commit on the Hub (default: main)")
    model.add_argument("--from_scratch", **on_off, help="take the model's config alone, with random weights")
    model.add_argument("--config_overrides", metavar="KEY=VALUE,…",
                       help="settings of the config to change, such as hidden_dropout_prob=0; pretrained models too")
    model.add_argument("--trust_remote_code", **on_off, help="run code that comes with the model (default: off)")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", help=f"data set of the Hub, or a folder (default: {DEFAULT_DATASET} where no "
                                             "file is given)")
    data.add_argument("--dataset_config_name", help="configuration of that data set")
    data.add_argument("--train_file", nargs="+", help="files or globs to train on")
    data.add_argument("--validation_file", nargs="+", help="files or globs to evaluate on")
    data.add_argument("--test_file", nargs="+", help="files or globs for the predict_ scores at the end")
    data.add_argument("--text_column_name", default="text", help="column of a table (default: %(default)s)")
    data.add_argument("--validation_split_percentage", type=float, default=10, metavar="PERCENT",
                      help="share of the training rows to evaluate on where there are no validation data; the same rows "
                           "for every seed; 0 is none (default: %(default)s)")
    data.add_argument("--max_seq_length", type=int, default=128, metavar="TOKENS",
                      help="tokens per example, [CLS] and [SEP] included (default: %(default)s)")
    data.add_argument("--line_by_line", **on_off, help="one example a line, cut off at --max_seq_length, instead of "
                                                       "blocks of running text")
    for split in ("train", "eval", "predict"):
        data.add_argument(f"--max_{split}_samples", type=int, metavar="EXAMPLES",
                          help="a random sample of so many examples (default: all)")
    data.add_argument("--preprocessing_num_workers", type=int, metavar="PROCESSES", help="processes that tokenize "
                      "(default: one; the fast tokenizers use all cores from there)")
    data.add_argument("--overwrite_cache", **on_off, help="prepare the data anew even where the cache holds them")
    data.add_argument("--prepare_only", **on_off, help="prepare and cache the data, without a model, and end")
    data.add_argument("--text", nargs="+", help="texts with [MASK]: show the five best words for each; without "
                                                "training if no data are given, else before and after")
    masks = parser.add_argument_group("masking")
    masks.add_argument("--masking", choices=["token", "whole_word"], default="token",
                       help="hide single tokens, or all tokens of a word together (default: %(default)s)")
    masks.add_argument("--mlm_probability", type=float, default=0.15, help="share to hide (default: %(default)s)")
    masks.add_argument("--mask_replace_prob", type=float, default=0.8,
                       help="share of the hidden tokens shown as [MASK] (default: %(default)s)")
    masks.add_argument("--random_replace_prob", type=float, default=0.1,
                       help="share shown as a random token; the rest stays as it is (default: %(default)s)")


def add_training_flags(parser):
    on_off = {"type": switch, "nargs": "?", "const": True, "default": False, "metavar": "BOOL"}
    run = parser.add_argument_group("training", "With none of the three --do_ flags: all that the data allow.")
    run.add_argument("--do_train", **on_off, help="train; evaluates too where there are validation data")
    run.add_argument("--do_eval", **on_off, help="evaluate")
    run.add_argument("--do_predict", **on_off, help="score the test data")
    run.add_argument("--per_device_train_batch_size", type=int, default=16, help="examples per process and forward pass "
                                                                                 "(default: %(default)s)")
    run.add_argument("--per_device_eval_batch_size", type=int, default=16, help="the same in evaluation, where it changes "
                                                                                "no score (default: %(default)s)")
    run.add_argument("--gradient_accumulation_steps", type=int, default=1, help="forward passes per update (default: 1)")
    run.add_argument("--learning_rate", type=float, default=5e-5, help="peak, for AdamW (default: %(default)s)")
    run.add_argument("--weight_decay", type=float, default=0.0, help="never on biases and LayerNorm (default: %(default)s)")
    run.add_argument("--max_grad_norm", type=float, default=1.0, help="0 does not clip (default: %(default)s)")
    run.add_argument("--num_train_epochs", type=float, default=3.0, help="passes over the data (default: %(default)s)")
    run.add_argument("--max_steps", type=int, default=-1, help="updates, instead of epochs (default: -1, by epochs)")
    run.add_argument("--lr_scheduler_type", default="linear", help="course of the learning rate (default: %(default)s)",
                     choices=["linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
                              "constant_with_warmup", "inverse_sqrt"])
    run.add_argument("--warmup_steps", type=float, default=0,
                     help="updates, or below 1 a share of all updates; the same on any number of GPUs (default: 0)")
    run.add_argument("--mixed_precision", choices=["auto", "no", "bf16", "fp16"], default="auto",
                     help="auto: as the launcher says, else bf16 where the hardware computes it natively; "
                          "no: float32 (default: %(default)s)")
    run.add_argument("--gradient_checkpointing", **on_off, help="less memory, more time")
    run.add_argument("--dataloader_num_workers", type=int, default=0, help="data workers per process (default: 0)")
    run.add_argument("--cpu_threads", type=int, help="torch threads per process (default: cores / processes)")
    run.add_argument("--seed", type=int, default=42, help="for weights, order, masks and dropout (default: %(default)s)")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", default="outputs/mlm", help="where all goes (default: %(default)s)")
    out.add_argument("--overwrite_output_dir", **on_off, help="train although a model or checkpoints lie there")
    for name, verb in (("eval", "evaluate"), ("save", "save a checkpoint")):
        out.add_argument(f"--{name}_strategy", choices=["no", "steps", "epoch"], default="epoch",
                         help=f"when to {verb} within training (default: %(default)s)")
    out.add_argument("--eval_steps", type=float, help="updates between evaluations, or below 1 a share of all (default: "
                                                      "as --logging_steps)")
    out.add_argument("--save_steps", type=float, default=500, help="the same for checkpoints (default: %(default)s)")
    out.add_argument("--logging_steps", type=float, default=10, help="the same for the loss (default: %(default)s)")
    out.add_argument("--save_total_limit", type=int, default=2, help="checkpoints that are kept (default: %(default)s)")
    out.add_argument("--load_best_model_at_end", **on_off, help="keep the model of the lowest eval_loss")
    out.add_argument("--resume_from_checkpoint", nargs="?", const="latest", metavar="latest|PATH",
                     help="go on from a checkpoint; latest: the newest whole one in --output_dir")
    out.add_argument("--report_to", nargs="+", choices=["none", "wandb", "trackio", "tensorboard"], default=["none"],
                     help="trackers (default: none)")
    out.add_argument("--run_name", help="name of the run in trackers (default: --output_dir)")
    out.add_argument("--push_to_hub", **on_off, help="upload the model to the Hub at the end")
    out.add_argument("--hub_model_id", help="repository to push to (default: the name of --output_dir)")


def parse_args(argv=None):
    parser = ArgumentParser(description="Masked language modelling with an explicit Accelerate loop.", allow_abbrev=False)
    parser.add_argument("--config", metavar="RUN.yaml", help="YAML file of flags; flags typed here win")
    add_model_and_data_flags(parser)
    add_training_flags(parser)
    argv = sys.argv[1:] if argv is None else list(argv)
    config = ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    path = config.parse_known_args(argv)[0].config
    args, unknown = parser.parse_known_args((read_config(path, parser) if path else []) + argv)
    if unknown:
        close = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, n=1)
        parser.error(f"unknown argument {unknown[0]}" + (f" (did you mean {close[0]}?)" if close else ""))
    check_args(args, parser)
    return args


def check_args(args, parser):
    """Find settings that cannot work before anything is loaded, and fill in those that depend on others."""
    if args.max_seq_length < 3:
        parser.error(f"--max_seq_length is {args.max_seq_length}; [CLS], one token and [SEP] need at least 3")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
                 "save_total_limit", "max_train_samples", "max_eval_samples", "max_predict_samples", "cpu_threads",
                 "preprocessing_num_workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; expected at least 1")
    for name in ("seed", "dataloader_num_workers", "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"):
        if not getattr(args, name) >= 0:  # not < 0, which nan would pass
            parser.error(f"--{name} is {getattr(args, name)}; expected 0 or more")
    args.eval_steps = args.eval_steps or args.logging_steps
    for name in ("eval_steps", "save_steps", "logging_steps", "num_train_epochs"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} is {getattr(args, name)}; expected more than 0")
    if not 0 <= args.validation_split_percentage < 100:
        parser.error(f"--validation_split_percentage is {args.validation_split_percentage}; expected 0 to below 100")
    if not 0 < args.mlm_probability <= 1:
        parser.error(f"--mlm_probability is {args.mlm_probability}; expected a share above 0 and up to 1, such as 0.15")
    if min(args.mask_replace_prob, args.random_replace_prob) < 0 or args.mask_replace_prob + args.random_replace_prob > 1:
        parser.error(f"--mask_replace_prob is {args.mask_replace_prob} and --random_replace_prob is "
                     f"{args.random_replace_prob}; expected two shares that add up to at most 1, such as 0.8 and 0.1")
    if args.load_best_model_at_end and (args.eval_strategy != args.save_strategy or args.save_strategy == "no" or (
            args.save_strategy == "steps" and args.save_steps % args.eval_steps)):
        parser.error("--load_best_model_at_end needs a checkpoint of each model that is evaluated: give --save_strategy "
                     "and --eval_strategy the same value (steps or epoch), and --save_steps a multiple of --eval_steps")
    if args.resume_from_checkpoint and args.overwrite_output_dir:
        parser.error("--resume_from_checkpoint goes on with what --overwrite_output_dir would remove; give one of them")
    for package in set(args.report_to) - {"none"}:
        if not importlib.util.find_spec(package):  # accelerate would log nothing and say nothing
            parser.error(f"--report_to {package}: the package is not installed; pip install {package}")
    files = args.train_file or args.validation_file or args.test_file
    if files and args.dataset_name:
        parser.error("--dataset_name and files were given; expected one of the two")
    if not (files or args.dataset_name or (args.text and not args.do_train and not args.do_eval and not args.do_predict)):
        args.dataset_name = DEFAULT_DATASET
    if not (args.do_train or args.do_eval or args.do_predict):
        args.do_train = bool(args.train_file or args.dataset_name)
        args.do_eval, args.do_predict = True, bool(args.test_file)
    if args.do_train and not (args.train_file or args.dataset_name):
        parser.error("--do_train needs --train_file or --dataset_name")
    args.run_name = args.run_name or args.output_dir
    args.report_to = [name for name in args.report_to if name != "none"]


# ---------------------------------------------------------------- data


def find_sources(files, dataset_name, dataset_config_name, column, splits):
    """Find the text of each split.

    Args:
        files: paths and globs of each split, a dict; None where there are none.
        dataset_name, dataset_config_name: a data set of the Hub, or a folder, instead of files.
        column: the column that holds the text.
        splits: the splits that are wanted.

    Returns:
        dict of split to (fingerprint of its content, function that yields batches of (texts, documents), name).

    Raises:
        InputError: a file, the data set or the column is not there.
    """
    sources = {}
    if not dataset_name:
        for split in splits:
            if files[split]:
                paths = find_files(files[split], f"--{split}_file")
                name = ", ".join(map(os.path.basename, paths[:3])) + (f" and {len(paths) - 3} more" if paths[3:] else "")
                sources[split] = (hash_files(paths), partial(read_all_texts, paths, column), name)
        return sources
    try:
        loaded = datasets.load_dataset(dataset_name, dataset_config_name)
    except Exception as error:  # whatever the Hub, a proxy, a file system or a damaged file comes up with
        raise InputError(f"--dataset_name {dataset_name}: cannot be loaded: {str(error).strip().splitlines()[0]} Check the "
                         "name, and --dataset_config_name. Without network, give --train_file with a file of your own, "
                         "or a folder that holds the data set, or load it once where there is network, and bring "
                         f"{datasets.config.HF_DATASETS_CACHE} along.") from None
    for split in splits:
        if split in loaded:
            if column not in loaded[split].column_names:
                raise InputError(f"--dataset_name {dataset_name}: there is no column {column!r}; the columns are "
                                 f"{', '.join(loaded[split].column_names)}. Name one with --text_column_name.")
            rows = loaded[split].select_columns(column)

            def batches(rows=rows):
                for start in range(0, len(rows), 10_000):
                    texts = rows[start : start + 10_000][column]
                    kept = [i for i, text in enumerate(texts) if text and text.strip()]
                    yield [texts[i].strip() for i in kept], [start + i for i in kept]

            sources[split] = (f"{rows._fingerprint} {column}", batches, f"{dataset_name} ({split})")
    return sources


def write_texts(batches, path):
    """Write batches of (texts, documents) to an Arrow file, and count what a look at the data should tell.

    Returns:
        dict of counts: paragraphs, repeated (paragraphs that stood before), words (parted by blanks), characters.
    """
    schema = pa.schema({"text": pa.large_string(), "document": pa.int64()})
    counts, hashes = {"paragraphs": 0, "words": 0, "characters": 0}, []
    with pa.OSFile(f"{path}.tmp", "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for texts, documents in tqdm(batches, desc="Reading", unit=" batches", disable=None, leave=False):
            writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string()), pa.array(documents)], schema))
            counts["paragraphs"] += len(texts)
            counts["words"] += sum(text.count(" ") for text in texts) + len(texts)
            counts["characters"] += sum(map(len, texts))
            hashes.append(np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts)))
    os.replace(f"{path}.tmp", path)
    return counts | {"repeated": counts["paragraphs"] - len(np.unique(np.concatenate(hashes)))}


def tokenize_batch(table, tokenizer):
    """Tokenize an Arrow table's column `text` into `ids`, lists of int32 over one flat array."""
    ids, offsets = tokenizer(table["text"].to_pylist())
    return pa.table({"ids": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(ids)),
                     "document": table["document"]})


class ExampleCutter:
    """Cut tokenized paragraphs into examples: blocks of running text, or lines.

    A block is [CLS], max_seq_length - 2 tokens and [SEP], with one [SEP] between two documents. What one batch of `map`
    leaves over goes on in the next, so that only the last remainder is dropped. A line is cut off at the same length.

    Args:
        size: tokens per example, without [CLS] and [SEP].
        cls_id, sep_id: ids of these two. unk_id: id of the unknown token, which is counted.
        line_by_line: examples are lines instead of blocks.
        rows: which of the paragraphs to take; bool array of shape (paragraphs,).
    """

    def __init__(self, size, cls_id, sep_id, unk_id, line_by_line, rows):
        self.size, self.cls_id, self.sep_id, self.unk_id = size, cls_id, sep_id, unk_id
        self.line_by_line, self.rows = line_by_line, rows
        self.rest, self.document, self.examples = np.zeros(0, np.int32), None, 0
        self.counts = {"tokens": 0, "unknown": 0, "shortened": 0}

    def __call__(self, table, indices):
        lists, documents = table["ids"].combine_chunks(), table["document"].to_numpy()
        offsets = lists.offsets.to_numpy()
        lengths = np.diff(offsets)  # (paragraphs,)
        kept = self.rows[indices] & (lengths > 0)  # a paragraph of control characters has no tokens
        flat = lists.values.to_numpy()[offsets[0] : offsets[-1]][np.repeat(kept, lengths)]  # (tokens,)
        lengths, documents = lengths[kept], documents[kept]
        self.counts["tokens"] += len(flat)
        self.counts["unknown"] += int((flat == self.unk_id).sum())
        rows, bounds = self.cut_lines(flat, lengths) if self.line_by_line else self.cut_blocks(flat, lengths, documents)
        ids = pa.array(np.arange(self.examples, self.examples + len(bounds) - 1))
        self.examples += len(ids)
        return pa.table({"id": ids, "input_ids": pa.LargeListArray.from_arrays(pa.array(bounds), pa.array(rows))})

    def cut_lines(self, flat, lengths):
        place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # of a token in its line
        self.counts["shortened"] += int((lengths > self.size).sum())
        flat, lengths = flat[place < self.size], np.minimum(lengths, self.size)
        starts = np.cumsum(lengths) - lengths
        rows = np.insert(flat, np.stack([starts, starts + lengths], axis=1).ravel(), [self.cls_id, self.sep_id] * len(starts))
        return rows, np.concatenate([[0], np.cumsum(lengths + 2)])

    def cut_blocks(self, flat, lengths, documents):
        if len(documents):
            before = np.concatenate([[documents[0] if self.document is None else self.document], documents[:-1]])
            self.document = documents[-1]
            flat = np.insert(flat, (np.cumsum(lengths) - lengths)[documents != before], self.sep_id)
        flat = np.concatenate([self.rest, flat])
        blocks = flat[: len(flat) // self.size * self.size].reshape(-1, self.size)
        self.rest = flat[blocks.size :]
        edge = np.ones((len(blocks), 1), np.int32)
        rows = np.hstack([edge * self.cls_id, blocks, edge * self.sep_id])  # (blocks, size + 2)
        return rows.ravel(), np.arange(len(blocks) + 1) * (self.size + 2)


def prepare_split(source, name, tokenizer, *, max_seq_length, line_by_line, part, num_proc, cache_dir, overwrite):
    """Turn the text of a source into examples, or find them in the cache.

    Args:
        source: (fingerprint, function that yields batches, name), as find_sources returns.
        name: of the split, for messages.
        part: (which, percent): "all" paragraphs, all but the "rest" of so many percent that is drawn for validation, or
            this "drawn" part. Rows are drawn by their number alone.
        cache_dir: folder of the prepared data; they are found by content, wherever the files lie.

    Returns:
        (examples, counts): a Dataset of `id` and `input_ids` (int32 lists, special tokens included), and a dict.

    Raises:
        InputError: the text cannot be read, or is too short for one example.
    """
    fingerprint, batches, source_name = source
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(tokenizer) + json.dumps(tokenizer.get_vocab())
    text_key = hashlib.sha256(f"1 {fingerprint} {words}".encode()).hexdigest()[:32]
    key = hashlib.sha256(f"{text_key} {max_seq_length} {line_by_line} {part}".encode()).hexdigest()[:32]
    cache_dir.mkdir(parents=True, exist_ok=True)
    examples, facts = cache_dir / f"examples-{key}.arrow", cache_dir / f"examples-{key}.json"
    if overwrite or not (examples.exists() and facts.exists()):
        text, text_facts = cache_dir / f"text-{text_key}.arrow", cache_dir / f"text-{text_key}.json"
        if overwrite or not (text.exists() and text_facts.exists()):
            text_facts.write_text(json.dumps(write_texts(batches(), str(text))), encoding="utf-8")
        counts = json.loads(text_facts.read_text(encoding="utf-8"))
        texts = datasets.Dataset.from_file(str(text)).with_format("arrow")
        flat_tokenizer = FlatTokenizer(tokenizer, texts[:100]["text"].to_pylist(), datasets.logging.get_logger("run_mlm").warning)
        at_once = max(1, int(2e6 * counts["paragraphs"] / counts["characters"]))  # paragraphs in about 2 MB
        cached = {"batched": True, "load_from_cache_file": not overwrite}
        tokens = texts.map(tokenize_batch, fn_kwargs={"tokenizer": flat_tokenizer}, batch_size=at_once, num_proc=num_proc,
                           remove_columns=["text"], new_fingerprint=text_key, desc=f"Tokenizing ({flat_tokenizer.name})",
                           cache_file_name=str(cache_dir / f"tokens-{text_key}.arrow"), **cached)
        drawn = np.zeros(len(tokens), dtype=bool)
        share = min(max(1, round(len(tokens) * part[1] / 100)), len(tokens) - 1)
        drawn[np.random.default_rng(0).permutation(len(tokens))[:share]] = True
        cutter = ExampleCutter(max_seq_length - 2, *edge_ids(tokenizer), tokenizer.unk_token_id, line_by_line,
                               {"all": np.ones(len(tokens), dtype=bool), "drawn": drawn, "rest": ~drawn}[part[0]])
        tokens.map(cutter, with_indices=True, batch_size=max(1, at_once), remove_columns=["ids", "document"], desc="Cutting",
                   new_fingerprint=key, cache_file_name=str(examples), load_from_cache_file=False, batched=True)
        facts.write_text(json.dumps(counts | cutter.counts | {"key": key}), encoding="utf-8")
    rows, counts = datasets.Dataset.from_file(str(examples)), json.loads(facts.read_text(encoding="utf-8"))
    if not len(rows):
        raise InputError(f"{source_name}: the {name} part has {counts['tokens']:,} tokens, too few for one block of "
                         f"{max_seq_length}. Give more text, a smaller --max_seq_length, --line_by_line for one example a line"
                         + (", or --validation_file with text of its own." if part[0] == "drawn" else "."))
    return rows.with_format("numpy"), counts


def edge_ids(tokenizer):
    """Ids that begin and end an example: [CLS] and [SEP], or what stands for them. Raises InputError without them."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise InputError("the tokenizer has no [CLS] or no [SEP] token, which begin and end each example. "
                         "Take the tokenizer of a BERT-style encoder, with --tokenizer_name.")
    return first, last


def draw_sample(examples, number, seed):
    """Take a random sample of so many examples, in their order; all where number is None or not below their count."""
    if number is None or number >= len(examples):
        return examples
    return examples.select(np.sort(np.random.default_rng(seed).permutation(len(examples))[:number]))


# ---------------------------------------------------------------- masks and order


# Copied from utils.collators.mask_tokens
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


# Copied from utils.collators.word_continuations
def word_continuations(tokenizer):
    """Say for each token of the vocabulary whether it goes on with the word before it.

    Knows WordPiece (`##ing`), byte-level BPE (`Ġword`) and SentencePiece (`▁word`) by the sign that more of the
    vocabulary carries. A vocabulary without any such sign is one of whole words or characters: nothing goes on.

    Args:
        tokenizer: any tokenizer of transformers.

    Returns:
        bool array of shape (vocab,): index a sequence of ids with it to get mask_tokens' `continues`.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens = [token or "" for token in tokens]  # a vocabulary can have holes
    counts = {sign: sum(token.startswith(sign) for token in tokens) for sign in ("##", "Ġ", "▁")}
    sign = max(counts, key=counts.get)
    if not counts[sign]:
        return np.zeros(len(tokens), dtype=bool)
    # In byte-level BPE a line feed (Ċ), a tab (ĉ) and a carriage return (č) part words as a blank (Ġ) does.
    starts = {"##": (), "Ġ": ("Ġ", "Ċ", "ĉ", "č"), "▁": ("▁",)}[sign]
    continues = np.array([token.startswith("##") if sign == "##" else not token.startswith(starts)
                          for token in tokens])
    continues[list(tokenizer.added_tokens_decoder)] = False  # [CLS] and its like, and words that a user added
    return continues


# Copied from utils.collators.pad
def pad(rows, value):
    """Put int64 arrays of shape (length,) under each other: a tensor (batch, longest), filled up with value."""
    padded = np.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


# Copied from utils.collators.MaskingCollator
class MaskingCollator:
    """Pad a batch to its longest example and hide tokens, freshly each epoch.

    Args:
        pad_id: id of the padding token.
        special: True for tokens that are never hidden; bool array of shape (vocab,).
        continues: what word_continuations returned, for whole-word masking; None hides single tokens.
        settings: arguments of mask_tokens: mask_id, vocab_size, seed and the probabilities.
    """

    def __init__(self, *, pad_id, special, continues=None, **settings):
        self.pad_id, self.special, self.continues, self.settings = pad_id, special, continues, settings
        self.epoch = 0

    def __call__(self, examples):
        """Make a batch of examples, each a dict of `id` and `input_ids` (seq,); none at all is allowed.

        Returns:
            input_ids: (batch, seq). attention_mask: (batch, seq), only where a row is padded. positions: indices
            into the flattened batch of the tokens to predict, (predicted,). targets: their ids, (predicted,).
        """
        if not examples:  # the last global batch can leave a process without any: it joins, and predicts nothing
            empty = torch.zeros(0, dtype=torch.int64)
            return {"input_ids": torch.zeros((1, 2), dtype=torch.int64), "positions": empty, "targets": empty}
        pairs = []
        for example in examples:
            ids = np.asarray(example["input_ids"], dtype=np.int64)
            continues = None if self.continues is None else self.continues[ids]
            pairs.append(mask_tokens(ids, self.special[ids], epoch=self.epoch, example_id=int(example["id"]),
                                     continues=continues, **self.settings))
        labels = pad([labels for _, labels in pairs], -100)  # (batch, seq)
        positions = (labels.ravel() != -100).nonzero().ravel()  # found on the CPU: a GPU would have to be waited for
        batch = {"input_ids": pad([ids for ids, _ in pairs], self.pad_id), "positions": positions,
                 "targets": labels.ravel()[positions]}
        if len({len(ids) for ids, _ in pairs}) > 1:  # without padding, attention is faster with no mask at all
            batch["attention_mask"] = pad([np.ones_like(ids) for ids, _ in pairs], 0)
        return batch


# Copied from utils.sampling.GlobalBatchSampler
class GlobalBatchSampler(Sampler):
    """Micro-batches of one process, such that update k sees the same examples on any number of processes.

    An epoch's order is `default_rng((seed, epoch)).permutation(n)`, cut into global batches of batch_size x
    accumulation_steps x num_processes examples. The last one may be smaller; no example stands twice.

    Args:
        n: number of examples.
        batch_size: examples per process and forward pass.
        accumulation_steps: forward passes per update.
        num_processes: processes that train together.
        rank: which of them this is, from 0.
        seed: seed of the run, at least 0.

    Set `epoch` before each pass, and `first_update` where a resume goes on within it: nothing before it is read.
    """

    def __init__(self, n, batch_size, accumulation_steps, num_processes, rank, seed):
        self.n, self.batch_size, self.accumulation_steps = n, batch_size, accumulation_steps
        self.num_processes, self.rank, self.seed = num_processes, rank, seed
        self.epoch = self.first_update = 0

    def __iter__(self):
        # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 the order of seed 0 in epoch 1.
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        size = self.batch_size * self.accumulation_steps * self.num_processes
        for start in range(self.first_update * size, self.n - size + 1, size):
            for i in range(self.accumulation_steps):
                at = start + (i * self.num_processes + self.rank) * self.batch_size
                yield order[at : at + self.batch_size].tolist()
        if self.n % size and self.first_update <= self.n // size:  # the rest, split evenly; a piece may be empty
            pieces = np.array_split(order[self.n - self.n % size :], self.accumulation_steps * self.num_processes)
            yield from (piece.tolist() for piece in pieces[self.rank :: self.num_processes])


# ---------------------------------------------------------------- model


def load_pretrained(load, flag, name, **settings):
    """Call a `from_pretrained`; what cannot be loaded is an InputError that says what to do."""
    try:
        return load(name, **settings)
    except Exception as error:  # a wrong name, no network, a damaged file, a size that does not fit: all the user's to mend
        what = " ".join(str(error).split())[:300]
        advice = ("The folder needs config.json, tokenizer.json and model.safetensors." if os.path.isdir(name) else
                  "There is no folder of that name, so it was looked up on the Hub. Check the spelling; without network, "
                  f"load it where there is one (hf download {name} --local-dir DIR) and give that folder.")
        raise InputError(f"{flag} {name}: cannot be loaded: {what} {advice}") from None


def load_config_and_tokenizer(model, tokenizer_name, config_overrides, max_seq_length, **hub):
    """Load what is needed to prepare data: (config, tokenizer). Raises InputError where they do not fit the task."""
    config = load_pretrained(AutoConfig.from_pretrained, "--model", model, **hub)
    if config_overrides:
        try:
            config.update_from_string(config_overrides)
        except (ValueError, IndexError) as error:
            raise InputError(f"--config_overrides {config_overrides}: {error}. Expected KEY=VALUE,KEY=VALUE with keys of "
                             "the model's config.json") from None
    flag = "--tokenizer_name" if tokenizer_name else "--model"
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, flag, tokenizer_name or model, **hub)
    if tokenizer.mask_token_id is None:
        raise InputError(f"{flag} {tokenizer_name or model}: its tokenizer has no mask token, so nothing can be hidden. "
                         "Take a model that was made for masked language modelling, such as bert-base-uncased.")
    if tokenizer.pad_token_id is None:
        raise InputError(f"{flag} {tokenizer_name or model}: its tokenizer has no padding token. Take that of another model.")
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    if "roberta" in config.model_type or config.model_type in ("camembert", "longformer", "mpnet", "xmod", "data2vec-text"):
        positions -= (config.pad_token_id or 0) + 1  # they count positions from behind the padding id
    longest = min(positions, tokenizer.model_max_length)
    if max_seq_length > longest:
        raise InputError(f"--max_seq_length is {max_seq_length}, but {model} takes at most {longest} tokens. "
                         f"Give --max_seq_length {longest} or less.")
    return config, tokenizer


def load_mlm_model(name, config, from_scratch, vocab_size, **hub):
    """Load the model in float32, whatever it was stored in: (model, notes), lines that say which parts start at random."""
    if from_scratch:
        try:
            model, missing = AutoModelForMaskedLM.from_config(config), None
        except ValueError as error:
            raise InputError(f"--model {name}: {' '.join(str(error).split())[:200]}") from None
        notes = ["all weights start at random (--from_scratch)"]
    else:
        model, info = load_pretrained(AutoModelForMaskedLM.from_pretrained, "--model", name, config=config,
                                      dtype=torch.float32, output_loading_info=True, **hub)
        missing = sorted({key.rsplit(".", 1)[0] for key in info["missing_keys"]})
        notes = [f"starts at random, since {name} has no weights for it: {', '.join(missing)}" if missing
                 else "encoder and masked-language-modelling head both come trained"]
    if vocab_size > model.get_input_embeddings().num_embeddings:
        notes.append(f"embeddings grow from {model.get_input_embeddings().num_embeddings} to {vocab_size} tokens, "
                     "as the tokenizer has; the new ones start at random")
        model.resize_token_embeddings(vocab_size)
    return model, notes


@torch.no_grad()
def fill_masks(model, tokenizer, texts, top_k=5):
    """Fill the masks of texts with the most likely words, in float32 where the model is.

    Returns:
        A list for each text, of a list for each of its masks, of (word, probability) pairs, best first.

    Raises:
        InputError: a text has no mask, or is too long for the model.
    """
    model.eval()
    answers = []
    for text in texts:
        if tokenizer.mask_token not in text:  # what a mask looks like differs between models: allow BERT's for all
            text = text.replace("[MASK]", tokenizer.mask_token)
        inputs = tokenizer(text, return_tensors="pt").to(model.device)
        longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**9)
        if inputs["input_ids"].shape[1] > longest:
            raise InputError(f"--text {text[:40]!r}…: {inputs['input_ids'].shape[1]} tokens; the model takes {longest}")
        masks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().ravel()
        if not len(masks):
            raise InputError(f"--text {text[:60]!r}: there is no mask in it; write {tokenizer.mask_token} for a hidden word")
        best = model(**inputs).logits[0, masks].softmax(dim=-1).topk(top_k)  # (masks, top_k)
        answers.append([[(tokenizer.decode([word]), p) for word, p in zip(words, probs, strict=True)]
                        for words, probs in zip(best.indices.tolist(), best.values.tolist(), strict=True)])
    return answers


# ---------------------------------------------------------------- evaluate and train


# Copied from utils.masked_scores.masked_logits
def masked_logits(model, batch):
    """Run a masked language model, and its output layer only where a token is to be predicted.

    The output layer costs as much as the encoder in small models, and six in seven of its rows would be thrown away.
    A hook keeps the wanted rows; a model that does not call its output embeddings as a layer computes all of them.

    Args:
        model: a model with `get_output_embeddings`, also inside DistributedDataParallel.
        batch: `positions` (predicted,), `targets`, and the model's own inputs, such as `input_ids` (batch, seq).

    Returns:
        float32 scores of shape (predicted, vocab), in the order of batch["positions"].
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("positions", "targets")}
    head = getattr(model, "module", model).get_output_embeddings()
    tokens = batch["input_ids"].numel()

    def keep_positions(_, args):
        hidden = args[0]
        if hidden.shape[:-1].numel() != tokens:  # a head that works on something else than one row a token
            return None
        return hidden.reshape(tokens, -1)[batch["positions"]], *args[1:]

    handle = head.register_forward_pre_hook(keep_positions) if isinstance(head, torch.nn.Module) else None
    try:
        logits = model(**inputs).logits
    finally:
        if handle:
            handle.remove()
    if logits.dim() == 3:
        logits = logits.flatten(0, 1)[batch["positions"]]
    return logits.float()  # a sum of thousands of bfloat16 terms loses its last digits


@torch.no_grad()
def evaluate(model, examples, collator, batch_size, device, processes):
    """Score a model on examples, exactly: sums over all processes, divided once. Masks depend on the example id alone.

    Args:
        model: not wrapped for several processes: a wrapped one hangs where a process has no example.
        examples: the Dataset, the same on each process, which scores its share.
        collator: a MaskingCollator whose seed and epoch are 0.

    Returns:
        dict of eval_loss (nats per masked token), perplexity, eval_accuracy (of masked tokens) and masked_tokens.
    """
    model.eval()
    mine = Subset(examples, range(processes.rank, len(examples), processes.num_processes))  # no example stands twice
    losses, hits, count = [torch.zeros(())], [torch.zeros(())], 0
    batches = DataLoader(mine, batch_size=batch_size, collate_fn=collator, generator=torch.Generator())
    for batch in tqdm(batches, desc="Evaluating", disable=True if processes.rank else None, leave=False):
        batch = send_to_device(batch, device)
        logits = masked_logits(model, batch)
        losses.append(F.cross_entropy(logits, batch["targets"], reduction="sum"))  # scalar, nats
        hits.append((logits.argmax(dim=-1) == batch["targets"]).sum())
        count += len(batch["targets"])
    nll, hits, count = processes.sum(*(sum(term.item() for term in terms) for terms in (losses, hits)), count)
    if not count:
        raise InputError("no token was hidden in the validation data, so there is nothing to score. Give more of them, or a "
                         "higher --mlm_probability.")
    loss = nll / count
    return {"eval_loss": loss, "perplexity": math.exp(min(loss, 700)), "eval_accuracy": hits / count, "masked_tokens": int(count)}


def train(accelerator, model, optimizer, scheduler, loader, *, processes, max_steps, start, accumulation_steps, seed,
          max_grad_norm, stop_signal, after_update):
    """Train to update max_steps from update `start`, or until after_update returns True.

    after_update is called with the update's number, counted from 1, the summed negative log-likelihood of this process's
    tokens (scalar tensor, nats), the number of predicted tokens of all processes, the gradient's norm and whether
    stop_signal (a StopSignal) has noted something on any process.
    """
    sampler, collator, device = loader.batch_sampler, loader.collate_fn, accelerator.device
    updates_per_epoch = math.ceil(sampler.n / (sampler.batch_size * accumulation_steps * processes.num_processes))
    update = start
    while update < max_steps:
        epoch, sampler.first_update = divmod(update, updates_per_epoch)
        collator.epoch = sampler.epoch = epoch
        batches = iter(loader)
        while update < max_steps and (micro_batches := list(islice(batches, accumulation_steps))):
            model.train()
            # Dropout is a function of (seed, update, rank), so a checkpoint need not carry the state of any generator.
            torch.manual_seed(int(np.random.SeedSequence((seed, update, processes.rank)).generate_state(1, np.uint64)[0]))
            # Batches differ in how many tokens they mask. One count for the whole update, over all processes, gives
            # every token the same weight; averaging the averages would not.
            predicted, stop = processes.sum(sum(len(batch["targets"]) for batch in micro_batches), stop_signal.number > 0)
            total = torch.zeros((), device=device)
            for i, batch in enumerate(micro_batches):
                is_last = i == len(micro_batches) - 1
                with nullcontext() if is_last else accelerator.no_sync(model):
                    batch = send_to_device(batch, device, non_blocking=True)
                    nll = F.cross_entropy(masked_logits(model, batch), batch["targets"], reduction="sum")
                    # Gradients are averaged over processes; this factor turns the average back into a sum.
                    accelerator.backward(nll * processes.num_processes / max(predicted, 1))
                    total += nll.detach()
            norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
            optimizer.step()
            scheduler.step()  # kept out of accelerator.prepare(), where it would tick once per process
            optimizer.zero_grad()
            update += 1
            if after_update(update, total, predicted, norm, stop):
                return


def build_optimizer(model, learning_rate, weight_decay):
    """AdamW that decays matrices alone: biases and the weights of normalisation have one dimension."""
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


class TrainingRun:
    """What happens around the updates: the loss is logged, the model scored and saved, all of it resumable.

    Args:
        args: the settings. accelerator, processes: as in main.
        model, optimizer, scheduler, tokenizer: what a checkpoint holds.
        score: function that evaluates a model and returns a dict of results; None without validation data.
        state: what a checkpoint carries besides: the update (`step`), the loss since it was last logged (`window`) and
            since the start (`train`), each [nats, tokens], the last and the best results.
        updates_per_epoch, max_steps: the length of an epoch and of the run, in updates.
    """

    def __init__(self, args, accelerator, processes, model, optimizer, scheduler, tokenizer, score, state,
                 updates_per_epoch, max_steps):
        self.args, self.accelerator, self.processes, self.tokenizer = args, accelerator, processes, tokenizer
        self.model, self.optimizer, self.scheduler, self.score, self.state = model, optimizer, scheduler, score, state
        self.updates_per_epoch, self.max_steps = updates_per_epoch, max_steps
        self.pending, self.paused = [], 0.0  # losses still on the device; seconds that evaluating and saving took
        self.bar = tqdm(total=max_steps, initial=state["step"], desc="Training", unit=" updates",
                        disable=processes.rank > 0 or None)

    def is_due(self, strategy, every):
        step, last = self.state["step"], self.state["step"] == self.max_steps
        every = max(1, math.ceil(every * self.max_steps) if every < 1 else int(every))
        return strategy == "epoch" and (step % self.updates_per_epoch == 0 or last) or strategy == "steps" and step % every == 0

    def log(self, values):
        if self.processes.rank == 0:
            entry = {"step": self.state["step"], "epoch": round(self.state["step"] / self.updates_per_epoch, 4), **values}
            with open(Path(self.args.output_dir, "log.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        self.accelerator.log(values, step=self.state["step"])

    def settle(self):
        """Read the losses that are still on the device, and add them up over all processes."""
        self.state["window"][0] += self.processes.sum(sum(nll.item() for nll in self.pending))[0]
        self.pending.clear()

    def evaluate(self, prefix=""):
        self.settle()
        begun, state = time.perf_counter(), self.state
        state["results"], state["scored"] = self.score(self.model), state["step"]
        self.log({prefix + name: value for name, value in state["results"].items()})
        if not state["best"] or state["results"]["eval_loss"] < state["best"]["eval_loss"]:
            state["best"] = {"step": state["step"], **state["results"]}
        if self.processes.rank == 0:
            tqdm.write(f"Update {state['step']:>6}  " + "  ".join(f"{k} {v:.6g}" for k, v in state["results"].items()))
        self.paused += time.perf_counter() - begun

    def save(self):
        self.settle()
        begun, keep = time.perf_counter(), None
        if self.args.load_best_model_at_end and self.state["best"]:
            keep = f"checkpoint-{self.state['best']['step']}"
        if self.processes.rank == 0:
            save_checkpoint(self.args.output_dir, self.state["step"], self.write, limit=self.args.save_total_limit, keep=keep)
        self.processes.sum(0)  # the others wait here, so that no one trains on if this one fails
        self.paused += time.perf_counter() - begun

    def write(self, folder):
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        schedule = {key: value for key, value in self.scheduler.state_dict().items() if key != "lr_lambdas"}
        state = json.dumps(self.state | {"scheduler": schedule, "scaler": scaler}, indent=1)
        (folder / "state.json").write_text(state, encoding="utf-8")

    def after_update(self, update, nll, predicted, norm, stop):
        """Do what is due; return whether to stop here, with a checkpoint saved."""
        self.state["step"], self.state["window"][1] = update, self.state["window"][1] + predicted
        self.pending.append(nll)
        self.bar.update()
        if self.is_due("steps", self.args.logging_steps) or update == self.max_steps:
            self.settle()
            (nats, tokens), self.state["window"] = self.state["window"], [0.0, 0.0]
            self.state["train"] = [self.state["train"][0] + nats, self.state["train"][1] + tokens]
            self.log({"loss": nats / max(tokens, 1), "learning_rate": self.scheduler.get_last_lr()[0], "grad_norm": norm.item()})
            self.bar.set_postfix(loss=f"{nats / max(tokens, 1):.3f}")
        if self.score and (self.is_due(self.args.eval_strategy, self.args.eval_steps) or update == self.max_steps):
            self.evaluate()
        if self.is_due(self.args.save_strategy, self.args.save_steps) or stop:
            self.save()
        return stop


def fit(args, accelerator, processes, model, tokenizer, train_data, collator, score, state, checkpoint, say):
    """Train with all that goes with it. Returns (model, results, signal): the signal that stopped it, else 0."""
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes.num_processes
    updates_per_epoch = math.ceil(len(train_data) / size)
    max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates_per_epoch)
    warmup = math.ceil(args.warmup_steps * max_steps) if args.warmup_steps < 1 else int(args.warmup_steps)
    optimizer = build_optimizer(model, args.learning_rate, args.weight_decay)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup, max_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    network = accelerator.unwrap_model(model, keep_torch_compile=True)
    if checkpoint:
        optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
        scheduler.load_state_dict(state["scheduler"] | {"lr_lambdas": [None] * len(optimizer.param_groups)})
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
    sampler = GlobalBatchSampler(len(train_data), args.per_device_train_batch_size, args.gradient_accumulation_steps,
                                 processes.num_processes, processes.rank, args.seed)
    # The generator keeps iter() from drawing its seed out of the global one, which would shift dropout after a resume.
    loader = DataLoader(train_data, batch_sampler=sampler, collate_fn=collator, num_workers=args.dataloader_num_workers,
                        generator=torch.Generator(), pin_memory=accelerator.device.type == "cuda",
                        worker_init_fn=ignore_interrupts)
    say(f"Updates     {max_steps:,} of {size} examples ({processes.num_processes} x {args.per_device_train_batch_size} x "
        f"{args.gradient_accumulation_steps} accumulated), {updates_per_epoch:,} an epoch"
        + (f"; going on from {checkpoint}" if checkpoint else ""))
    run = TrainingRun(args, accelerator, processes, network, optimizer, scheduler, tokenizer, score, state,
                      updates_per_epoch, max_steps)
    if score and not checkpoint:
        run.evaluate("initial_")
        state["initial"] = {f"initial_{name}": value for name, value in state["results"].items()}
    start, begun, run.paused = state["step"], time.perf_counter(), 0.0
    with StopSignal() as stop_signal:
        train(accelerator, model, optimizer, scheduler, loader, processes=processes, max_steps=max_steps, start=start,
              accumulation_steps=args.gradient_accumulation_steps, seed=args.seed, max_grad_norm=args.max_grad_norm,
              stop_signal=stop_signal, after_update=run.after_update)
    run.bar.close()
    seconds = time.perf_counter() - begun - run.paused
    seen = [step // updates_per_epoch * len(train_data) + step % updates_per_epoch * size for step in (start, state["step"])]
    results = {"step": state["step"], "epoch": state["step"] / updates_per_epoch, "train_runtime": seconds,
               "train_samples_per_second": (seen[1] - seen[0]) / seconds, "train_loss": state["train"][0] / max(state["train"][1], 1)}
    if state["step"] < max_steps:
        return network, results, stop_signal.number or signal.SIGTERM
    if score and state["scored"] != state["step"]:  # a resume that had nothing left to do
        run.evaluate()
    if args.load_best_model_at_end and state["best"] and state["best"]["step"] != state["step"]:
        say(f"Best        update {state['best']['step']}, whose model is kept")
        load_model(network, str(Path(args.output_dir, f"checkpoint-{state['best']['step']}", "model.safetensors")))
        state["results"] = {name: value for name, value in state["best"].items() if name != "step"}
    return network, results | state["initial"] | (state["results"] if score else {}), 0


def ignore_interrupts(_worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loop, which still needs the data of its update


# ---------------------------------------------------------------- main


def start_processes(args):
    """Start accelerate as the launcher asks: (accelerator, processes, threads). InputError for what does not work here."""
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise InputError(f"accelerate is set to {name}, which this script does not support: encoders of this size train "
                             "fastest with plain data parallelism. Run 'accelerate launch --multi_gpu --num_processes N'.")
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    device_type = "cpu" if on_cpu else torch.accelerator.current_accelerator().type
    precision = pick_precision(args.mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), device_type)
    if precision == "fp16" and on_cpu:
        raise InputError("--mixed_precision fp16 needs a GPU; give bf16 or no")
    threads = set_cpu_threads(args.cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    # Encoders that leave some of their weights unused in each step; to look for them costs time with the others.
    unused = args.model_type in ("big_bird", "esm", "fnet", "layoutlm", "longformer")
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision, log_with=args.report_to or None, project_dir=args.output_dir,
                              kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)])
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise InputError(f"{os.environ['WORLD_SIZE']} processes were started, but each would train alone. On a CPU, start "
                         "them with: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N run_mlm.py …")
    return accelerator, Processes(accelerator.num_processes, accelerator.process_index,
                                  accelerator.local_process_index), threads


def prepare_data(args, tokenizer):
    """Prepare the splits that the run needs: dict of split to (examples, counts, name of the source)."""
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    wanted = ["train", "validation"] + ["test"] * (args.do_predict or (args.prepare_only and not args.dataset_name))
    sources = find_sources(files, args.dataset_name, args.dataset_config_name, args.text_column_name, wanted)
    if args.do_predict and "test" not in sources:
        raise InputError("--do_predict needs --test_file, or a data set with a split named test")
    parts = {split: (sources[split], ("all", 0)) for split in sources}
    if "validation" not in sources and "train" in sources and args.validation_split_percentage:
        parts["train"] = (sources["train"], ("rest", args.validation_split_percentage))
        parts["validation"] = (sources["train"], ("drawn", args.validation_split_percentage))
    if not args.do_train and not args.prepare_only:
        parts.pop("train", None)
    if args.do_eval and not args.do_train and "validation" not in parts:
        raise InputError("--do_eval has nothing to evaluate on: give --validation_file")
    cache_dir = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    data = {}
    for split, (source, part) in parts.items():
        examples, counts = prepare_split(
            source, split, tokenizer, max_seq_length=args.max_seq_length, line_by_line=args.line_by_line, part=part,
            num_proc=args.preprocessing_num_workers, cache_dir=cache_dir, overwrite=args.overwrite_cache)
        limit = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}[split]
        data[split] = (draw_sample(examples, limit, args.seed if split == "train" else 0), counts, source[2])
    return data


def describe_data(data, max_seq_length, line_by_line, say):
    """Say what the data are, and what looks wrong with them."""
    for split, (examples, counts, name) in data.items():
        kind = f"lines of up to {max_seq_length}" if line_by_line else f"blocks of {max_seq_length}"
        say(f"{split.capitalize():<11} {len(examples):,} {kind} tokens from {name} ({counts['tokens']:,} tokens in it)")
    _, counts, name = next(iter(data.values()))
    share = {key: counts[key] / max(1, counts[total]) for key, total in
             (("repeated", "paragraphs"), ("unknown", "tokens"), ("shortened", "paragraphs"))}
    pieces = sum(part["tokens"] for _, part, source in data.values() if source == name) / max(1, counts["words"])
    say(f"Text        {counts['paragraphs']:,} paragraphs, {share['repeated']:.1%} of them repeated; {pieces:.2f} tokens a word, "
        f"{share['unknown']:.2%} unknown" + (f"; {counts['shortened']:,} lines were cut off" if line_by_line else ""))
    if share["repeated"] > 0.1:
        say("  Careful: many paragraphs stand there more than once; the same ones may be trained and evaluated on.")
    if share["unknown"] > 0.01 or pieces > 2.5:
        say("  Careful: the tokenizer knows few of these words; a model for this language or field would fit better.")
    if share["shortened"] > 0.1:
        say("  Careful: many lines are longer than --max_seq_length; a larger one, or blocks, would use all of the text.")


def open_output(args, say):
    """Refuse a folder that is in use; find the checkpoint to go on from, if any, as (folder, state)."""
    output_dir = Path(args.output_dir)
    state = {"step": 0, "window": [0.0, 0.0], "train": [0.0, 0.0], "best": None, "results": {}, "scored": None, "initial": {},
             "run_id": os.urandom(8).hex()}
    if not args.do_train:
        return None, state
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {output_dir}: this is a file; expected a folder")
    if args.resume_from_checkpoint is None:
        used = [path.name for path in [*list_checkpoints(output_dir), output_dir / "model.safetensors"] if path.exists()]
        if used and not args.overwrite_output_dir:
            raise InputError(f"--output_dir {output_dir} is in use: {used[0]} lies there. To go on with that run, add "
                             "--resume_from_checkpoint latest; to replace it, --overwrite_output_dir; else name another.")
        return None, state
    if args.resume_from_checkpoint == "latest":
        checkpoint = latest_checkpoint(output_dir, lambda line: say(f"Warning     {line}"))
        if checkpoint is None:
            say(f"Resume      no whole checkpoint in {output_dir}: starting anew")
            return None, state
    else:
        checkpoint = Path(args.resume_from_checkpoint)
        fault = checkpoint_fault(checkpoint)
        if fault:
            raise InputError(f"--resume_from_checkpoint {checkpoint}: not a whole checkpoint: {fault}. "
                             "Name another, or latest for the newest whole one.")
    return checkpoint, json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def check_resume(state, checkpoint, made_with):
    """Raise InputError where a checkpoint was made with other data or another global batch; note them in the state."""
    for key, value in made_with.items():
        if state.setdefault(key, value) != value:
            raise InputError(f"{checkpoint}: {key} was {state[key]} there and is {value} now. A run goes on only with the same: "
                             "processes x --per_device_train_batch_size x --gradient_accumulation_steps makes the global "
                             "batch; the text and its settings must be those that it began with.")


def save_model(model, tokenizer, output_dir):
    """Write model and tokenizer to output_dir, so that a kill halfway leaves each file old or new, never half."""
    aside = Path(output_dir, "tmp-model")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    for path in aside.iterdir():
        os.replace(path, Path(output_dir, path.name))
    aside.rmdir()


def write_results(output_dir, results):
    """Merge results into all_results.json."""
    path = Path(output_dir, "all_results.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    older = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    Path(f"{path}.tmp").write_text(json.dumps(older | results, indent=4) + "\n", encoding="utf-8")
    os.replace(f"{path}.tmp", path)


def score_rows(results):
    """Rows (name, before, after) of the scores, as text, for the table on screen and in the model card."""
    names = [name for name in results if f"initial_{name}" in results or name.startswith(("eval_", "perplexity", "predict_"))]
    return [(name, *(f"{results[key]:,.4f}" if key in results else "" for key in (f"initial_{name}", name))) for name in names
            if isinstance(results[name], float)]


def write_model_card(args, data, results, notes):
    """Write README.md: a model card with the data, the settings and the scores before and after."""
    settings = {name: value for name, value in sorted(vars(args).items()) if value not in (None, False, [])}
    text = ["---", "library_name: transformers", "pipeline_tag: fill-mask"]
    text += [f"base_model: {args.model}"] * (not os.path.exists(args.model)) + ["---", "", f"# {Path(args.output_dir).name}", ""]
    text += [f"{Path(args.model).name}, trained further by masked language modelling on {data['train'][2]}.", ""]
    text += [f"- {note}" for note in notes] + ["", "| data | examples | tokens in the text | source |", "| --- | ---: | ---: | --- |"]
    text += [f"| {split} | {len(rows):,} | {counts['tokens']:,} | {name} |" for split, (rows, counts, name) in data.items()]
    text += ["", "| score | before | after |", "| --- | ---: | ---: |", *(f"| {' | '.join(row)} |" for row in score_rows(results))]
    text += ["", "Losses are in nats per masked token.", "", "## Settings", "", "```yaml"]
    text += [f"{name}: {json.dumps(value)}" for name, value in settings.items()] + ["```", ""]
    Path(args.output_dir, "README.md").write_text("\n".join(text), encoding="utf-8")


def show_results(results, texts, before, after, say):
    """Print the scores and the fills, before training and after it."""
    rows = score_rows(results)
    if rows:
        say(f"\n{'':<18}{'before':>14}{'after':>14}" if "initial_eval_loss" in results else "")
    for row in rows:
        say(f"{row[0]:<18}{row[1]:>14}{row[2]:>14}")
    for i, text in enumerate(texts):
        say(f"\n{text}")
        for when, answers in (("before", before), ("after", after)):
            for words in answers[i] if answers else ():
                say(f"  {when if before else '':<7}" + "  ".join(f"{word} {p:.3f}" for word, p in words))


def start_trackers(accelerator, args, state):
    """Start the trackers of --report_to, or go on with the runs that a resumed run had there."""
    settings = {key: value if isinstance(value, int | float | str) else str(value) for key, value in vars(args).items()}
    try:
        accelerator.init_trackers(os.environ.get("WANDB_PROJECT", "mlm"), settings, {
            "wandb": {"name": args.run_name, "id": state["run_id"], "resume": "allow", "dir": args.output_dir},
            "trackio": {"name": args.run_name, "resume": "allow"},
            "tensorboard": {"purge_step": state["step"] + 1},  # what a killed run wrote after its checkpoint
        })
    except Exception as error:  # no account, no network, a server that refuses
        raise InputError(f"--report_to {' '.join(args.report_to)}: {' '.join(str(error).split())[:200]}. For wandb run "
                         "'wandb login', or set WANDB_MODE=offline.") from None


def begin_output(args, checkpoint, step):
    """Make the output folder ready for a run: clear what --overwrite_output_dir allows, cut the log back to a resume."""
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if args.overwrite_output_dir:
        for folder in list_checkpoints(output_dir):
            remove_folder(folder)
        for name in ("model.safetensors", "all_results.json"):
            (output_dir / name).unlink(missing_ok=True)
    for folder in output_dir.glob("tmp-*"):  # left by a run that was killed while it saved
        shutil.rmtree(folder, ignore_errors=True)
    cut_log(output_dir / "log.jsonl", step if checkpoint else -1)
    if args.push_to_hub:  # at the start, so that a wrong name or a missing token is known before hours of training
        try:
            huggingface_hub.create_repo(args.hub_model_id or output_dir.resolve().name, exist_ok=True)
        except Exception as error:  # whatever network, account or name bring
            raise InputError(f"--push_to_hub: {' '.join(str(error).split())[:200]}. Log in with 'hf auth login', and give "
                             "--hub_model_id NAME/MODEL.") from None


def finish(args, model, tokenizer, data, results, notes):
    """Leave behind what the run has made: model, results, model card; on the Hub too where that was asked."""
    if results:
        write_results(args.output_dir, results)
    if not args.do_train:
        return
    save_model(model, tokenizer, args.output_dir)
    write_model_card(args, data, results, notes)
    print(f"\nModel, results, log and model card are in {args.output_dir}")
    if args.push_to_hub:
        try:
            url = huggingface_hub.upload_folder(repo_id=args.hub_model_id or Path(args.output_dir).resolve().name,
                                                folder_path=args.output_dir,
                                                ignore_patterns=["checkpoint-*", "tmp-*", "wandb/*", "*.tmp"])
            print(f"Uploaded to {url}")
        except Exception as error:
            raise InputError(f"--push_to_hub: {' '.join(str(error).split())[:200]}. The model is safe in {args.output_dir}; "
                             f"upload it with: hf upload NAME/MODEL {args.output_dir}") from None


def main(argv=None):
    args = parse_args(argv)
    rank = int(os.environ.get("RANK", 0))
    say = print if rank == 0 else lambda *_, **__: None
    transformers.logging.set_verbosity_error()  # what it would say of heads and lengths, the lines below say
    transformers.logging.disable_progress_bar()
    if rank:
        datasets.disable_progress_bars()
        if args.prepare_only:
            return
    hub = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    config, tokenizer = load_config_and_tokenizer(args.model, args.tokenizer_name, args.config_overrides,
                                                  args.max_seq_length, **hub)
    args.model_type = config.model_type
    if args.prepare_only:
        describe_data(prepare_data(args, tokenizer), args.max_seq_length, args.line_by_line, say)
        return
    checkpoint, state = open_output(args, say)
    accelerator, processes, threads = start_processes(args)
    device = accelerator.device
    todo = args.do_train or args.do_eval or args.do_predict
    data = processes.main_first(partial(prepare_data, args, tokenizer)) if todo else {}
    if data:
        describe_data(data, args.max_seq_length, args.line_by_line, say)
    set_seed(args.seed)
    model, notes = load_mlm_model(str(checkpoint or args.model), None if checkpoint else config,
                                  args.from_scratch and not checkpoint, len(tokenizer), **hub)
    say(f"Model       {args.model}, {sum(p.numel() for p in model.parameters()):,} weights; " + "; ".join(notes))
    say(f"Running on  {device.type}, {processes.num_processes} process{'es'[: 2 * (processes.num_processes > 1)]}, {threads} CPU "
        f"threads each, precision {accelerator.mixed_precision.replace('no', 'float32')}")
    special = np.zeros(len(tokenizer), dtype=bool)
    special[tokenizer.all_special_ids] = True
    masks = {"pad_id": tokenizer.pad_token_id, "mask_id": tokenizer.mask_token_id, "special": special,
             "vocab_size": len(tokenizer), "mask_prob": args.mlm_probability, "mask_replace_prob": args.mask_replace_prob,
             "random_replace_prob": args.random_replace_prob,
             "continues": word_continuations(tokenizer) if args.masking == "whole_word" else None}
    score = {split: partial(evaluate, examples=rows, collator=MaskingCollator(seed=0, **masks), device=device, processes=processes,
                            batch_size=args.per_device_eval_batch_size) for split, (rows, _, _) in data.items() if split != "train"}
    before, results, stopped_by = None, {}, 0
    if args.do_train:
        made_with = {"examples": data["train"][1]["key"], "samples": len(data["train"][0]), "seed": args.seed, "global batch":
                     args.per_device_train_batch_size * args.gradient_accumulation_steps * processes.num_processes}
        check_resume(state, checkpoint, made_with)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if args.text:
            before = state.setdefault("fills", fill_masks(model, tokenizer, args.text))
        if rank == 0:
            begin_output(args, checkpoint, state["step"])
        start_trackers(accelerator, args, state)
        collator = MaskingCollator(seed=args.seed, **masks)
        model, results, stopped_by = fit(args, accelerator, processes, model, tokenizer, data["train"][0], collator,
                                         score.get("validation"), state, checkpoint, say)
        if stopped_by:
            say(f"Stopped by {signal.Signals(stopped_by).name} after update {state['step']}; everything is saved. To go on, give "
                "the same command with --resume_from_checkpoint latest")
            accelerator.end_training()
            sys.exit(128 + stopped_by)
    else:
        model = accelerator.prepare_model(model, evaluation_mode=True)
        results = score["validation"](model) if args.do_eval and "validation" in score else {}
    if args.do_predict:
        predicted = score["test"](model)
        results |= {"predict_" + name.removeprefix("eval_"): value for name, value in predicted.items()}
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # answers and files are in float32
    after = fill_masks(model, tokenizer, args.text) if args.text else None
    accelerator.log({name: value for name, value in results.items() if isinstance(value, float)}, step=state["step"])
    if rank == 0:
        finish(args, model, tokenizer, data, results, notes)
    show_results(results, args.text or [], before, after, say)
    accelerator.end_training()


# ---------------------------------------------------------------- copies of what the scripts share


# Copied from utils.reading.InputError
class InputError(ValueError):
    """A mistake in what the user gave. Its message is all they are shown; the exit status is 2."""

    only_here = False  # True where the other processes of the run know that this one has something to say


# Copied from utils.reading.find_files
def find_files(patterns, flag):
    """Expand paths and globs to a list of files, in the order given and sorted within a glob.

    Raises:
        InputError: nothing is there, a glob matches nothing, or it is a folder; `flag` names where it was asked for.
    """
    files = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found and glob.has_magic(pattern):
            raise InputError(f"{flag} {pattern}: no file matches this pattern in {os.getcwd()}. "
                             "Check the folder and the ending.")
        if not found:
            raise InputError(f"{flag} {pattern}: there is no such file (looked in {os.getcwd()}). Check the path.")
        if os.path.isdir(pattern):
            raise InputError(f"{flag} {pattern}: this is a folder; expected a file. "
                             f"Name the files in it, for instance {os.path.join(pattern, '*.txt')}")
        files += [path for path in found if not os.path.isdir(path)]
    return files


# Copied from utils.reading.hash_files
def hash_files(paths):
    """SHA-256 over the kinds and contents of files: hex text, the same wherever they lie and whenever they were made."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            kind = "".join(os.path.basename(path).lower().rpartition(".")[1:])
            digest.update(f"{kind} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


# Copied from utils.reading.read_lines
def read_lines(path):
    """Read a UTF-8 file, also .gz, in batches: yields (number of the first line, from 1, and the list of lines).

    Line ends, also CRLF, and a byte order mark are taken off.

    Raises:
        InputError: a line is not UTF-8 (line and byte are named), or a .gz file is damaged.
    """
    number = 1
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            while raw := file.readlines(1 << 24):
                try:
                    lines = b"".join(raw).decode("utf-8").split("\n")
                except UnicodeDecodeError as error:
                    found = error.object[error.start]
                    line = error.object.count(b"\n", 0, error.start)
                    byte = error.start - error.object.rfind(b"\n", 0, error.start)
                    raise InputError(f"{path}, line {number + line}: byte {byte} of the line (0x{found:02x}) is not "
                                     "UTF-8. Expected UTF-8 text; convert the file first, for instance with "
                                     f"iconv -f latin1 -t utf-8 {path} > new.txt") from None
                if raw[-1].endswith(b"\n"):
                    lines.pop()
                if number == 1:
                    lines[0] = lines[0].removeprefix("\ufeff")
                yield number, [line.removesuffix("\r") for line in lines]
                number += len(lines)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}). Make it anew with gzip, or give the plain file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


# Copied from utils.reading.read_json
def read_json(path):
    """Read .json (a list of objects, or an object whose `data` is one) or .jsonl: yields (place, object).

    Raises:
        InputError: JSON that does not parse (line and column), or something else than an object.
    """
    lines = ((n, line) for first, batch in read_lines(path) for n, line in enumerate(batch, first))
    if path.lower().removesuffix(".gz").endswith(".json"):
        text = "\n".join(line for _, line in lines)
        try:
            value = json.loads(text)
            rows = value["data"] if isinstance(value, dict) and isinstance(value.get("data"), list) else value
            lines = [(f"{path}, entry {i}", row) for i, row in enumerate(rows if isinstance(rows, list) else [rows], 1)]
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):  # otherwise one object a line, under the name .json
                raise InputError(f"{path}, line {error.lineno}, column {error.colno}: this is not JSON: {error.msg}. "
                                 "Was the file cut off?") from None
            lines = enumerate(text.split("\n"), 1)
    for place, row in lines:
        if isinstance(place, int):
            if not row.strip():
                continue
            place, line = f"{path}, line {place}", row
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{place}, column {error.colno}: this is not JSON: {error.msg} in {line[:40]!r}. "
                                 "Expected one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected an object such as {{\"text\": …}}, found {str(row)[:40]!r}")
        yield place, row


# Copied from utils.reading.read_csv
def read_csv(path):
    """Read .csv or .tsv with a header, quoted as spreadsheets do: yields (place, dict of the row).

    Raises:
        InputError: a row with more or fewer columns than the header, or broken quoting.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = itertools.chain.from_iterable(([line + "\n" for line in batch] for _, batch in read_lines(path)))
    rows = csv.reader(lines, delimiter="\t" if ".tsv" in path.lower()[-7:] else ",", strict=True)
    try:
        header = next(rows, [])
        start = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(header):
                raise InputError(f"{path}, line {start}: expected {len(header)} columns ({', '.join(header)}), "
                                 f"found {len(row)}. Put values that hold the separator in double quotes.")
            if row:
                yield f"{path}, line {start}", dict(zip(header, row, strict=True))
            start = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not a well-formed table: {error}. "
                         "Check the double quotes.") from None


# Copied from utils.reading.read_parquet
def read_parquet(path):
    """Read .parquet: yields (place, dict of the row). Raises InputError where the file is damaged."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            number = 0
            for batch in pa.parquet.ParquetFile(io.BytesIO(file.read()) if path.endswith(".gz") else file).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {str(error)[:100]}") from None


# Copied from utils.reading.read_texts
def read_texts(path, column):
    """Read the texts of a file, a paragraph or a table's row at a time, without the empty ones.

    In plain text (any ending but those of tables) a blank line ends a document; without blank lines between its lines,
    a file has one document a line. In .jsonl, .json, .csv, .tsv and .parquet each row is a document. All also as .gz.

    Args:
        path: the file.
        column: which column or key of a table holds the text.

    Yields:
        (texts, documents): lists of strings, and of the number of the document that each belongs to, from 0.

    Raises:
        InputError: as the readers above, and where the column is missing or holds something else than text.
    """
    readers = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet}
    reader = readers.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])
    document = 0
    if reader is None:
        filled = itertools.groupby(bool(line.strip()) for _, lines in read_lines(path) for line in lines)
        separated = sum(is_text for is_text, _ in itertools.islice(filled, 4)) == 2  # text, blank, text
        for _, lines in read_lines(path):
            texts, documents = [], []
            for line in map(str.strip, lines):
                if line:
                    texts.append(line)
                    documents.append(document)
                document += not (line and separated)
            yield texts, documents
        return
    texts, documents = [], []
    for document, (place, row) in enumerate(reader(path)):
        if column not in row:
            raise InputError(f"{place}: there is no column {column!r}; the columns are {', '.join(map(str, row))}. "
                             "Name the one that holds the text with --text_column_name.")
        if not isinstance(row[column], str | None):
            raise InputError(f"{place}: column {column!r} holds {str(row[column])[:40]!r} "
                             f"({type(row[column]).__name__}); expected text. Name another with --text_column_name.")
        if (row[column] or "").strip():
            texts.append(row[column].strip())
            documents.append(document)
        if len(texts) == 10_000:
            yield texts, documents
            texts, documents = [], []
    yield texts, documents


# Copied from utils.reading.read_all_texts
def read_all_texts(files, column):
    """Read several files as read_texts does, with their documents numbered through.

    Raises:
        InputError: as read_texts, and where none of the files holds any text.
    """
    rows = start = 0
    for path in files:
        document = -1
        for texts, documents in read_texts(path, column):
            yield texts, [start + document for document in documents]
            rows, document = rows + len(texts), documents[-1] if documents else document
        start += document + 1
    if not rows:
        size = sum(map(os.path.getsize, files))
        raise InputError(f"{', '.join(files[:3])}: no text in it ({size:,} bytes" + (", white space only" if size else "")
                         + "). Expected UTF-8 text, a paragraph a line, or a table with a column of texts.")


# Copied from utils.tokenizing.FlatTokenizer
class FlatTokenizer:
    """Tokenize many texts into one flat array of ids with offsets, without special tokens.

    Encodes with nanotoken (WordPiece) or gigatoken (BPE) where one is installed, takes the tokenizer, and agrees with
    the model's own tokenizer on every text that it is held against; else with the model's own. Can be pickled.

    Args:
        tokenizer: the model's own tokenizer, of transformers.
        samples: texts on which a fast library must agree, besides a fixed set of awkward ones.
        log: called with one line where a fast library is passed over.
    """

    AWKWARD = (
        "", " ", "Hello, world!  It's a test-case: 3.14 (or so)…", "naïve café Ångström ﬁne ﬀ ß ẞ İ ı ς Σ",
        "e\u0301a\u0308 \u0301 x\u0327\u0301", "中文字符和English混合。日本語カタカナ 한국어", "नमस्ते दुनिया ไทย العربية עברית",
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☃️", "zero\u200bwidth\u200djoin\ufeffmark soft\u00adhyphen", "tab\tfeed\x0c vt\x0b nul\x00 bel\x07 del\x7f",
        "nbsp\u00a0em\u2003line\u2028para\u2029nel\x85", "\u0378\ufffe\U000e0001\U0010ffff\ue000", "x" * 99, "y" * 100, "z" * 101, "w" * 200,
        "[MASK] [mask] x[MASK]y [SEP][CLS] [UNK] [PAD] <mask> a<mask>b <s> </s> <unk> <pad>", "##ing # #a ▁x Ġy Ċ",
        "  leading and trailing  ", "UPPER lower MiXeD ÀÉÎ ЁЖ", "$100 €5 £3 ¥2 a_b@c.de http://x.y/z?q=1&r=2", "''``--...!!!???",
    )  # fmt: skip

    def __init__(self, tokenizer, samples, log):
        self.tokenizer, self.encode = tokenizer, None
        texts = [*self.AWKWARD, *samples]
        # Added tokens are where fast libraries stumble: alone, inside a word, and between blanks.
        texts += [text for token in tokenizer.added_tokens_decoder.values() for text in
                  (token.content, f"a{token.content}b", f"a {token.content} b {token.content.upper()}")]
        expected_ids, expected_offsets = self.encode_with("transformers")(texts)
        for self.name in ("nanotoken", "gigatoken", "tokenizers"):
            try:
                ids, offsets = self.encode_with(self.name)(texts)
                if np.array_equal(ids, expected_ids) and np.array_equal(offsets, expected_offsets):
                    return
                log(f"{self.name} is not used: its ids differ from the model's own tokenizer")
            except ImportError:
                pass  # optional
            except Exception as error:  # whatever a young library stumbles over: the tokenizer's own way remains
                if self.name == "tokenizers" or "nsupported" not in f"{type(error).__name__}{error}":
                    log(f"{self.name} is not used: {type(error).__name__}: {str(error)[:100]}")
        self.name = "transformers"

    def encode_with(self, name):
        """Build the function that turns a list of texts into ids (tokens,) and offsets (texts + 1,)."""
        tokenizer = self.tokenizer
        if name == "transformers":
            def rows_of(texts):
                return tokenizer(texts, add_special_tokens=False, return_attention_mask=False,
                                 return_token_type_ids=False, verbose=False)["input_ids"]
        elif name == "tokenizers":
            from tokenizers import Tokenizer

            backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            backend.no_truncation()
            backend.no_padding()

            def rows_of(texts):
                return [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)]
        elif name == "nanotoken":
            import nanotoken

            fast = nanotoken.Tokenizer.from_json(tokenizer.backend_tokenizer.to_str())

            def encode(texts):
                rows = fast.encode_batch(texts, add_special_tokens=False)
                return rows.ids.astype(np.int32), rows.offsets

            return encode
        else:
            import awkward
            import gigatoken

            fast = gigatoken.Tokenizer.from_json(tokenizer.backend_tokenizer.to_str())

            def encode(texts):
                rows = fast.encode_batch(texts)
                lengths = awkward.to_numpy(awkward.num(rows))
                return awkward.to_numpy(awkward.flatten(rows)).astype(np.int32), np.concatenate([[0], lengths.cumsum()])

            return encode

        def encode_rows(texts):
            rows = rows_of(texts)
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
            return np.fromiter((i for row in rows for i in row), dtype=np.int32, count=offsets[-1]), offsets

        return encode_rows

    def __getstate__(self):
        return {**self.__dict__, "encode": None}  # made anew in each data worker: the fast libraries do not pickle

    def __call__(self, texts):
        """Tokenize a list of texts: int32 ids (tokens,) and int64 offsets (texts + 1,) into them."""
        if self.encode is None:
            self.encode = self.encode_with(self.name)
        return self.encode(texts)


# Copied from utils.checkpoints.write_manifest
def write_manifest(folder):
    """Write manifest.json into a checkpoint: size in bytes and SHA-256 of each file. Written last, it vouches for all."""
    folder, files = Path(folder), {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


# Copied from utils.checkpoints.checkpoint_fault
def checkpoint_fault(folder):
    """Say in words why a checkpoint does not agree with its manifest.json, or return None if it does."""
    folder = Path(folder)
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "manifest.json is missing or damaged"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != expected["size"]:
            return f"{name} has {(folder / name).stat().st_size:,} bytes instead of {expected['size']:,}"
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    return None


# Copied from utils.checkpoints.list_checkpoints
def list_checkpoints(output_dir):
    """List the folders named checkpoint-N in output_dir, oldest first, whether they are whole or not."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


# Copied from utils.checkpoints.latest_checkpoint
def latest_checkpoint(output_dir, warn):
    """Find the newest whole checkpoint, or None. `warn` is called with one line for each damaged one passed over."""
    for folder in reversed(list_checkpoints(output_dir)):
        fault = checkpoint_fault(folder)
        if fault is None:
            return folder
        warn(f"{folder} is passed over: {fault}")
    return None


# Copied from utils.checkpoints.remove_folder
def remove_folder(folder):
    """Remove a folder so that a kill halfway leaves nothing under its name. A missing one is no error."""
    folder = Path(folder)
    if folder.exists():
        aside = folder.with_name(f"tmp-old-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


# Copied from utils.checkpoints.save_checkpoint
def save_checkpoint(output_dir, step, write, *, limit=None, keep=None):
    """Save checkpoint-{step}: write aside, add the manifest, rename, and only then let older ones go.

    Args:
        output_dir: folder of the run.
        step: number of updates done.
        write: function that is given an empty folder and writes the checkpoint's files into it.
        limit: how many checkpoints stay, at least 1; None keeps all.
        keep: name of a checkpoint that stays whatever its age, such as the best one's, and counts; None for none.

    Returns:
        Path of the checkpoint.
    """
    aside = Path(output_dir, f"tmp-checkpoint-{step}")  # a name that no search for checkpoints finds
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    write_manifest(aside)
    folder = Path(output_dir, f"checkpoint-{step}")
    remove_folder(folder)  # a damaged one of this name stands in the way of the rename
    os.replace(aside, folder)
    if limit is not None:
        # Later ones than this are left over from a run that was resumed further back.
        others = [path for path in list_checkpoints(output_dir) if path != folder and path.name != keep]
        others.sort(key=lambda path: (int(path.name.split("-")[1]) < step, int(path.name.split("-")[1])))
        spare = limit - 1 - (keep not in (None, folder.name) and Path(output_dir, keep).exists())
        for old in others[: max(0, len(others) - max(0, spare))]:
            remove_folder(old)
    return folder


# Copied from utils.running.read_config
def read_config(path, parser):
    """Turn a YAML file of flags into command-line arguments, for the parser to check like any others.

    Args:
        path: YAML file, a flag a line: `learning_rate: 5e-5`, `train_file: [a.txt, b.txt]`, `line_by_line: true`.
        parser: the argparse parser; its long options are the keys allowed.

    Returns:
        list of strings to stand before the arguments typed by the user, so that those win.

    Raises:
        InputError: no such file, not YAML (line named), not a mapping, or a key that is no flag.
    """
    try:
        with open(path, encoding="utf-8") as file:
            # Every value as the text that stands there: `no` is a strategy here, not False, and 5e-5 not a string.
            settings = yaml.load(file, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict | None):
        raise InputError(f"--config {path}: expected one `flag: value` a line, found {str(settings)[:40]!r}")
    flags = {option[2:] for action in parser._actions for option in action.option_strings} - {"config", "help", ""}
    arguments = []
    for key, value in (settings or {}).items():
        if key not in flags:
            raise InputError(f"--config {path}: {key!r} is not a flag of this script; see --help for those that are")
        if isinstance(value, dict):
            value = ",".join(f"{name}={part}" for name, part in value.items())
        if isinstance(value, list):
            arguments += [f"--{key}", *value]
        elif value not in ("", "null", "~"):
            arguments.append(f"--{key}={value}")
    return arguments


# Copied from utils.running.pick_precision
def pick_precision(wanted, launcher, device_type):
    """Choose the mixed precision of a run: "bf16", "fp16" or "no" (float32).

    Args:
        wanted: what the user asked for; "auto" leaves it to the launcher, and where that says nothing to the hardware.
        launcher: what `accelerate launch` was told, which is "no" also when it was told nothing.
        device_type: "cpu", "cuda" and so on. bfloat16 is taken where the device computes it natively.
    """
    if wanted != "auto":
        return wanted
    if launcher in ("bf16", "fp16"):
        return launcher
    if device_type == "cpu":  # elsewhere bfloat16 is slower than float32, though it is called available
        native = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    elif device_type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device_type == "xpu" and torch.xpu.is_bf16_supported()
    return "bf16" if native else "no"


# Copied from utils.running.set_cpu_threads
def set_cpu_threads(wanted, local_processes):
    """Set torch's threads and return their number: `wanted`, or else physical cores / processes on this machine.

    `accelerate launch` sets OMP_NUM_THREADS to 1 on a CPU, which halves the speed of two cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(torch.cpu.get_capabilities().get("num_physical_cores", allowed), allowed)
    threads = wanted or max(1, cores // local_processes)
    torch.set_num_threads(threads)
    return threads


# Copied from utils.running.Processes
class Processes:
    """What the processes of a run tell each other on the CPU: sums of counts, and whose turn it is.

    They do so over gloo: NCCL would make the CPU wait for the GPU, and gives up on whoever waits over ten minutes.

    Args:
        num_processes: processes of the run; torch.distributed is initialised where there are several.
        rank: which of them this is. local_rank: which of those on this machine.
    """

    def __init__(self, num_processes, rank, local_rank):
        self.num_processes, self.rank, self.local_rank = num_processes, rank, local_rank
        several = num_processes > 1
        self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7)) if several else None

    def sum(self, *values):
        """Add up numbers over all processes, in float64: a list of as many floats."""
        totals = torch.tensor(values, dtype=torch.float64)
        if self.group is not None:
            torch.distributed.all_reduce(totals, group=self.group)
        return totals.tolist()

    def main_first(self, function):
        """Call function on the first process, then on the first of each machine, then on all others.

        What one has cached, the next find. Where it raises InputError, all processes end and that one says why.
        """
        result = None
        for turn in range(3):
            failure = None
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
                time.sleep(10)  # a launcher ends all processes as soon as one is gone: the other speaks first
                sys.exit(2)
        return result


# Copied from utils.running.StopSignal
class StopSignal:
    """Notes SIGTERM and Ctrl-C, for the loop to finish its update and save; a second Ctrl-C ends at once.

    `number` is the signal that came, 0 before one does.
    """

    def __enter__(self):
        self.number, self.since = 0, 0.0
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, _frame):
        # Launchers pass a Ctrl-C on to processes that had it from the terminal already: that is not a second one.
        if self.number and number == signal.SIGINT and time.monotonic() - self.since > 2:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.since = number, time.monotonic()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# Copied from utils.running.cut_log
def cut_log(path, step):
    """Cut a log.jsonl back to the lines up to an update, when a run goes on from there; a missing file is fine."""
    if os.path.exists(path):
        kept = []
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):  # the half-written last line of a run that was killed
                    continue
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            file.writelines(kept)
        os.replace(f"{path}.tmp", path)


# Copied from utils.running.run_main
def run_main(main):
    """Call main; a mistake of the user's ends it with one message on stderr and exit status 2.

    Of several processes that find the same mistake, the first speaks; the launcher ends the others meanwhile.
    """
    rank = int(os.environ.get("RANK", 0))
    try:
        main()
    except InputError as error:
        if rank and not error.only_here:
            time.sleep(10)
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        if not rank:
            print("\nStopped by Ctrl-C. What was saved before stays as it is.", file=sys.stderr, flush=True)
        sys.exit(130)


if __name__ == "__main__":
    run_main(main)
