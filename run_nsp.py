# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "transformers>=5.23", "accelerate>=1.15", "datasets>=5.2",
#                 "multiprocess>=0.70.19", "numpy>=2.4", "pyarrow>=26.0", "huggingface-hub>=2.4",
#                 "PyYAML>=6.0", "tqdm>=4.67", "nanotoken>=0.1.0", "sentencex>=1.0", "wandb>=0.31"]
# ///
"""Train a BERT-style model to tell whether one sentence follows another, and report its accuracy.

    accelerate launch run_nsp.py --model bert-base-uncased --train_file corpus.txt --validation_file held_out.txt
    accelerate launch run_nsp.py --model outputs/nsp --sentence_a "It rained." --sentence_b "The street was wet."
    accelerate launch run_nsp.py --model outputs/nsp --test_file pairs.tsv

Reads documents of sentences: text (a paragraph a line; a blank line ends a document), JSON, CSV, TSV and Parquet (a row
a document), packed or not, under any name, or a data set of the Hub. Pairs are made anew each epoch. Writes
to --output_dir: the model and tokenizer, all_results.json (eval_loss in nats per pair, eval_accuracy, precision and
recall of both classes), predictions.jsonl, log.jsonl, checkpoints and a model card. Label 0 is "is next", 1 "not next".

Source: Devlin et al. 2018, https://arxiv.org/abs/1810.04805
"""

import argparse
import bz2
import codecs
import csv
import ctypes
import difflib
import errno
import functools
import glob
import gzip
import hashlib
import html
import importlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import lzma
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

try:
    import datasets
    import huggingface_hub
    import multiprocess
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet
    import sentencex
    import torch
    import torch.distributed
    import torch.nn.functional as F
    import transformers
    import yaml
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import parse_flag_from_env, send_to_device, set_seed
    from torch.utils.data import DataLoader, Sampler
    from tqdm import tqdm
    from transformers import AutoConfig, AutoModelForNextSentencePrediction, AutoTokenizer, get_scheduler
    from transformers.hf_argparser import string_to_bool
except ImportError as error:
    print(f"run_nsp.py: error: {error}. Install what it needs: "
          "pip install torch transformers accelerate datasets multiprocess numpy pyarrow"
          " huggingface-hub PyYAML tqdm nanotoken sentencex wandb", file=sys.stderr)
    sys.exit(2)

DEFAULT_DATASET = "stanfordnlp/imdb"  # taken where no data are named, so that a bare call runs
# Kinds of models with a head for it, and a mask over the padding.
MODELS = ("bert", "ernie", "megatron-bert", "mobilebert")
OBJECTIVES = {"nsp": "next sentence", "sop": "sentence order"}
SIDES = ("sentence_a", "sentence_b")


# ---------------------------------------------------------------- arguments


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    data = add_model_and_data_flags(parser, DEFAULT_DATASET, "documents", "pairs")
    add_pair_flags(data)
    add_flags(
        parser.add_argument_group("judging, at the end; --test_file is a table of sentence_a, "
                                  "sentence_b and perhaps label, 0 for is next, 1 for not next"),
        ("sentence_a", str, "judge this sentence and --sentence_b; without data, that is all"),
        ("sentence_b", str, "does it follow --sentence_a?"),
        ("on_bad_row", ["error", "skip"], "error",
         "a faulty row of --test_file ends the run, or goes to skipped_rows.jsonl"),
    )
    add_loop_flags(parser, "nsp", "pairs")
    args = parse_with_config(parser, argv)
    check_loop_flags(args, parser)
    if args.sentence_a is not None or args.sentence_b is not None:
        for side in SIDES:
            text = getattr(args, side) or ""
            if not text.strip() or re.search("[\ud800-\udfff]", text):
                parser.error(f"--{side} is missing, empty or not UTF-8; --sentence_a and "
                             "--sentence_b make a pair: give both")
    if args.do_predict and not args.test_file:
        parser.error("--do_predict has no pairs to judge: give --test_file")
    needs_data = (args.do_train or args.do_eval or args.prepare_only
                  or not (args.test_file or args.sentence_a))
    choose_tasks(args, parser, DEFAULT_DATASET, args.train_file or args.validation_file, needs_data)
    return args


# ---------------------------------------------------------------- data


def pair_of(place, row):
    """Check a row of a table of pairs: the row, its label a number.

    InputError where it is at fault.
    """
    for side in SIDES:
        if not text_of(row, side, place, "Each row needs two sentences."):
            raise InputError(f"{place}: {side} is empty. Each row needs two sentences.")
    label = str(row.get("label", "0")).strip()
    if label not in ("0", "1"):
        raise InputError(f"{place}: label is {label[:40]!r}; expected 0 (is next) or 1 (not next), "
                         "or no such column.")
    return row | {"label": int(label)} if "label" in row else row


def read_pairs(patterns, skip, sample, encoding="utf-8", say=print):
    """Read tables of pairs: (rows of sentence_a, sentence_b, perhaps label; those left out).

    Args:
        patterns: files of CSV, JSON or Parquet, or globs.
        skip: leave faulty rows out.
        sample: take so many, drawn at random, the same in every run; None takes all.
        encoding: of the files.
        say: called with lines on how they are read.

    Raises:
        InputError: a file is no table; a row is at fault; there is no row.
    """
    pairs, skipped = [], []
    paths = find_files(patterns, "--test_file")
    for path in paths:
        kind = find_kind(path, SIDES, encoding, say)
        if kind == "text":
            raise InputError(f"--test_file {path}: expected a table of pairs, CSV, JSON or Parquet, "
                             f"with the columns {' and '.join(SIDES)}; found text")
        for place, row in read_table(path, kind, [*SIDES, "label"], encoding, say):
            try:
                row = pair_of(place, row)
                if pairs and ("label" in row) != ("label" in pairs[0]):
                    raise InputError(f"{place}: it has {'a' if 'label' in row else 'no'} label, "
                                     "unlike the rows before it. Give each row one, or none.")
                pairs.append(row)
            except InputError as fault:
                if not skip:
                    raise
                skipped.append({"place": place, "reason": str(fault)})
    if not pairs:
        raise InputError(f"{', '.join(paths)}: there are no pairs in it. Expected a row for each, "
                         "under a header of sentence_a, sentence_b and perhaps label.")
    order = np.random.default_rng(0).permutation(len(pairs))[:sample]
    return [pairs[i] for i in sorted(order)], skipped


# ---------------------------------------------------------------- pairs and order


# ==== utils/batches.py, whole (to change it, change it there; `make fix` copies it) ====
# Which examples a batch holds, and how rows of different length stand in it.

def pad(rows, value):
    """Put int64 arrays (length,) under each other, filled up with value: (batch, longest)."""
    padded = np.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


class GlobalBatchSampler(Sampler):
    """Micro-batches of one process, the same per update for any number of processes.

    An epoch's order is `default_rng((seed, epoch)).permutation(n)`, cut into global batches of
    batch_size x accumulation_steps x num_processes examples; the last may be smaller, and no
    example stands twice. Set `epoch` before each pass, and `first_update` where a resume goes on
    within it: nothing before it is read.

    Args:
        n: number of examples, or a function that gives it for each epoch, from 0.
        batch_size: examples per process and pass.
        accumulation_steps: passes per update.
        num_processes, rank: how many processes train together, and which this is.
        seed: seed of the run, at least 0.
    """

    def __init__(self, n, batch_size, accumulation_steps, num_processes, rank, seed):
        self.n, self.seed = n, seed
        self.batch_size, self.accumulation_steps = batch_size, accumulation_steps
        self.num_processes, self.rank = num_processes, rank
        self.epoch = self.first_update = 0
        self.global_batch = batch_size * accumulation_steps * num_processes

    def __iter__(self):
        order, size = self.order(), self.global_batch
        for start in range(self.first_update * size, len(order), size):
            # Even pieces of the update, which follow each other over the processes. Of the last
            # update, some may be empty.
            pieces = np.array_split(order[start : start + size],
                                    self.accumulation_steps * self.num_processes)
            for piece in pieces[self.rank :: self.num_processes]:
                yield piece.tolist()

    def __len__(self):
        return self.updates_in(self.epoch) * self.accumulation_steps

    def order(self):
        """Draw the order of the examples of the epoch: int64, (examples,)."""
        # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 the order of seed 0
        # in epoch 1.
        rng = np.random.default_rng((self.seed, self.epoch))
        return rng.permutation(self.examples_in(self.epoch))

    def examples_in(self, epoch):
        return self.n(epoch) if callable(self.n) else self.n

    def updates_in(self, epoch):
        return math.ceil(self.examples_in(epoch) / self.global_batch)

    def updates_until(self, epochs):
        """Count the updates of so many epochs, which may be a fraction."""
        updates = sum(map(self.updates_in, range(int(epochs))))
        if epochs % 1:
            rest = epochs % 1 * self.updates_in(int(epochs))
            updates += math.ceil(round(rest, 6))  # 0.1 x 50 is 5
        return updates

    def place(self, update):
        """Say where in the run an update stands: (epoch, updates of that epoch before it)."""
        epoch = 0
        while update >= self.updates_in(epoch):
            update -= self.updates_in(epoch)
            epoch += 1
        return epoch, update

    def epochs_until(self, update):
        """Count the epochs that the updates up to this one make, as a fraction."""
        epoch, done = self.place(update)
        return epoch + (done / self.updates_in(epoch) if done else 0)

    def examples_until(self, update):
        """Count the examples, of all processes, that the updates up to this one have seen."""
        epoch, done = self.place(update)
        return sum(map(self.examples_in, range(epoch))) + done * self.global_batch


# ==== utils/pairs.py, whole (to change it, change it there; `make fix` copies it) ====
# Documents of sentences, and how an epoch pairs them.

def add_pair_flags(group):
    """Add the flags that say what documents, sentences and pairs are to a group of a parser."""
    add_text_flags(group)
    add_flags(
        group,
        ("max_seq_length", number(int, 5), 128, "tokens per pair, [CLS] and [SEP]s too"),
        ("sentences_per_document", number(int, 2), "cut documents after so many sentences "
         "(default: not at all)"),
        ("language", str, "en", "of the text, as en or de, for its sentences; another code gets "
         "general rules"),
        ("sentence_per_line", bool, False, "each line, or row, is a sentence already"),
        ("objective", ["nsp", "sop"], "nsp", "not next is: a random sentence of another document, "
         "or, for sentence order prediction, the two in the other order"),
    )


class Documents:
    """Tokenized sentences in their documents, found by number without a copy of them in memory.

    Sentences without tokens are left out, and documents of which a single sentence is left, as they
    make no pair.

    Args:
        table: Dataset of `ids` (int32 lists) and `document`, a row for each sentence, in the Arrow
            format.
        part: (which, percent): "all" documents, "drawn" ones of so many percent but two at least,
            by number alone, or the "rest".
        sentences_per_document: cut documents after so many sentences, before any are drawn; None
            leaves them whole.

    Attributes:
        starts: number of the first sentence of each document, and that of all sentences; int64,
            (documents + 1,).
        lengths: tokens of each sentence; int64, (sentences,).
        single: how many documents were left out for their single sentence, before any were drawn.
    """

    def __init__(self, table, part=("all", 0), sentences_per_document=None):
        self.table = table
        lengths = pa.compute.list_value_length(table.data["ids"]).to_numpy()  # (rows,)
        rows = np.flatnonzero(lengths)
        begins = np.diff(table.data["document"].to_numpy()[rows], prepend=-1) != 0
        document = np.cumsum(begins) - 1  # of each row, from 0 without gaps
        if sentences_per_document:
            place = np.arange(len(rows)) - np.flatnonzero(begins)[document]  # in its document
            # A rest of one stays with the others.
            alone = (place > 0) & (place + 1 == np.bincount(document)[document])
            document = np.cumsum((place % sentences_per_document == 0) & ~alone) - 1
        sentences = np.bincount(document)  # of each document
        self.single = int(np.sum(sentences == 1)) if part[0] != "drawn" else 0
        wanted = sentences > 1
        wanted[wanted] = draw_rows(int(wanted.sum()), *part, least=2)
        self.rows = rows[wanted[document]]  # of the table, (sentences,)
        self.lengths = lengths[self.rows].astype(np.int64)
        self.starts = np.cumsum([0, *sentences[wanted]])

    def __len__(self):
        return len(self.starts) - 1

    def ids(self, start, end):
        """Token ids of the sentences of a document from `start` up to `end`: int64, (tokens,)."""
        if start == end:
            return np.zeros(0, np.int64)
        # Rows that are left out between two sentences of a document have no tokens.
        lists = self.table.data["ids"][self.rows[start] : self.rows[end - 1] + 1]
        return lists.combine_chunks().flatten().to_numpy().astype(np.int64)

    def around(self, sentence):
        """The document of a sentence: (number of its first sentence, number behind its last)."""
        document = np.searchsorted(self.starts, sentence, side="right") - 1
        return self.starts[document], self.starts[document + 1]

    def draw_others(self, sentence, rng, number=None):
        """Draw sentences of other documents than that of a sentence: their numbers, or one."""
        first, behind = self.around(sentence)
        draws = rng.integers(self.starts[-1] - (behind - first), size=number)
        return draws + (behind - first) * (draws >= first)


def rng_of(stream, *numbers):
    """Make a generator of a stream of its own: masks and order are drawn with these numbers, too."""
    # A tuple, not a sum: with seed + epoch, seed 1 would repeat in epoch 0 what seed 0 does in
    # epoch 1.
    return np.random.default_rng(np.random.SeedSequence(numbers, spawn_key=(stream,)))


def plan_sentences(documents, seed, epoch):
    """Plan an epoch in which each sentence but the last of a document is A once.

    Returns:
        int64 array (pairs, 4): A is the sentences from column 0 up to column 1, its true B those
        from there up to column 2, and column 3 is the label: 0 where B follows A, 1 where another B
        is to take its place.
    """
    first = np.delete(np.arange(documents.starts[-1]), documents.starts[1:] - 1)
    labels = rng_of(1, seed, epoch).integers(2, size=len(first))
    return np.stack([first, first + 1, first + 2, labels], axis=1)


def truncate_pair(a, b, size, rng=None):
    """Shorten two arrays to `size` tokens together: the longer one, at front or back.

    Without rng at the back, else at random.

    Source: Devlin et al. 2018, appendix A.2; truncate_seq_pair in
    https://github.com/google-research/bert
    """
    of_a = min(len(a), max(size - len(b), size - size // 2))
    shown = []
    for part, length in (a, of_a), (b, min(len(b), size - of_a)):
        front = rng.binomial(len(part) - length, 0.5) if rng else 0
        shown.append(part[front : front + length])
    return shown


class PairCollator:
    """Make pairs of sentences, padded to the longest of the batch, anew each epoch (set `epoch`).

    Half of them are two that follow each other, label 0; the others get a random B of another
    document, label 1, or for the objective "sop" (sentence order prediction) stand in the other
    order. Example i of an epoch is a function of (seed, epoch, i): the same in any data worker and
    process.

    Args:
        documents: the Documents to draw from; at least two, unless the objective is "sop".
        size: tokens of a pair, without [CLS] and [SEP]s.
        edges: ids of [CLS] and [SEP].
        pad_id: of padding.
        objective: "nsp" or "sop".
        seed: of the run, at least 0.
        sample: how many pairs of an epoch to take, drawn by seed; None takes all.

    Source: Devlin et al. 2018, section 3.1 and appendix A.2, https://arxiv.org/abs/1810.04805; sop:
    Lan et al. 2019, section 3.1, https://arxiv.org/abs/1909.11942
    """

    def __init__(self, documents, *, size, edges, pad_id, objective, seed, sample=None):
        self.documents, self.size, self.edges, self.pad_id = documents, size, edges, pad_id
        self.swap, self.seed, self.sample = objective == "sop", seed, sample
        self.epoch, self.planned, self.counts = 0, (None, None), {}

    def plan_pairs(self, epoch):
        """Plan all pairs of an epoch, as plan_sentences does."""
        return plan_sentences(self.documents, self.seed, epoch)

    def plan(self, epoch):
        """The pairs of an epoch that are taken; kept until another is asked for."""
        if self.planned[0] != epoch:
            plan = self.plan_pairs(epoch)
            if self.sample:
                order = np.random.default_rng(self.seed).permutation(len(plan))
                plan = plan[np.sort(order[: self.sample])]
            self.planned = epoch, plan
        return self.planned[1]

    def count(self, epoch):
        """Count the pairs of an epoch."""
        if epoch not in self.counts:
            self.counts[epoch] = len(self.plan(epoch))
        return self.counts[epoch]

    def random_b(self, start, middle, end, rng):
        """Draw a B out of another document than that of A and its true B, (start, middle, end)."""
        other = self.documents.draw_others(start, rng)
        return self.documents.ids(other, other + 1)

    def pair(self, example):
        """Make a pair: (ids of A, ids of B, label)."""
        start, middle, end, label = self.plan(self.epoch)[example].tolist()
        rng = rng_of(2, self.seed, self.epoch, example)
        a, b = self.documents.ids(start, middle), self.documents.ids(middle, end)
        if label and not self.swap:
            b = self.random_b(start, middle, end, rng)
        a, b = truncate_pair(a, b, self.size, rng)
        return (b, a, label) if label and self.swap else (a, b, label)

    def __call__(self, examples):
        """Make a batch, as of stack_pairs, of the examples of these numbers; there may be none."""
        pairs = [self.pair(example) for example in examples]
        # The last global batch can leave a process without any: it joins, and predicts nothing.
        nothing = self.documents.ids(0, 0)
        return stack_pairs(pairs or [(nothing, nothing, -100)], self.edges, self.pad_id)


def stack_pairs(pairs, edges, pad_id):
    """Put pairs of ids of A, ids of B and label under each other, between those of [CLS] and [SEP].

    Returns:
        dict of input_ids, token_type_ids and attention_mask, (batch, seq), and of
        next_sentence_label, (batch,): 0 where B follows A, -100 where nothing is predicted.
    """
    cls, sep = edges
    rows = [np.concatenate([[cls], a, [sep], b, [sep]]) for a, b, _ in pairs]
    types = [np.repeat([0, 1], [len(a) + 2, len(b) + 1]) for a, b, _ in pairs]
    return {"input_ids": pad(rows, pad_id), "token_type_ids": pad(types, 0),
            "attention_mask": pad([np.ones_like(row) for row in rows], 0),
            "next_sentence_label": torch.tensor([label for _, _, label in pairs])}


def show_pairs(collator, tokenizer, split, say):
    """Show what a split is: how many of its pairs are cut, and two of them."""
    plan, lengths = collator.plan(0), collator.documents.lengths
    tokens = np.concatenate([[0], np.cumsum(lengths)])
    cut = np.mean(tokens[plan[:, 2]] - tokens[plan[:, 0]] > collator.size)
    if cut > 0.1:
        say(f"  Careful:  {cut:.0%} of the pairs of {split} are longer than --max_seq_length, and "
            "are cut")
    batch = collator(sorted({0, len(plan) // 2}))
    for ids, types, label in zip(batch["input_ids"], batch["token_type_ids"],
                                 batch["next_sentence_label"], strict=True):
        sides = [tokenizer.decode(ids[(types == side) & (ids != collator.pad_id)]) for side in (0, 1)]
        verdict = ("is next", "not next")[label]
        say(f"  Example:  {split}, {verdict}: {sides[0][:60]} | {sides[1][:60]}")


def split_sentences(source, language):
    """Make of a Source of paragraphs one of sentences.

    Args:
        language: code that sentencex knows, as en.
    """

    def read():
        for texts, documents in source.read():
            split = [[*filter(None, map(str.strip, sentencex.segment(language, text)))]
                     for text in texts.to_pylist()]
            yield (pa.array(itertools.chain.from_iterable(split), pa.large_string()),
                   np.repeat(documents, [len(sentences) for sentences in split]))

    version = importlib.metadata.version("sentencex")  # another may find other sentences
    return source._replace(key=f"{source.key} sentences {language} {version}", read=read)


def check_documents(documents, name, drawn, objective):
    """Raise InputError, which says how to go on, where documents are too few for pairs.

    Args:
        name: of the source and its part.
        drawn: it is a part of the training data.
        objective: "nsp" or "sop".
    """
    needed = 2 if objective == "nsp" else 1  # a random B has to come from another one
    if len(documents) >= needed:
        return
    found = "one document only" if len(documents) else "no document of two sentences or more"
    advice = ("Separate documents by blank lines, or give --document_separator line, or "
              "--sentences_per_document 50 to cut a long one; --objective sop needs but one.")
    if documents.single > len(documents):
        advice = ("Where lines without blank lines between them belong together, give "
                  "--document_separator blank_line, and --sentences_per_document 50 to cut a long "
                  "document.")
    if drawn:
        advice += " Or give --validation_file, or --validation_split_percentage 0."
    raise InputError(f"{name} has {found}, and {documents.single:,} of one sentence, which make no "
                     f"pairs; expected at least {needed}, as a random B comes from another. "
                     f"{advice}")


def prepare_data(args, tokenizer, splits, say, joined=False):
    """Prepare the splits that the run needs, each a tuple by its name. joined: as for tokenize_source."""
    begun, data, tokenized = time.perf_counter(), {}, {}
    sources = find_sources(args, splits, say)
    for split, (source, part) in choose_parts(sources, args, splits).items():
        source = source if args.sentence_per_line else split_sentences(source, args.language)
        if source.key not in tokenized:
            tokenized[source.key] = tokenize_source(source, tokenizer, args, say, joined)["ids"]
        tokens = tokenized[source.key]
        documents = Documents(tokens, part, args.sentences_per_document)
        check_documents(documents, f"{source.name}: its {split} part", part[0] != "all",
                        args.objective)
        alone = f"; {documents.single:,} of one sentence are left out" if documents.single else ""
        say(f"Documents   {split}: {len(documents):,} in {source.name}, with "
            f"{documents.starts[-1]:,} sentences, {documents.lengths.sum():,} tokens{alone}")
        if documents.lengths.mean() > 100:
            say("  Careful:  sentences are very long; is --language right?")
        content = f"{tokens._fingerprint} {part} {args.sentences_per_document}"
        data[split] = documents, content, source.name
    say(f"Prepared    in {time.perf_counter() - begun:.2f} s")
    return data


# ==== run_nsp.py ====


def make_collator(args, tokenizer, documents, split):
    """Make the collator of a split; that of evaluation has seed 0, so that runs compare."""
    trains = split == "train"
    return PairCollator(documents, size=args.max_seq_length - 3, edges=edge_ids(tokenizer),
                        pad_id=tokenizer.pad_token_id, objective=args.objective, seed=args.seed
                        if trains else 0, sample=args.max_train_samples if trains
                        else args.max_eval_samples)


# ---------------------------------------------------------------- evaluate and train


def score_pairs(model, batch):
    """Score a batch of pairs: float32, (batch, 2), for "is next" and "not next"."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "next_sentence_label"}
    return model(**inputs).logits.float()


@torch.no_grad()
def evaluate(model, examples, collator, batch_size, run):
    """Score a model on pairs, exactly: sums over all processes, divided once.

    Pairs depend on the seed alone, 0.

    Args:
        model: the model itself, not the DistributedDataParallel around it, whose first pass waits
            for all processes: one without an example never gets there.
        examples: numbers of the pairs, the same on each process, which scores its share.
        collator: a PairCollator with seed 0 and epoch 0.

    Returns:
        dict of eval_loss (nats per pair), eval_accuracy, precision and recall of both classes (0
        where there is nothing to divide by), and how many pairs of each class were taken for which.
    """
    model.eval()
    mine = examples[run.rank :: run.num_processes]  # no example stands twice
    losses, confusion = [], torch.zeros(4, dtype=torch.int64, device=run.device)
    batches = DataLoader(mine, batch_size=batch_size, collate_fn=collator,
                         generator=torch.Generator())
    for batch in tqdm(batches, desc="Evaluating", disable=run.rank > 0 or None, leave=False):
        batch = send_to_device(batch, run.device)
        logits, labels = score_pairs(model, batch), batch["next_sentence_label"]  # (batch, 2)
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        confusion += torch.bincount(2 * labels + logits.argmax(dim=-1), minlength=4)
    nll, *confusion = run.sum(sum(x.item() for x in losses), *confusion.tolist())
    return scores_of(nll, confusion)


def scores_of(nll, confusion):
    """Turn sums into scores.

    Args:
        confusion: how many of class 0 were taken for 0 and 1, and of class 1 for 0 and 1.
    """
    (a, b, c, d), total = confusion, sum(confusion)
    return {"eval_loss": nll / total, "eval_accuracy": (a + d) / total, "eval_is_next_precision": a
            / max(a + c, 1), "eval_is_next_recall": a / max(a + b, 1), "eval_not_next_precision": d
            / max(b + d, 1), "eval_not_next_recall": d / max(c + d, 1),
            "eval_is_next_taken_for_is_next": int(a), "eval_is_next_taken_for_not_next": int(b),
            "eval_not_next_taken_for_is_next": int(c), "eval_not_next_taken_for_not_next": int(d)}


def train(run, model, loader):
    """Train from where the run stands up to its last update, or until a signal is noted."""
    sampler, collator, accelerator = loader.batch_sampler, loader.collate_fn, run.accelerator
    goes_on = run.step < run.max_steps
    while goes_on:
        epoch, sampler.first_update = sampler.place(run.step)
        collator.epoch = sampler.epoch = epoch
        collator.plan(epoch)  # here, and not once in each data worker
        batches = iter(loader)
        while goes_on and (micro_batches := list(islice(batches, sampler.accumulation_steps))):
            model.train()
            run.seed_dropout()
            # The last update of an epoch can have fewer pairs. One count for the whole update, over
            # all processes, gives every pair the same weight; averaging the averages would not.
            pairs = sum((batch["next_sentence_label"] != -100).sum() for batch in micro_batches)
            pairs, stop = run.sum(pairs, run.stop_signal.number > 0)
            nll = torch.zeros(1, device=run.device)
            for i, batch in enumerate(micro_batches):
                is_last = i == len(micro_batches) - 1
                with nullcontext() if is_last else accelerator.no_sync(model):
                    batch = send_to_device(batch, run.device, non_blocking=True)
                    logits = score_pairs(model, batch)  # (batch, 2)
                    loss = F.cross_entropy(logits, batch["next_sentence_label"], reduction="sum")
                    # Gradients are averaged over processes; this factor turns the average back into
                    # a sum.
                    accelerator.backward(loss * run.num_processes / pairs)
                    nll += loss.detach()
            limit = run.args.max_grad_norm or math.inf
            norm = accelerator.clip_grad_norm_(model.parameters(), limit)
            run.optimizer.step()
            # Kept out of accelerator.prepare(), where it would tick once per process.
            run.schedule.step()
            run.optimizer.zero_grad()
            goes_on = run.after_update(nll, [pairs], norm, stop > 0)


def fit(run, model, tokenizer, collator, score):
    """Train, from a checkpoint where there is one. Returns a dict of results.

    Args:
        score: function that scores a model, a dict of results; None where there are no validation
            data.
    """
    args = run.args
    sampler = GlobalBatchSampler(collator.count, args.per_device_train_batch_size,
                                 args.gradient_accumulation_steps, run.num_processes, run.rank,
                                 args.seed)
    # The generator keeps iter() from drawing its seed out of the global one, which would shift
    # dropout after a resume.
    loader = DataLoader(range(sys.maxsize), batch_sampler=sampler, collate_fn=collator,
                        num_workers=args.dataloader_num_workers, generator=torch.Generator(),
                        pin_memory=run.device.type == "cuda", worker_init_fn=ignore_interrupts)
    model = run.begin(model, tokenizer, sampler, score, {"loss": 1.0})
    with run.stop_signal:
        train(run, model, loader)
    return run.finish_training()


# ---------------------------------------------------------------- judge


@torch.no_grad()
def judge(model, tokenizer, pairs, max_seq_length, batch_size):
    """Judge pairs of sentences: a list of dicts with scores, probability and verdict.

    Args:
        model: not wrapped.
        tokenizer: of the model.
        pairs: list of dicts of sentence_a and sentence_b.
        max_seq_length: a longer pair loses tokens at the end of its longer side: tokens_cut.
        batch_size: pairs per pass.
    """
    model.eval()
    size, edges, judged = max_seq_length - 3, edge_ids(tokenizer), []
    starts = range(0, len(pairs), batch_size)
    for start in tqdm(starts, desc="Judging", disable=len(pairs) == 1 or None, leave=False):
        batch, rows, lost = pairs[start : start + batch_size], [], []
        sides = [[pair[side] for pair in batch] for side in SIDES]
        sides = [encode(tokenizer, texts).to_pylist() for texts in sides]
        for a, b in zip(*sides, strict=True):
            lost.append(max(0, len(a) + len(b) - size))
            rows.append((*truncate_pair(np.array(a, np.int64), np.array(b, np.int64), size), 0))
        inputs = stack_pairs(rows, edges, tokenizer.pad_token_id)
        scores = score_pairs(model, send_to_device(inputs, model.device))  # (batch, 2)
        chances = scores.softmax(dim=-1)[:, 0].tolist()
        for pair, row, chance, cut in zip(batch, scores.tolist(), chances, lost, strict=True):
            verdict = "is next" if row[0] >= row[1] else "not next"
            judged.append({**pair, "score_is_next": row[0], "score_not_next": row[1],
                           "probability": chance, "verdict": verdict, "tokens_cut": cut})
    return judged


def predict_scores(judged):
    """Score judged pairs that carry labels, as evaluate does; nothing without labels."""
    if "label" not in judged[0]:
        return {}
    scores = torch.tensor([[row["score_is_next"], row["score_not_next"]] for row in judged],
                          dtype=torch.float64)
    labels = torch.tensor([row["label"] for row in judged])
    verdicts = torch.tensor([int(row["verdict"] == "not next") for row in judged])
    nll = F.cross_entropy(scores, labels, reduction="sum").item()
    confusion = torch.bincount(2 * labels + verdicts, minlength=4).tolist()
    return as_predictions(scores_of(nll, confusion))


def write_predictions(run, judged, skipped):
    """Write predictions.jsonl, and skipped_rows.jsonl where faulty rows were left out."""
    for name, rows in ("predictions.jsonl", judged), ("skipped_rows.jsonl", skipped):
        lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
        (run.folder / name).unlink(missing_ok=True)  # that of an earlier run
        if rows:
            (run.folder / name).write_text("".join(lines), encoding="utf-8")
            run.say(f"{len(rows):,} rows are in {run.folder / name}")
    warn_of_cuts(judged)


def warn_of_cuts(judged):
    """Say how many pairs did not fit."""
    cut = sum(row["tokens_cut"] > 0 for row in judged)
    if cut:
        print(f"  Careful:  {cut:,} of {len(judged):,} pairs are longer than --max_seq_length: the "
              "ends of their longer sentences are cut (tokens_cut)")


def show_verdict(row, note):
    """Print what the model says of one pair, in words."""
    warn_of_cuts([row])
    chance = row["probability"]
    verdict = "is" if row["verdict"] == "is next" else "is not"
    print(f"\nA: {row['sentence_a']}\nB: {row['sentence_b']}")
    print(f"Verdict: B {verdict} the next sentence, with probability {max(chance, 1 - chance):.3f}")
    print(f"  label 0, is next    score {row['score_is_next']:+.3f}   probability {chance:.3f}")
    print(f"  label 1, not next   score {row['score_not_next']:+.3f}   probability "
          f"{1 - chance:.3f}")
    if "random" in note:
        print(f"  Careful: {note}; train it first, or this says nothing")


# ---------------------------------------------------------------- main


def main(argv=None):
    args = parse_args(argv)
    todo = args.do_train or args.do_eval
    config, tokenizer = load_config_and_tokenizer(args, args.max_seq_length)
    if config.model_type not in MODELS:
        raise InputError(f"--model {args.model}: a model of the kind {config.model_type} has no "
                         "head for next sentence prediction. Take one of these kinds: "
                         f"{', '.join(MODELS)}, such as bert-base-uncased.")
    pairs, skipped, data, notes = [], [], {}, []
    if args.do_predict and not args.prepare_only:
        pairs, skipped = read_pairs(args.test_file, args.on_bad_row == "skip",
                                    args.max_predict_samples, args.file_encoding, notes.append)
    run = LoopRun("nsp", args, (todo or args.do_predict) and not args.prepare_only)
    run.say(*notes)
    if todo:
        with run.main_first():
            data = prepare_data(args, tokenizer, ["train", "validation"], run.say)
    if args.prepare_only:
        return
    model, note = run.load_model(AutoModelForNextSentencePrediction, config, tokenizer,
                                 "next-sentence head")
    run.introduce(model, note)
    collator, content = {}, {}
    for split, (documents, content[split], name) in data.items():
        collator[split] = make_collator(args, tokenizer, documents, split)
        words = f"{collator[split].count(0):,} pairs an epoch of {name}"
        run.say(f"{split.capitalize():<11} {words}")
        show_pairs(collator[split], tokenizer, split, run.say)
        run.card["data"][split] = words
    run.card["task"] = f"trained by {OBJECTIVES[args.objective]} prediction; {run.note}"
    score = None
    if "validation" in data:
        numbers = range(collator["validation"].count(0))
        score = partial(evaluate, examples=numbers, collator=collator["validation"], run=run,
                        batch_size=args.per_device_eval_batch_size)
    with explain_out_of_memory(args.max_seq_length):
        if args.do_train:
            run.check_resume(config.model_type, content, ("max_train_samples",
                             "max_eval_samples", "max_seq_length", "objective"))
            results = fit(run, model, tokenizer, collator["train"], score)
        else:
            model = run.prepare_for_evaluation(model)
            results = score(model) if args.do_eval else {}
        run.save_model_and_results(model, tokenizer, results)
        model = run.in_float32(model)
        if run.is_main and pairs:
            judged = judge(model, tokenizer, pairs, args.max_seq_length,
                           args.per_device_eval_batch_size)
            write_predictions(run, judged, skipped)
            results |= predict_scores(judged)
            run.write_results(results)
        run.report_results(results)
        if run.is_main and args.sentence_a:
            asked = {"sentence_a": args.sentence_a, "sentence_b": args.sentence_b}
            (row,) = judge(model, tokenizer, [asked], args.max_seq_length, 1)
            show_verdict(row, "" if args.do_train else run.note)


# ---------------------------------------------------------------- sections that scripts share: plumbing


# ==== utils/errors.py, whole (to change it, change it there; `make fix` copies it) ====
# Mistakes of the user, and what else is no fault of the program: one message, exit status 2.

class InputError(ValueError):
    """A mistake in what the user gave. Its message is all they are shown; the exit status is 2."""

    only_here = False  # True where the other processes know that this one has something to say


@contextmanager
def blame(what, advice=""):
    """Turn the failure of a library's call into an InputError: what was asked, why not, a cure.

    An InputError passes as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        fault = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"{what}: {type(error).__name__}: {fault}. {advice}") from None


@contextmanager
def explain_out_of_memory(max_seq_length):
    """Turn running out of a GPU's memory into an InputError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(f"the GPU ran out of memory at --max_seq_length {max_seq_length}. The "
                         "same result in less: in training, divide --per_device_train_batch_size "
                         "by a number that divides it, and multiply --gradient_accumulation_steps "
                         "by the same, or give --gradient_checkpointing; in evaluation, give a "
                         "smaller --per_device_eval_batch_size.") from None


def run_main(main):
    """Call main; a user's mistake, or a full disk, ends it with one message and status 2.

    Of several processes that find the same mistake the first speaks, and the launcher ends the
    others meanwhile.
    """
    sys.stdout.reconfigure(errors="replace")  # what a terminal of another encoding cannot show
    status, waits = 2, int(os.environ.get("RANK", 0)) > 0
    try:
        return main()
    except InputError as error:
        message = f"error: {error}"
        waits = waits and not error.only_here
    except KeyboardInterrupt:
        status, message = 130, "stopped by Ctrl-C; what was saved stays as it is"
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        message = f"error: {error.filename or 'a file'} cannot be written: {error.strerror}"
        waits = False
    if waits:
        time.sleep(10)
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        os._exit(status)  # to take down what the others wait for can abort, and lose the status
    sys.exit(status)


# ==== utils/arguments.py, whole (to change it, change it there; `make fix` copies it) ====
# Flags that all scripts have, and what argparse does not do by itself.

HINTS = {  # for flags that users of other scripts type by habit
    "--fp16": "give --mixed_precision fp16",
    "--bf16": "give --mixed_precision bf16",
    "--block_size": "give --max_seq_length",
    "--whole_word_mask": "run_mlm.py and run_pretraining.py take --masking whole_word",
    "--pad_to_max_length": "leave it out: each batch is padded to its own longest example",
    "--evaluation_strategy": "give --eval_strategy",
    "--group_by_length": "leave it out: the order of examples is a function of --seed",
    "--warmup_ratio": "give --warmup_steps, below 1 a share of all updates",
    "--cache_dir": "set the environment variable HF_HOME to that folder",
    "--return_entity_level_metrics":
        "leave it out: run_ner.py writes the scores of each type into all_results.json",
    "--task_name": "leave it out: each script has one task",
    "--pair_unit": "run_pretraining.py makes segments, run_nsp.py pairs of sentences alone",
    "--short_seq_prob": "run_pretraining.py makes segments, run_nsp.py pairs of sentences alone",
}


def number(kind, low, high=math.inf, above=False):
    """Make a `type` for argparse: a finite number of a kind (int, float) within bounds.

    From low, or above it, up to high.
    """
    bounds = f"{'more than' if above else 'at least'} {low}"
    if high < math.inf:
        bounds += f" and at most {high}"

    def parse(text):
        value = kind(text)
        if not low <= value <= high or value == math.inf or (above and value == low):
            raise argparse.ArgumentTypeError(f"is {text}; expected {bounds}")
        return value

    parse.__name__ = kind.__name__  # which argparse names where the text is no number at all
    return parse


def encoding(text):
    """Check the name of an encoding, as a `type` for argparse."""
    try:
        bytes(4).decode(text)
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(f"is {text}; expected an encoding that Python knows, such "
                                         "as utf-8, cp1252 or utf-16-le") from None
    return text


COUNT, AMOUNT, ABOVE_0 = number(int, 1), number(float, 0), number(float, 0, above=True)


class ArgumentParser(argparse.ArgumentParser):
    """Raises InputError where argparse would print its usage, once for each process."""

    def error(self, message):
        message = message.removeprefix("argument ").replace(": is ", " is ")  # as number says it
        raise InputError(f"{message}; see --help")


def add_flags(group, *flags):
    """Add flags to a group of a parser, each a tuple of name, type, default and help.

    The type bool makes a switch (--flag, --flag true, --flag false), a list of words a choice, and
    [str] takes several words. Where no default stands, a switch is off, and anything else is None.
    """
    for name, kind, *default, words in flags:
        how = {"type": kind}
        if kind is bool:
            how = {"type": string_to_bool, "nargs": "?", "const": True, "metavar": "BOOL"}
            default = default or [False]
        elif kind == [str]:
            how = {"nargs": "+"}
        elif isinstance(kind, list):
            how = {"choices": kind}
        if default:
            how["default"] = default[0]
            words += " (default: %(default)s)"
        group.add_argument(f"--{name}", help=words, **how)


def add_model_and_data_flags(parser, default_dataset, rows, examples):
    """Add the flags of model and data to a parser: the group of the data, for a script's own.

    Args:
        default_dataset: name of the data set that a bare call takes.
        rows: what is drawn for evaluation, in words: "rows".
        examples: what a batch is made of: "blocks".
    """
    parser.add_argument("--config", metavar="RUN.yaml",
                        help="YAML file of flags; flags typed beside it win")
    group = parser.add_argument_group("model")
    group.add_argument("--model", "--model_name_or_path", default="bert-base-uncased",
                       help="Hub name or folder (default: %(default)s)")
    add_flags(
        group,
        ("tokenizer_name", str, "Hub name or folder of the tokenizer (default: the model's)"),
        ("model_revision", str, "main", "branch, tag or commit on the Hub"),
        ("from_scratch", bool, "the model's config alone, with random weights"),
        ("config_overrides", str,
         "config settings to change, as hidden_dropout_prob=0,…; for pretrained models too"),
        ("trust_remote_code", bool, "run code that comes with the model"),
    )
    group = parser.add_argument_group("data")
    add_flags(
        group,
        ("dataset_name", str,
         f"Hub name or folder (default: {default_dataset} where no file is given)"),
        ("dataset_config_name", str, "configuration of that data set"),
        ("train_file", [str], "files or globs to train on"),
        ("validation_file", [str], "files or globs to evaluate on"),
        ("test_file", [str],
         "files or globs for the predict_ scores and predictions at the end"),
        ("file_encoding", encoding, "utf-8",
         "encoding of the files, but for those with a byte order mark"),
        ("validation_split_percentage", number(float, 0, 99), 10,
         f"percent of the training {rows} to evaluate on where there are no validation data, the "
         "same for every seed; 0 is none"),
        ("max_train_samples", COUNT,
         f"train on a random sample of so many {examples} (default: all)"),
        ("max_eval_samples", COUNT, "the same for evaluation (default: all)"),
        ("max_predict_samples", COUNT, "the same for test data (default: all)"),
        ("preprocessing_num_workers", COUNT, "processes that tokenize (default: 1)"),
        ("overwrite_cache", bool, "prepare the data anew even where the cache holds them"),
    )
    return group


def read_config(path):
    """Turn a YAML file of flags into a list of command-line arguments.

    Args:
        path: a flag a line: `learning_rate: 5e-5`, `train_file: [a.txt, b.txt]`,
            `line_by_line: true`.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    with blame(f"--config {path}: cannot be read", "Expected one `flag: value` a line."):
        # Every value is the text that stands there: `no` is a strategy here, not False, and 5e-5 is
        # a number.
        settings = yaml.load(Path(path).read_bytes(), yaml.BaseLoader) or {}
    if not isinstance(settings, dict) or "config" in settings:
        raise InputError(f"--config {path}: expected one `flag: value` a line, and none for config; "
                         f"found {str(settings)[:40]!r}")
    words = []
    for flag, value in settings.items():
        if isinstance(value, dict):
            value = ",".join(f"{name}={part}" for name, part in value.items())
        if isinstance(value, list):
            if not {*map(type, value)} <= {str}:
                raise InputError(f"--config {path}: {flag!r} holds more than a list of values; put "
                                 "each one in quotes")
            words += [f"--{flag}", *value]
        elif value not in ("", "null", "~"):
            words.append(f"--{flag}={value}")
    return words


def parse_with_config(parser, argv=None):
    """Parse a command line, and before it the YAML file of --config: a Namespace.

    Args:
        argv: list of arguments; None takes those of the process.

    Raises:
        InputError: an unknown flag, a value that does not fit, or a fault in the file.
    """
    typed = sys.argv[1:] if argv is None else argv
    path = parser.parse_known_args(typed)[0].config
    words = read_config(path) if path else []  # in front, so that what is typed wins
    args, unknown = parser.parse_known_args(words + typed)
    if unknown:
        flag = unknown[0].partition("=")[0]
        hint = "see --help"
        for near in difflib.get_close_matches(flag, parser._option_string_actions, n=1):
            hint = f"did you mean {near}?"
        place = f", nor a key of {path}" if path else ""
        raise InputError(f"{flag} is not a flag of this script{place}: {HINTS.get(flag, hint)}")
    return args


def choose_tasks(args, parser, default_dataset, files, needs_data):
    """Fill in what is left to the data: the default data set, and what to do.

    Args:
        files: whether files to train or to evaluate on are given.
        needs_data: whether the run can do nothing without any.
    """
    if files and args.dataset_name:
        parser.error("--dataset_name and files were given; expected one of the two")
    if needs_data and not files:
        args.dataset_name = args.dataset_name or default_dataset
    trainable = bool(args.train_file or args.dataset_name)
    if not (args.do_train or args.do_eval or args.do_predict):
        args.do_train, args.do_predict = trainable, bool(args.test_file)
        args.do_eval = trainable or bool(args.validation_file)
    if args.do_train and not trainable:
        parser.error("--do_train has nothing to train on: give --train_file or --dataset_name")


def check_output_flags(args, parser):
    """Find settings of the output that cannot work, and fill in those that depend on others."""
    if args.resume_from_checkpoint and args.overwrite_output_dir:
        parser.error("--overwrite_output_dir would remove what --resume_from_checkpoint goes on "
                     "with; give one of them")
    args.run_name = args.run_name or args.output_dir
    args.report_to = sorted({*args.report_to} - {"none"})
    for package in args.report_to:
        if package not in ("wandb", "trackio", "tensorboard"):
            parser.error(f"--report_to {package}: expected none, wandb, trackio or tensorboard")
        if not importlib.util.find_spec(package):  # nothing would be logged, and nothing said
            parser.error(f"--report_to {package}: the package is not installed; "
                         f"pip install {package}")


# ==== utils/loop_arguments.py, whole (to change it, change it there; `make fix` copies it) ====
# Flags of training and output that the loops have in common.

def add_loop_flags(parser, task, examples):
    """Add the flags of training and output to a parser.

    Args:
        task: last part of the default --output_dir.
        examples: what a batch is made of, in words: "blocks".
    """
    add_flags(
        parser.add_argument_group("training"),
        ("do_train", bool,
         "train, and evaluate where there are data for it; without any --do_ flag, all that the "
         "data allow"),
        ("do_eval", bool, "evaluate"),
        ("do_predict", bool, "score, or judge, the test data"),
        ("prepare_only", bool, "prepare and cache the data, without a model, and end"),
        ("per_device_train_batch_size", COUNT, 16, f"{examples} per process and pass"),
        ("per_device_eval_batch_size", COUNT, 16, "the same in evaluation"),
        ("gradient_accumulation_steps", COUNT, 1, "passes per update"),
        ("learning_rate", AMOUNT, 5e-5, "peak, for AdamW"),
        ("weight_decay", AMOUNT, 0.0, "never on biases and LayerNorm"),
        ("max_grad_norm", AMOUNT, 1.0, "to clip at; 0 does not clip"),
        ("num_train_epochs", ABOVE_0, 3.0, "passes over the data"),
        ("max_steps", int, -1, "updates, instead of epochs where above 0"),
        ("lr_scheduler_type", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
                               "constant_with_warmup", "inverse_sqrt"],
         "linear", "course of the learning rate"),
        ("warmup_steps", AMOUNT, 0, "updates, or below 1 a share of all"),
        ("mixed_precision", ["auto", "no", "bf16", "fp16"], "auto",
         "auto: as the launcher says, else bf16 where the hardware computes it natively; "
         "no: float32"),
        ("gradient_checkpointing", bool, "less memory, more time"),
        ("dataloader_num_workers", number(int, 0), 0, "data workers per process"),
        ("cpu_threads", COUNT,
         "torch threads per process (default: physical cores / processes)"),
        ("seed", number(int, 0, 2**32 - 1), 42, "of weights, order, pairs, masks and dropout"),
    )
    add_flags(
        parser.add_argument_group("output"),
        ("output_dir", str, f"outputs/{task}", "folder for all that a run leaves behind"),
        ("overwrite_output_dir", bool,
         "train although a model or checkpoints lie there, and replace them"),
        ("eval_strategy", ["no", "steps", "epoch"], "epoch", "when to evaluate"),
        ("eval_steps", ABOVE_0,
         "updates, or below 1 a share of all (default: as --logging_steps)"),
        ("save_strategy", ["no", "steps", "epoch"], "epoch", "when to save"),
        ("save_steps", ABOVE_0, 500, "updates, or below 1 a share of all"),
        ("logging_steps", ABOVE_0, 10, "updates between two lines of the log, or below 1 a share"),
        ("save_total_limit", COUNT, 2, "checkpoints that are kept"),
        ("load_best_model_at_end", bool, "keep the model with the lowest eval_loss"),
        ("report_to", [str], ["none"], "trackers: none, wandb, trackio, tensorboard"),
        ("run_name", str, "name in the trackers (default: --output_dir)"),
        ("push_to_hub", bool, "upload the model to the Hub at the end"),
        ("hub_model_id", str,
         "repository to push to (default: the last part of --output_dir)"),
    )
    parser.add_argument("--resume_from_checkpoint", nargs="?", const="latest",
                        metavar="latest|PATH",
                        help="go on from a checkpoint; latest: the newest whole one in "
                        "--output_dir")


def check_loop_flags(args, parser):
    """Find settings that do not fit each other, and fill in --eval_steps."""
    check_output_flags(args, parser)
    if args.push_to_hub and (args.do_eval or args.do_predict) and not args.do_train:
        parser.error("--push_to_hub uploads what a training leaves; for a model that lies in a "
                     "folder: hf upload NAME/MODEL FOLDER")
    args.eval_steps = args.eval_steps or args.logging_steps
    fits = args.eval_strategy == args.save_strategy != "no"
    if args.save_strategy == "steps":
        fits = fits and round(args.save_steps / args.eval_steps, 6) % 1 == 0
    if args.load_best_model_at_end and not fits:
        parser.error("--load_best_model_at_end needs scores of every model that is saved: give "
                     "--save_strategy and --eval_strategy the same value, and --save_steps a "
                     "multiple of --eval_steps")


# ==== utils/writing.py, whole (to change it, change it there; `make fix` copies it) ====
# Files that no reader, and no kill, ever meets half of.

@contextmanager
def written_aside(path):
    """Give a path to write to, which is moved to `path` at the end, if all went well.

    What was written is removed where it fails.
    """
    aside = Path(f"{path}.{os.urandom(4).hex()}.tmp")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path, value):
    """Write a value as JSON."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=4) + "\n")  # ASCII alone


# ==== utils/reading.py, whole (to change it, change it there; `make fix` copies it) ====
# Files of the user, and their lines and objects, each with its place.

# What files begin with, as regular expressions. First those that are packed, and what unpacks them.
PACKED = {
    rb"\x1f\x8b\x08": gzip.open,
    rb"BZh[1-9](1A|1?\Z|\x17r)": bz2.open,
    rb"\xfd7zXZ|\]\0\0": lzma.open,
    rb"\x28\xb5\x2f\xfd|[P-_]\x2aM\x18": partial(pa.CompressedInputStream, compression="zstd"),
    rb"PK[\3\5]": zipfile.ZipFile,
}
MARKS = {  # byte order marks; that of UTF-16 begins one of UTF-32
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
PARQUET = rb"PAR1([\0-\x08\x0e-\x1f]|\Z)"
NO_TEXT = {  # what is no text
    PARQUET: "a Parquet file. Save its table as JSON lines.",
    rb"ARROW1\0|FEA1|\xff{4}": "an Arrow file. Save its table as Parquet or JSON lines, or give the "
                               "folder of the data set with --dataset_name.",
    rb"\x80[\2-\5]|\([dlt]p0\n|ccopy_reg\n": "a pickle, which could run code when it is read. Save "
                                            "what is in it as JSON lines.",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!|\?xml|(html|head|body|mediawiki|doc|tei|text)[\s>]|[\w:-]+ xmlns)":
        "HTML or XML. Take the text out of it; wikiextractor writes text with --json.",
    rb"%PDF-|%!PS|\{\\rtf": "a PDF, PostScript or RTF document. Take the text out of it.",
    rb"\xd0\xcf\x11\xe0": "an Excel workbook, or a document of another old Office program. Save it "
                          "as CSV, or as text.",
    rb"(?s)\x89PNG|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF.{4}WEBP": "an image. Give text.",
    rb"SQLite format 3": "an SQLite database. Save its table as CSV.",
    rb"(?s).{257}ustar": "a tar archive. Unpack it, and give its files.",
    rb"Rar!\x1a|7z\xbc\xaf|\x04\"M\x18": "packed as RAR, 7z or lz4. Unpack it.",
    rb"version https://git-lfs": "a pointer of Git LFS in place of a file. Fetch it: git lfs pull",
}
# What bytes that are not UTF-8 look like in words: Western, Russian, Japanese, Chinese.
WORDS = {
    "utf-16-le": rb"(?:[\n\r -~]\0){4,}",
    "utf-16-be": rb"(?:\0[\n\r -~]){4,}\0?",
    "cp1252": rb"(?<![\x80-\xff])(?:[\x80-\xff]|[\xc0-\xff]{2}(?=[a-z]))(?![\x80-\xff])",
    "cp1251": rb"[\xe0-\xff]{2,}",
    "shift_jis": rb"(?:\x82[\x9f-\xf1]|\x83[\x40-\x96])+",
    "gb18030": rb"(?:[\xb0-\xd7][\xa1-\xfe])+",
}
DAMAGED = "Was it cut off, or is it of another kind?"


def find_files(patterns, flag):
    """Expand paths and globs to a list of files, sorted within a glob.

    InputError where there is none, or a folder.
    """
    files = []
    for pattern in patterns:
        # A file may have that very name, with the signs of a glob in it.
        paths = glob.glob(glob.escape(pattern)) or sorted(glob.glob(pattern, recursive=True))
        paths = [path for path in paths if os.path.isfile(path)]  # pipes can be read but once
        if not paths:
            fault = ("this is a folder, or a pipe, expected a file" if os.path.exists(pattern)
                     else "there is no such file")
            raise InputError(f"{flag} {pattern}: {fault} (looked in {os.getcwd()}). Give a file, "
                             "or a glob like *.txt")
        files += paths
    return files


def look_up(head, table):
    """Find what a table of regular expressions has for the first bytes of a file, or None."""
    return next((table[magic] for magic in table if re.match(magic, head)), None)


def unpack(file, path):
    """Open what a packed file holds, to read its bytes; None where it is not packed.

    Args:
        file: a BufferedReader at its beginning.
        path: of the file, for messages.

    Raises:
        InputError: it is damaged, or a zip archive that has not just one file in it.
    """
    opener = look_up(file.peek(), PACKED)
    packed = opener and opener(file)
    if not isinstance(packed, zipfile.ZipFile):
        return packed
    # Neither folders nor what macOS adds.
    names = [name for name in packed.namelist() if not re.search(r"(^|/)\.[^/]*$|/$", name)]
    if len(names) == 1:
        return packed.open(names[0])
    kind, advice = "a zip archive", "Unpack it, and give its files."
    if {"[Content_Types].xml", "mimetype"} & {*names}:
        kind, advice = "an Office document, or a book", "Save it as text, or a workbook as CSV."
    raise InputError(f"{path}: this is {kind}, with {len(names)} files in it, expected one: "
                     f"{', '.join(names[:5])}. {advice}")


@contextmanager
def open_bytes(path):
    """Open a file to read its bytes, unpacked as often as it is packed, whatever it is called."""
    with ExitStack() as layers:
        with blame(f"{path}: cannot be read", DAMAGED):
            file = layers.enter_context(open(path, "rb"))
            while packed := unpack(file, path):
                file = layers.enter_context(io.BufferedReader(packed))
        yield file


def read_chunks(path, encoding="utf-8", size=1 << 22):
    """Read a file of text in pieces: yields (number of its first line, text).

    A piece is whole lines, without the end of the last one. Numbers count from 1. A byte order mark
    is taken off.

    Args:
        path: of a file, packed or not.
        encoding: what it is read in, unless it begins with a byte order mark.
        size: bytes of a piece, about.

    Raises:
        InputError: names the line and the byte that is of another encoding, or the kind of a file
            that is no text.
    """
    number, rest, is_of_old_mac = 1, "", False
    with open_bytes(path) as file:
        kind = look_up(file.peek(), NO_TEXT)
        if kind:
            raise InputError(f"{path}: this is {kind}")
        encoding = look_up(file.peek(), MARKS) or encoding
        if codecs.lookup(encoding).name in ("utf-16", "utf-32"):
            raise InputError(f"{path}: it has no byte order mark, which {encoding} needs. Give "
                             f"--file_encoding {encoding}-le, or {encoding}-be.")
        decoder = codecs.getincrementaldecoder(encoding)()
        while True:
            with blame(f"{path}: cannot be read", DAMAGED):
                # In UTF-16 a line end may be torn: the decoder keeps what is half a character.
                raw = file.read(size) + file.readline()
            is_last = not raw.endswith(b"\n")
            if number == 1 and not encoding.startswith("utf") and not raw.isascii():
                with suppress(UnicodeDecodeError):
                    if len(re.findall(r"[^\0-\x7f]", raw.decode())) > 2:  # fewer can be by chance
                        raise InputError(f"{path}: this is UTF-8, not {encoding}. Give it without "
                                         "--file_encoding, or convert the files that are not "
                                         "UTF-8.")
            try:
                text = rest + decoder.decode(raw, is_last)
            except UnicodeDecodeError as error:
                raw = error.object
                before = rest + raw[: error.start].decode(encoding)
                raise explain_byte(path, number, before, encoding, raw[error.start :]) from None
            if b"\0" in raw and "\0" in text:  # the first is the faster one
                before, raw = text.partition("\0")[0], raw[raw.index(0) :]
                raise explain_byte(path, number, before, encoding, raw)
            is_of_old_mac |= number == 1 and "\n" not in text
            if is_of_old_mac:  # where no line feed is, carriage returns end the lines
                text = text.replace("\r", "\n")
            end = len(text) if is_last else text.rfind("\n") + 1
            text, rest = text[:end], text[end:]
            if text:
                text = text.removesuffix("\n")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
                number += text.count("\n") + 1
            if not raw:
                return


def explain_byte(path, number, before, encoding, raw):
    """Make the InputError for a byte that is no text, with the encoding that it looks like.

    Args:
        path: of the file.
        number: of the line that the piece begins with.
        before: text of the piece before the byte.
        encoding: that was expected.
        raw: the byte, and those that follow.
    """
    lines = before.split("\n")
    start = lines[-1].encode(encoding)
    read = before.encode(encoding)
    begin = len(read) - len(start) & -2  # even, so that UTF-16 is not torn
    sample = (read + raw)[begin : begin + (1 << 16)]
    fits = [(0, "", "")]
    for name, words in WORDS.items():
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(name)().decode(sample)
            if "\0" not in text:
                fits.append((sum(map(len, re.findall(words, sample))), name, text))
    size, name, text = max(fits)
    if encoding == "utf-8" and len(re.findall(r"[^\0-\x7f]", before)) > 9:  # hardly by chance
        advice = "What stands before it is UTF-8: was the file cut off or damaged there?"
    elif size:
        shown = text.lstrip("\n").partition("\n")[0][max(0, len(start) - 20) :]
        advice = (f"As {name} it would be {shown[:40]!r}: if that is right, give --file_encoding "
                  f"{name}, else the encoding that it has.")
    else:
        advice = "If it is text, name its encoding with --file_encoding."
    return InputError(f"{path}, line {number + len(lines) - 1}: byte {len(start) + 1} of the line "
                      f"(0x{raw[0]:02x}) is not {encoding.upper()} text. {advice}")


def read_lines(path, encoding="utf-8"):
    """Read a file of text in batches of lines: yields (number of the first, from 1, lines)."""
    for number, text in read_chunks(path, encoding):
        yield number, [line.removesuffix("\r") for line in text.split("\n")]


def parse_json(text, path, line=None):
    """Parse JSON: the value, or the InputError for what is none.

    Args:
        text: JSON.
        path: of the file that it is from.
        line: number of that line, where the text is one.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line, column = line or getattr(error, "lineno", 1), getattr(error, "colno", 1)
        return InputError(f"{path}, line {line}, column {column}: not JSON: "
                          f"{getattr(error, 'msg', error)}. Expected one object a line, or one "
                          f"list; found {text[:40]!r}. Was the file cut off?")


def read_json(path, encoding="utf-8"):
    """Read objects out of JSON, whatever its layout: yields (place, object).

    It is a list, an object with a list under `data`, or an object a line. In place of a row that is
    no JSON, or no object, stands the InputError that says so.
    """
    batches = read_lines(path, encoding)
    numbered = ((n, line) for first, batch in batches for n, line in enumerate(batch, first))
    lines = filter(lambda line: line[1].strip(), numbered)
    start = list(itertools.islice(lines, 2))
    rows = ((f"{path}, line {n}", parse_json(line, path, n))
            for n, line in itertools.chain(start, lines))
    if start and not (len(start) > 1 and isinstance(parse_json(start[0][1], path), dict)):
        whole = parse_json("\n".join(text for _, text in read_chunks(path, encoding)), path)
        data = whole.get("data") if isinstance(whole, dict) else whole
        if isinstance(data, list):
            rows = ((f"{path}, entry {n}", row) for n, row in enumerate(data, 1))
        elif not isinstance(whole, InputError):
            rows = [(f"{path}, line {start[0][0]}", whole)]
        elif ("not JSON: Extra data" not in str(whole)
              and not isinstance(parse_json(start[-1][1], path), dict)):
            raise whole  # else it has one object a line
    for place, row in rows:
        if not isinstance(row, dict | InputError):
            shown = json.dumps(row, ensure_ascii=False)[:40]
            row = InputError(f'{place}: expected an object such as {{"text": …}}, found {shown!r}')
        yield place, row


# ==== utils/tables.py, whole (to change it, change it there; `make fix` copies it) ====
# Rows of tables: JSON, CSV and Parquet, each with its place.

# What the ending of a name says; of any other, the file is text.
KINDS = {".jsonl": "JSON", ".ndjson": "JSON", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV",
         ".parquet": "Parquet"}


def ending_of(path):
    """The ending of a file's name that tells its kind, in lower case: .csv of data.CSV.gz."""
    return os.path.splitext(re.sub(r"\.(gz|bz2|xz|zst|zip)$", "", path.lower()))[1]


def find_kind(path, columns, encoding, say):
    """Find what a file is by its content, and then by its name: text, JSON, CSV, TSV or Parquet.

    Args:
        path: of a file, packed or not.
        columns: those that are wanted, by one of which a CSV file is known under any name.
        encoding: of text.
        say: called with a line where the content is not what the name says.
    """
    expected = kind = KINDS.get(ending_of(path), "text")
    with open_bytes(path) as file:
        is_parquet = re.match(PARQUET, file.peek())
    text = "" if is_parquet else first_piece(path, encoding)
    _, header = find_header(text, columns)
    if is_parquet:
        kind = "Parquet"
    elif re.match(r'\[?\s*\{\s*("[^"]{0,200}"\s*:|\})|\[\s*"[^"]{0,200}"\s*[],]', text.lstrip()):
        kind = "JSON"
    elif expected not in ("CSV", "TSV") and len(header) > 1 and not {*columns}.isdisjoint(header):
        kind = "CSV"
    if kind != expected:
        say(f"{path}: read as {kind}, which it holds, whatever its name says")
    return kind


def first_piece(path, encoding):
    """Read the first lines of a file, about 64 KB."""
    return next(read_chunks(path, encoding, 1 << 16), (1, ""))[1]


def find_header(text, columns, separators=",;\t"):
    """Find the header of a table by the columns that are wanted, or else by most columns.

    Args:
        text: first lines of the table; a line such as `sep=;` in front says the separator.
        columns: those that are wanted.
        separators: what may part columns, the likely one first.

    Returns:
        (separator, names of the columns).
    """
    said = re.match(r'\s*"?sep=([^\w"])"?\s*\n', text)
    if said:
        separators, text = said[1], text[said.end() :]
    line = text[: 1 << 16].lstrip("\r\n").partition("\n")[0]
    headers = {separator: next(csv.reader([line], delimiter=separator), [])
               for separator in separators}
    best = max(headers, key=lambda separator: (not {*columns}.isdisjoint(headers[separator]),
                                               len(headers[separator])))
    return best, headers[best]


def measure(rows, width):
    """Measure how a table is read: (rows that span lines, rows that have not so many columns).

    The first is infinite, and the second 0, where quotes are not well-formed.
    """
    spanning = faults = end = 0
    try:
        for row in rows:
            spanning += rows.line_num > end + 1
            faults += len(row) not in (0, width)
            end = rows.line_num
    except csv.Error:
        return math.inf, 0
    return spanning, faults


def read_csv(path, columns, encoding, say):
    """Read .csv or .tsv with a header: yields (place, dict of the row).

    In place of a row that has not the columns of the header stands its InputError.

    Args:
        path: of a file, packed or not.
        columns: those that are wanted.
        encoding: of its text.
        say: called with a line on values that span lines, or quotes that do not count.

    Raises:
        InputError: a quote is never closed, or a wanted column stands there twice.
    """
    csv.field_size_limit(1 << 26)
    separators = "\t,;" if ending_of(path) == ".tsv" else ",;\t"
    separator, header = find_header(first_piece(path, encoding), columns, separators)

    def parse(quoting):
        lines = (f"{line}\n" for _, batch in read_lines(path, encoding) for line in batch)
        return csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)

    quoting, width = csv.QUOTE_MINIMAL, len(header)
    spanning, faults = measure(parse(quoting), width)
    # Of one column, any line is a whole row, which proves nothing.
    may_be_torn = spanning == math.inf or (spanning and width > 1)
    is_quoted = '"' in "".join(next(parse(csv.QUOTE_NONE), []))  # the header itself
    if may_be_torn and not is_quoted and measure(parse(csv.QUOTE_NONE), width) <= (0, faults):
        quoting = csv.QUOTE_NONE
        say(f"{path}: quotes are read as plain characters: without them each line is a row")
    elif 0 < spanning < math.inf:
        say(f"{path}: rows that span lines, by a quoted value: {spanning:,}")
    rows = parse(quoting)
    filled = filter(None, rows)
    try:
        header = next(filled, [])
        if header and header[0].startswith("sep="):
            header = next(filled, [])
        twice = [name for name in columns if header.count(name) > 1]
        if twice:
            raise InputError(f"{path}, line {rows.line_num}: a column stands there twice: "
                             f"{', '.join(header)}")
        for row in filled:
            place = f"{path}, line {rows.line_num}"
            values = dict(zip(header, row, strict=False))
            if len(row) != len(header):
                values = InputError(f"{place}: expected {len(header)} columns "
                                    f"({', '.join(header)}), found {len(row)}. Put a value that "
                                    "holds the separator in double quotes.")
            yield place, values
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: not a well-formed table: {error}. Check "
                         "the quotes, and line ends within values.") from None


def read_parquet(path, columns):
    """Read the wanted columns of a Parquet file: yields (place, dict of the row).

    Where it has none of them, the only row has all names, without values. InputError where the file
    is damaged.
    """
    number = 0
    with (open_bytes(path) as file, blame(f"{path}: cannot be read as Parquet", DAMAGED)):
        # What zstd packed can only be read from its beginning.
        table = pa.parquet.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
        found = {*table.schema_arrow.names}
        # Of a dotted name, no other part is read.
        names = [name for name in columns if {name, name.partition(".")[0]} & found]
        if not names:
            yield f"{path}, row 1", dict.fromkeys(table.schema_arrow.names)
            return
        for batch in table.iter_batches(50, columns=names):  # a row can be a book
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def read_table(path, kind, columns, encoding, say):
    """Read the rows of a table: yields (place, dict of the row, or InputError of a faulty one).

    Args:
        path: of a file, packed or not.
        kind: as of find_kind, but for text.
        columns: those that are wanted; others may be left out.
        encoding: of its text.
        say: called with lines on how it is read.
    """
    if kind == "Parquet":
        return read_parquet(path, columns)
    if kind == "JSON":
        return read_json(path, encoding)
    return read_csv(path, columns, encoding, say)


# ==== utils/splits.py, whole (to change it, change it there; `make fix` copies it) ====
# Data sets of the Hub, and what each split of a run is made of.

def load_splits(dataset_name, dataset_config_name):
    """Load a data set of the Hub, of a folder, or of save_to_disk: dict of split to Dataset.

    InputError where that fails.
    """
    with blame(f"--dataset_name {dataset_name}: cannot be loaded", "Check the name and "
               "--dataset_config_name. Without network, give --train_file with a file of your "
               "own, or a folder that holds the data set, or bring along a cache from where there "
               f"is network: {datasets.config.HF_DATASETS_CACHE}"):
        if Path(dataset_name, "dataset_dict.json").exists():
            return datasets.load_from_disk(dataset_name)
        if Path(dataset_name, "state.json").exists():  # of one split, as save_to_disk writes it
            return {"train": datasets.load_from_disk(dataset_name)}
        return datasets.load_dataset(dataset_name, dataset_config_name)


def choose_parts(sources, args, splits=("train", "validation", "test")):
    """Say what each split of a run is made of: dict of split to (source, part).

    A part is (which, percent). Where there are no validation data, so many percent of the training
    data are "drawn" for it, and training takes the "rest"; else parts are "all".

    Args:
        sources: dict of split to where its data come from.
        args: Namespace of the flags.
        splits: those that the script takes from sources.

    Raises:
        InputError: something that the run is to do has no data.
    """
    parts = {split: (source, ("all", 0)) for split, source in sources.items()}
    percent = args.validation_split_percentage
    if "train" in sources and "validation" not in sources and percent:
        parts["train"] = sources["train"], ("rest", percent)
        parts["validation"] = sources["train"], ("drawn", percent)
    evaluates = args.do_eval and not args.do_train  # a training run can go without
    for flag, split, is_needed in (("do_train", "train", args.do_train),
                                   ("do_eval", "validation", evaluates),
                                   ("do_predict", "test", args.do_predict)):
        if is_needed and split in splits and split not in parts:
            raise InputError(f"--{flag} has no data: give --{split}_file, or a data set with a "
                             f"split named {split}")
    if not args.do_train:
        parts.pop("train", None)
        if not args.do_eval:
            parts.pop("validation", None)
    if not parts:
        raise InputError("there are no data to prepare: give --train_file, --validation_file or "
                         "--dataset_name")
    if args.load_best_model_at_end and "validation" not in parts:
        raise InputError("--load_best_model_at_end has nothing to tell the best by: give "
                         "--validation_file")
    return parts


# ==== utils/texts.py, whole (to change it, change it there; `make fix` copies it) ====
# Text to train on, out of files and data sets.

# Characters of scripts that put no blanks between words: Thai and Lao, Burmese, Khmer, Kana, Han,
# with their punctuation; by rows of 64.
WITHOUT_BLANKS = ("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31c0-\u9fff\uf900-\ufaff"
                  "\uff00-\uffbf\U00020000-\U0003ffff]")
MARKS_BETWEEN = "[“”‘’…—·]"  # beside one of them, they belong to it
NAME_THE_COLUMN = "Name the column that holds the text with --text_column_name."


def add_text_flags(group):
    """Add the flags that say what the text is to a group of a parser."""
    add_flags(
        group,
        ("text_column_name", str, "text", "column of a table that holds the text: its name, or a "
         "path as body.text; a list there is the paragraphs of a document"),
        ("document_separator", ["auto", "blank_line", "line", "row"], "auto", "what ends a "
         "document; auto: in text a blank line, or without any each line; in a table each row"),
    )


class Source(NamedTuple):
    """Where the text of a split comes from: its name, a key of its content, its reader.

    read yields batches of (texts, documents): an Arrow array of large_string without empty ones,
    and the number of the document of each, which only ever rises (int64). To said it adds lines on
    how it reads.
    """

    name: str
    key: str
    read: object
    said: list | tuple = ()


def find_sources(args, splits, say=print):
    """Find the text of each split: dict of split to Source.

    InputError where a file or the data set is not there.

    Args:
        args: Namespace of the flags.
        splits: those that are wanted.
        say: called with lines for the user, on how files are read.
    """
    sources, seen, column, encoding = {}, {}, args.text_column_name, args.file_encoding
    separator = args.document_separator
    how = column, separator, encoding
    loaded = load_splits(args.dataset_name, args.dataset_config_name) if args.dataset_name else {}
    for split in splits:
        patterns = getattr(args, f"{split}_file")
        if patterns:
            paths = find_files(patterns, f"--{split}_file")
            more = f" and {len(paths) - 1} more files" if paths[1:] else ""
            kinds = [find_kind(path, [column], encoding, say) for path in paths]
            if column != "text" and {*kinds} == {"text"}:
                raise InputError(f"--text_column_name {column}: {paths[0]} is read as plain text, "
                                 "which has no columns. Give a table with that column, or leave the "
                                 "flag out.")
            hashes = [*map(hash_file, paths)]
            for path, content in zip(paths, hashes, strict=True):
                given = f"--{split}_file {path}"
                if seen.setdefault(content, given) != given:
                    say(f"  Careful:  {given} has the same content as {seen[content]}")
            key = f"{kinds} {hashes} {how}"
            said = []
            sources[split] = Source(os.path.basename(paths[0]) + more, key,
                                    partial(read_files, paths, kinds, *how, said.append), said)
        elif split in loaded:
            name = f"--dataset_name {args.dataset_name}, split {split}"
            sources[split] = Source(name, f"{loaded[split]._fingerprint} {how}",
                                    partial(read_dataset, loaded[split], column, separator, name))
    return sources


def hash_file(path):
    """What tells a file apart by content, whatever its name and whenever it was written: SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_files(paths, kinds, column, separator="auto", encoding="utf-8", say=print):
    """Read the texts of files as those of a Source.

    Args:
        paths: of the files.
        kinds: of each, as of find_kind.
        column: of tables, that holds the text.
        separator: what ends a document: "auto", in text a blank line, or without any each line, and
            in a table each row; "blank_line", also a row without text; "line" or "row".
        encoding: of the files.
        say: called with lines on how tables are read.
    """
    for number, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        if kind == "text":
            batches = read_trimmed(path, encoding)
        else:
            batches = read_column(read_table(path, kind, [column], encoding, say), column)
        separated = separator == "blank_line" or (separator == "auto" and kind == "text"
                                                  and has_blank_lines(path, encoding))
        for texts, documents in number_documents(batches, separated):
            yield texts, documents + (number << 40)  # those of the next file are others


def rows_at_once(rows):
    """Count the rows of a Dataset that make about 2 MB."""
    return max(1, 2_000_000 * len(rows) // max(1, rows.data.nbytes))


def read_dataset(rows, column, separator, name):
    """Read the texts of a Dataset as those of a Source. InputError where it lacks the column."""
    is_text = rows.info.builder_name == "text"  # a folder of it: a row is a line
    with blame(name, NAME_THE_COLUMN):
        # No other is decoded.
        rows = (rows if column in rows.column_names else rows.flatten()).select_columns(column)
    # Row by row it takes 50 times as long.
    batches = rows.iter(rows_at_once(rows))
    values = itertools.chain.from_iterable(batch[column] for batch in batches)
    places = ((f"{name}, row {n}", {column: value}) for n, value in enumerate(values))
    separated = separator == "blank_line" or (separator == "auto" and is_text)
    yield from number_documents(read_column(places, column), separated)


def number_documents(batches, separated):
    """Number the documents of arrays of texts: yields batches as of a Source.

    Args:
        batches: (texts, ends), an array of large_string and whether each ends its row; bool,
            (texts,).
        separated: an empty text ends a document, not the end of a row.
    """
    number = 0
    for texts, ends in batches:
        filled = pa.compute.binary_length(texts).to_numpy() > 0  # (texts,)
        ends = ~filled if separated else ends
        documents = number + np.cumsum(ends) - ends
        number += ends.sum()
        yield texts.filter(pa.array(filled)), documents[filled]


def read_trimmed(path, encoding="utf-8"):
    """Read the lines of plain text, each a row: yields (texts, ends) as for number_documents.

    The white space around them is taken off.
    """
    # Without a Python object for each line, which would take most of the time.
    for _, text in read_chunks(path, encoding):
        lines = pa.compute.split_pattern(pa.array([text], pa.large_string()), "\n")
        texts = pa.compute.utf8_trim_whitespace(lines.values)  # line ends, too
        yield texts, np.ones(len(texts), dtype=bool)


def has_blank_lines(path, encoding="utf-8"):
    """Whether a blank line stands between two lines of text."""
    seen = b""  # a byte a line, 1 where there is text, from the first line of text on
    for lines, _ in read_trimmed(path, encoding):
        filled = pa.compute.binary_length(lines).to_numpy() > 0
        seen = (seen + filled.tobytes()).lstrip(b"\0")
        if b"\0" in seen.rstrip(b"\0"):
            return True
        seen = seen[:1] + seen[-1:]  # to go on from
    return False


def read_column(rows, column):
    """Read the texts of a table: yields (texts, ends) as for number_documents.

    Args:
        rows: yields (place, dict of the row or the InputError of a faulty one).
        column: which of its values is the text; None is an empty one.
    """
    texts, ends, size = [], [], 0
    for place, row in rows:
        paragraphs = [text_of(part, column, place, NAME_THE_COLUMN)
                      for part in split_row(row, column)]
        texts += paragraphs
        ends += [False] * (len(paragraphs) - 1) + [True]
        size += sum(map(len, paragraphs))
        if size > 1 << 21 or len(ends) == 10_000:  # a row can be a book
            yield pa.array(texts, pa.large_string()), np.array(ends)
            texts, ends, size = [], [], 0
    if ends:
        yield pa.array(texts, pa.large_string()), np.array(ends)


def split_row(row, column):
    """Take a row apart into one for each paragraph, where its column holds a list of them.

    Of a dotted column, as body.text, the value is looked for within other objects.
    """
    if isinstance(row, InputError):
        return [row]
    value = row
    for name in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or name not in value:
            return [row]  # which text_of finds at fault
        value = value[name]
    paragraphs = value or [None] if isinstance(value, list) else [value]
    return [{column: paragraph} for paragraph in paragraphs]


def text_of(row, column, place, advice):
    """Take the text out of a row of a table, without the white space around it; None is empty.

    InputError where the row is at fault, or has something else there.

    Args:
        row: dict, or the InputError of a faulty one.
        column: which of its values is the text.
        place: of the row.
        advice: what to do, where it has none there.
    """
    if isinstance(row, InputError):
        raise row
    text = row.get(column, row)
    if not isinstance(text, str | None):
        raise InputError(f"{place}: expected text in column {column!r}; found {str(text)[:40]!r}; "
                         f"the columns are {', '.join(map(str, row))}. {advice}")
    if re.search("[\0\ud800-\udfff]", text or ""):
        raise InputError(f"{place}: expected text in column {column!r}; found a NUL, or half a "
                         f"character (a lone surrogate, such as a cut-off emoji leaves) in "
                         f"{text[:60]!r}. Take it out.")
    return (text or "").strip()


def draw_rows(total, which, percent, least=1):
    """Say which of so many rows, or documents, a part is made of, by number alone: bool, (total,).

    Args:
        total: how many there are.
        which, percent: as of choose_parts.
        least: that are drawn at least, and left at least, if there are so many.
    """
    share = max(0, min(max(least, round(total * percent / 100)), total - least))
    drawn = np.zeros(total, dtype=bool)
    drawn[np.random.default_rng(0).permutation(total)[:share]] = True
    return {"all": np.ones_like(drawn), "drawn": drawn, "rest": ~drawn}[which]


def put_blanks(texts, documents, last):
    """Put the blank that parted them in front of texts that follow another of their document.

    Nothing is put between two characters of scripts without blanks.

    Args:
        texts: array of large_string.
        documents: their numbers; int64, (texts,).
        last: the text and the number of the document before them.
    """
    before = pa.concat_arrays([pa.array([last[0]], texts.type), texts[:-1]])
    follows = documents == np.concatenate([[last[1]], documents[:-1]])
    blank, nothing = pa.scalar(" ", texts.type), pa.scalar("", texts.type)
    starts = pa.compute.utf8_slice_codeunits(texts, 0, 1)
    pattern = f"{WITHOUT_BLANKS}|{MARKS_BETWEEN}"
    # Of thousands of texts, if none begins without blanks, none ends so: marks need no look.
    if len(texts) > 10_000 and not pa.compute.any(
            pa.compute.match_substring_regex(starts, WITHOUT_BLANKS)).as_py():
        pattern = WITHOUT_BLANKS
    glued = pa.compute.match_substring_regex(starts, pattern).to_numpy(zero_copy_only=False)
    # Only where it matters: the last character of a long text takes long to find.
    edges = [side.filter(pa.array(glued)) for side in (before, starts)]
    edges[0] = pa.compute.utf8_slice_codeunits(edges[0], -1)
    both = pa.compute.binary_join_element_wise(*edges, nothing)
    pattern = f"{WITHOUT_BLANKS}({WITHOUT_BLANKS}|{MARKS_BETWEEN})|{MARKS_BETWEEN}{WITHOUT_BLANKS}"
    found = pa.compute.match_substring_regex(both, pattern)
    glued[glued] = found.to_numpy(zero_copy_only=False)
    blanks = pa.compute.if_else(pa.array(follows & ~glued), blank, nothing)
    return pa.compute.binary_join_element_wise(blanks, texts, nothing)


def write_texts(source, path, joined=False):
    """Write what a Source reads to an Arrow file, in the columns text and document.

    InputError where there is none.

    Args:
        joined: texts of a document are to follow each other, as put_blanks parts them.
    """
    schema = pa.schema({"text": pa.large_string(), "document": pa.int64()})
    last = "", -1
    with written_aside(path) as aside:
        with pa.ipc.new_stream(str(aside), schema) as writer:
            for texts, documents in tqdm(source.read(), desc="Reading", unit=" batches",
                                         disable=None, leave=False):
                if not len(texts):
                    continue
                shown = put_blanks(texts, documents, last) if joined else texts
                writer.write_batch(pa.record_batch([shown, documents], schema))
                last = texts[-1].as_py(), documents[-1]
        if last[1] < 0:
            raise InputError(f"{source.name}: there is no text in it, at most white space. "
                             "Expected text, a paragraph a line, or a table with a column "
                             "of texts.")


# ==== utils/tokenizing.py, whole (to change it, change it there; `make fix` copies it) ====
# Token ids of many texts, as lists over one flat array, kept in the cache by content.

VERSION = 2  # of how text is read and cut: what another one made of it is not taken for the same
IDS = pa.large_list(pa.int32())
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
)


@functools.cache  # its vocabulary can be large
def describe_tokenizer(tokenizer):
    """Put a tokenizer of the library `tokenizers` into JSON: one to which special tokens are text.

    They keep their ids under names that no text has. (To leave them out of `added_tokens` would not
    do: Unigram, for one, has them among its pieces.)
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    model, names = settings["model"], {}
    for added in settings["added_tokens"]:
        if added["special"]:
            names[added["content"]] = added["content"] = f"\ufdd0{added['content']}"
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): n for token, n in model["vocab"].items()}
    else:
        model["vocab"] = [(names.get(token, token), score) for token, score in model["vocab"]]
    # It would take off the blank that parts a text from the one before; else texts have none there.
    normalizer = settings["normalizer"] or {}
    parts = normalizer.get("normalizers", [normalizer])
    if "Strip" in [part.get("type") for part in parts]:
        parts = [part for part in parts if part["type"] != "Strip"]
        settings["normalizer"] = {"type": "Sequence", "normalizers": parts}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    # What it says of lengths is a state of the last call.
    return json.dumps(settings | dict.fromkeys(["post_processor", "truncation", "padding"]))


@functools.cache  # once in each process: fast libraries do not pickle
def load_fast(library, tokenizer):
    """Load the model's own tokenizer into a fast library, as describe_tokenizer has it."""
    kind = importlib.import_module(library).Tokenizer
    load = kind.from_str if library == "tokenizers" else kind.from_json
    return load(describe_tokenizer(tokenizer))


def encode_with_nanotoken(tokenizer, texts):
    rows = load_fast("nanotoken", tokenizer).encode_batch(texts, add_special_tokens=False)
    return pa.LargeListArray.from_arrays(rows.offsets, rows.ids.astype(np.int32))


def encode_with_gigatoken(tokenizer, texts):
    rows = load_fast("gigatoken", tokenizer).encode_batch(texts)
    awkward = importlib.import_module("awkward")  # comes with it
    return awkward.to_arrow(rows, extensionarray=False).cast(IDS)


def encode_with_tokenizers(tokenizer, texts):
    rows = load_fast("tokenizers", tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    return pa.array([row.ids for row in rows], IDS)


def encode_with_transformers(tokenizer, texts):
    how = {"add_special_tokens": False, "verbose": False}
    words = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()
             if not (token.special or number in tokenizer.all_special_ids)}
    # Where special tokens are to be split, words that a user added would be, too.
    longest_first = map(re.escape, sorted(words, key=len, reverse=True))
    pattern = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
    rows = []
    for text in texts:
        if not any(token in text for token in tokenizer.all_special_tokens):
            rows.append(tokenizer(text, **how)["input_ids"])
            continue
        pieces = pattern.split(text)  # every second one is such a word
        ids = tokenizer(pieces, split_special_tokens=True, **how)["input_ids"]
        ids[1::2] = [[words[word]] for word in pieces[1::2]]
        rows.append([*itertools.chain(*ids)])
    return pa.array(rows, IDS)


# Each turns a list of texts into lists of ids. Special tokens in them are text.
ENCODERS = {"nanotoken": encode_with_nanotoken, "gigatoken": encode_with_gigatoken,
            "tokenizers": encode_with_tokenizers, "transformers": encode_with_transformers}


def encode(tokenizer, texts):
    """Encode texts as the model's own tokenizer does, but that special tokens in them are text."""
    own = encode_with_tokenizers if tokenizer.is_fast else encode_with_transformers
    return own(tokenizer, texts)


def choose_encoder(tokenizer, samples, say):
    """Find the fastest library that is installed, and agrees with the model's own tokenizer.

    nanotoken (WordPiece) and gigatoken (BPE) are asked first; `tokenizers` and transformers follow.

    Args:
        tokenizer: the model's own, of transformers.
        samples: texts to hold a library against, besides a fixed set of awkward ones.
        say: called with one line where a fast library is passed over.

    Returns:
        A name in ENCODERS.
    """
    texts = [*AWKWARD, *samples]
    # Where fast libraries stumble: also inside a word.
    for added in tokenizer.added_tokens_decoder.values():
        word = added.content
        texts += [word, f"a{word}b", f"a {word} {word.upper()} b"]
    expected = encode(tokenizer, texts)
    for library, encode_with in ENCODERS.items() if tokenizer.is_fast else ():
        try:
            if encode_with(tokenizer, texts).equals(expected):
                break
            say(f"{library} is not used: its ids differ from those of the model's own tokenizer")
        except ImportError:
            pass  # optional
        except Exception as error:  # whatever a young library stumbles over: the next one is tried
            reason = " ".join(str(error).split())[:100]
            say(f"{library} is not used: {type(error).__name__}: {reason}")
    else:
        library = "transformers"
    return library


def tokenize_batch(table, tokenizer, library, kind):
    """Tokenize `text` of an Arrow table: `ids`, lists over one flat array of this kind of Arrow's."""
    if multiprocess.parent_process():  # in a data worker, which leaves Ctrl-C to the main process
        ignore_interrupts()
    ids = ENCODERS[library](tokenizer, table["text"].to_pylist()).cast(pa.large_list(kind))
    return pa.table({"ids": ids, "document": table["document"]})


def hash_of(*settings):
    """Key in the cache of what is made with these settings."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:32]


def is_overwritten(args):
    """Whether to prepare anew what lies in the cache: on the first process alone."""
    return args.overwrite_cache and int(os.environ.get("RANK", 0)) == 0


def tokenize_source(source, tokenizer, args, say, joined=False, cuts=None):
    """Turn the text of a Source into token ids, or what is cut of them, kept in the cache by content.

    Args:
        source: where the text comes from.
        tokenizer: the model's own.
        args: Namespace of the flags.
        say: called with lines for the user, on what the text is like.
        joined: texts of a document follow each other in an example.
        cuts: dict of a name to a function that takes the ids, as below, and the path of a file, and
            puts into that what it makes of them; the name is another for all else that it makes.
            Only this is kept then.

    Returns:
        dict of "ids" to a Dataset of `ids` (lists of uint16, or int32 where there are more; without
        special tokens) and `document`, a row for each text, or of the names of cuts to what is kept
        for them; in the Arrow format. Fingerprints tell apart other contents and tokenizers.
    """
    if tokenizer.is_fast:
        settings = describe_tokenizer(tokenizer)
    else:
        settings = repr(tokenizer), tokenizer.init_kwargs, tokenizer.get_vocab()
    cuts = cuts or {}
    key = hash_of(source.key, joined, settings, *cuts)
    cache = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    folder = cache / f"text_{VERSION}" / key
    if is_overwritten(args):
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        for left in folder.parent.glob("*.tmp"):  # by a run that was killed
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)
        aside = Path(f"{folder}.{os.urandom(4).hex()}.tmp")
        with blame(f"{aside} cannot be made", "HF_DATASETS_CACHE names a folder for the cache."):
            aside.mkdir(parents=True)
        try:
            tokens = tokenize_into(aside, source, tokenizer, args, say, joined)
            for name, cut in cuts.items():
                cut(tokens, str(aside / f"{name}.arrow"))
            # Nothing is kept but what is read: neither the text nor, where they are cut, the ids.
            for path in (aside / "text.tmp", *(aside.glob("ids*.arrow") if cuts else ())):
                path.unlink()
            with suppress(OSError):  # another run was faster, to the same end
                aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if any(cache.glob("[cet]*-*")):  # cache-, examples-, text- and tokens- were their names
            say("  Careful:  an older version has left copies of text in the cache; to remove them: "
                f"rm {cache}/[cet]*-*")
    kept = {}
    with blame(f"{folder}: cannot be read", "Give --overwrite_cache to make it anew."):
        about = (folder / "about.txt").read_text(encoding="utf-8")
        for name in cuts or ["ids"]:
            files = sorted(map(str, folder.glob(f"{name}*.arrow")))
            kept[name] = datasets.concatenate_datasets([*map(datasets.Dataset.from_file, files)])
            kept[name]._fingerprint = hash_of(source.key, joined, settings, name)
            kept[name].set_format("arrow")
    for line in about.splitlines():
        say(line)
    return kept


def tokenize_into(folder, source, tokenizer, args, say, joined):
    """Put the text of a Source into a folder: as text.tmp, as ids*.arrow, and what is said of it.

    Arguments as of tokenize_source. Returns the ids, as that does.
    """
    path = folder / "text.tmp"
    write_texts(source, path, joined)
    texts = datasets.Dataset.from_file(str(path)).with_format("arrow")
    number = rows_at_once(texts)
    first = texts[:number]["text"].to_pylist()
    # The model's own can be slow, and takes longest for the longest texts.
    samples = [text[: 40_000 // len(first[:100])] for text in first[:100]]
    library = choose_encoder(tokenizer, samples, say)
    how = {"tokenizer": tokenizer, "library": library,
           "kind": pa.uint16() if count_ids(tokenizer) <= 1 << 16 else pa.int32()}
    with InterruptEnds():
        tokens = texts.map(tokenize_batch, batched=True, batch_size=number, remove_columns=["text"],
                           fn_kwargs=how, num_proc=args.preprocessing_num_workers,
                           new_fingerprint="ids", cache_file_name=str(folder / "ids.arrow"),
                           load_from_cache_file=False, desc=f"Tokenizing ({library})")
    ids = tokens[: len(first)]["ids"].combine_chunks().flatten().to_numpy()
    lines = [*source.said]
    describe_texts(first, ids, tokenizer.unk_token_id, lines.append)
    (folder / "about.txt").write_text("\n".join(lines), encoding="utf-8")
    return tokens


def describe_texts(texts, ids, unknown_id, say):
    """Say what the first texts of a split are like, and what looks wrong with them.

    Args:
        texts: list of strings.
        ids: all their token ids, int32 array of shape (tokens,).
        unknown_id: of [UNK], or None.
        say: called with lines for the user.
    """
    repeated = 1 - len({*texts}) / len(texts)
    # Where no blanks part words, each character counts as one.
    words = sum(len(re.sub(WITHOUT_BLANKS, " 中 ", text).split()) for text in texts)
    pieces = len(ids) / max(1, words)
    unknown = np.count_nonzero(ids == unknown_id) / max(1, len(ids))
    say(f"Text        {repeated:.1%} of the first {len(texts):,} lines are repeated; {pieces:.2f} "
        f"tokens a word, {unknown:.2%} unknown")
    if repeated > 0.1:
        say("  Careful:  many lines stand there more than once; some may be trained and evaluated "
            "on alike")
    if unknown > 0.01 or pieces > 2.5:
        say("  Careful:  the tokenizer knows few of these words; another model may fit better")


# ==== utils/models.py, whole (to change it, change it there; `make fix` copies it) ====
# Models and tokenizers: loading them, and what they can take.

ADVICE = ("Expected a name on the Hub, or a folder of config.json, tokenizer.json and "
          "model.safetensors: check the spelling. Without network, load it where there is one (hf "
          "download NAME --local-dir DIR) and give that folder.")

# Models whose positions begin behind the padding id: parts of config.model_type.
KINDS_WITH_OFFSET = ("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke",
                     "mpnet", "roberta", "xmod")


def hub_settings(args):
    """What each from_pretrained is told of the Hub. args: Namespace of the flags."""
    return {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}


def load_config_and_tokenizer(args, max_seq_length):
    """Load what is needed to prepare data: (config, tokenizer).

    Args:
        args: Namespace of the flags.
        max_seq_length: tokens that the model has to take, 0 where it does not matter.

    Raises:
        InputError: they cannot be loaded, or do not fit the task.
    """
    name = args.tokenizer_name or args.model
    flag = f"--{'tokenizer_name' if args.tokenizer_name else 'model'} {name}"
    with blame(f"--model {args.model}: cannot be loaded", ADVICE):
        config = AutoConfig.from_pretrained(args.model, **hub_settings(args))
    if args.config_overrides:
        with blame(f"--config_overrides {args.config_overrides}",
                   "Expected KEY=VALUE,KEY=VALUE with keys of config.json."):
            config.update_from_string(args.config_overrides)
    with blame(f"{flag}: cannot be loaded", ADVICE):
        tokenizer = AutoTokenizer.from_pretrained(name, **hub_settings(args))
    if not {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}:
        # What transformers makes where there is none.
        raise InputError(f"{flag}: there is no tokenizer in it, or one without words. Save the "
                         "tokenizer beside the model, or give --tokenizer_name.")
    ids = [*edge_ids(tokenizer), tokenizer.mask_token_id, tokenizer.pad_token_id]
    if None in ids:
        kind = ("[CLS]", "[SEP]", "mask", "padding")[ids.index(None)]
        raise InputError(f"{flag}: its tokenizer has no {kind} token. Take a model that was made "
                         "for masked language modelling, such as bert-base-uncased.")
    # What a tokenizer.json says of lengths is for other uses, and would change with each use.
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    begins = positions_begin(config)
    # XLM's kind computes with the id; MPNet knows no other padding id than its own.
    known = begins - 1 if begins else getattr(config, "pad_index", tokenizer.pad_token_id)
    is_fixed = not args.from_scratch or config.model_type == "mpnet"
    if is_fixed and tokenizer.pad_token_id != known:
        raise InputError(f"{flag}: its padding token has the id {tokenizer.pad_token_id}; that of "
                         f"--model {args.model} is {known}, by which it knows padding and "
                         "positions: they would be wrong. Take the tokenizer that the model was "
                         "made with, or give its padding token that id.")
    longest = longest_input(config, tokenizer)
    if max_seq_length > longest:
        raise InputError(f"--max_seq_length is {max_seq_length}; {args.model} takes at most "
                         f"{longest}. Give that or less.")
    return config, tokenizer


def load_model(kind, name, config, tokenizer, head, *, from_scratch=False, **settings):
    """Load a model in float32: (model, note), which says what of it starts at random.

    Its config agrees with the tokenizer, in special tokens and in size.

    Args:
        kind: class to load it with, such as AutoModelForMaskedLM.
        name: Hub name or folder.
        config: its config or None.
        tokenizer: that it is used with.
        head: words for the head, as "masked-language-modelling head".
        from_scratch: random weights, and as many as the tokenizer asks for; else embeddings that
            are too small for it grow.
        settings: as of hub_settings, and what else from_pretrained takes.
    """
    if from_scratch:
        note = "; ".join(["all of it starts at random", *fit_config(config, tokenizer)])
    with blame(f"--model {name}: cannot be loaded", ADVICE):
        if from_scratch:
            model = kind.from_config(config, dtype=torch.float32,
                                     trust_remote_code=settings["trust_remote_code"])
        else:
            model, info = kind.from_pretrained(name, config=config, dtype=torch.float32,
                                               output_loading_info=True, **settings)
            keys = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
            missing = {key.rpartition(".")[0] for key in keys}
            note = f"its {head} comes trained"
            if missing:
                note = ("these parts start at random, as it has no weights for them: "
                        + ", ".join(sorted(missing)))
    return model, note + fit_embeddings(model, tokenizer)


def fit_embeddings(model, tokenizer):
    """Grow embeddings to the ids of a tokenizer, and name its special tokens: what changed, or ""."""
    rows, note = count_ids(tokenizer), ""
    try:
        embeddings = model.get_input_embeddings()
        size = len(embeddings.weight)
    except NotImplementedError:  # CANINE has none: it hashes characters
        embeddings, size = None, rows
    if rows > size:
        note = (f"; its vocabulary grows from {size} to {rows} rows, one for each id of the "
                "tokenizer, the new ones at random")
        embeddings = model.resize_token_embeddings(rows)
    # Only now: the padding token may be one of the new ones.
    for config in filter(None, (model.config, getattr(model, "generation_config", None))):
        take_special_ids(config, tokenizer)
    if getattr(embeddings, "padding_idx", None) is not None:
        embeddings.padding_idx = tokenizer.pad_token_id
    return note


def count_ids(tokenizer):
    """Count the rows that embeddings need: one for each id up to the highest, gaps included."""
    return max(tokenizer.get_vocab().values()) + 1


def take_special_ids(config, tokenizer):
    """Have a config name the special tokens of its tokenizer, and none that it lacks."""
    for token in ("pad", "bos", "eos", "cls", "sep", "mask"):
        number = getattr(tokenizer, f"{token}_token_id")
        for field in f"{token}_token_id", f"{token}_index":  # XLM's kind has both
            if hasattr(config, field):
                setattr(config, field, number)


def fit_config(config, tokenizer):
    """Fit the config of a model that starts at random to its tokenizer: what changes, in words.

    Its vocabulary has a row for each id, or up to the next multiple of 64 where that of the config
    is one, too.
    """
    notes, rows, size = [], count_ids(tokenizer), getattr(config, "vocab_size", None)
    if size and size % 64 == 0:
        rows = math.ceil(rows / 64) * 64
    if size and size != rows:
        config.vocab_size = rows
        notes.append(f"its vocabulary has {rows} rows instead of {size}, as the tokenizer's")
    begins = positions_begin(config)
    take_special_ids(config, tokenizer)
    if begins and begins != positions_begin(config):
        config.max_position_embeddings += positions_begin(config) - begins
        notes.append(f"its table of positions has {config.max_position_embeddings} rows, as they "
                     f"begin behind the padding id {config.pad_token_id}")
    return notes


def checkpoint_gradients(model):
    """Let a model forget most of what backward needs, and compute it again.

    Raises:
        InputError: a model of its kind cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise InputError(f"--gradient_checkpointing: a model of the kind {model.config.model_type} "
                         "has none")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def edge_ids(tokenizer):
    """Ids that begin and end an example: [CLS] and [SEP], or what stands for them."""
    return [tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id,
            tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id]


def positions_begin(config):
    """The row in a model's table of positions for the first token: 0, or behind the padding id."""
    if any(kind in config.model_type for kind in KINDS_WITH_OFFSET):
        return (config.pad_token_id or 0) + 1
    return 0


def longest_input(config, tokenizer):
    """Count the tokens, special ones too, that a model takes; infinity for no limit."""
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    return min(positions - positions_begin(config), tokenizer.model_max_length)


# ==== utils/devices.py, whole (to change it, change it there; `make fix` copies it) ====
# Devices, precision, threads, and what the processes of a run tell each other.

def pick_precision(wanted, launcher, device_type):
    """Choose "bf16", "fp16" or "no" (float32).

    "auto" leaves it to the launcher, and where that says "no", as it does when told nothing, to the
    hardware: bfloat16 where the device (its type: "cpu", "cuda" …) computes it natively. Emulated,
    it is slower than float32.
    """
    if wanted != "auto":
        return wanted
    if launcher in ("bf16", "fp16"):
        return launcher
    native = device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        native = any(map(torch.cpu.get_capabilities().get, ("amx_bf16", "avx512_bf16", "bf16")))
    return "bf16" if native else "no"


def set_cpu_threads(wanted, local_processes):
    """Set torch's threads, and return their number: `wanted`, or physical cores / local processes.

    `accelerate launch` leaves one thread on a CPU, which halves the speed of two cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(torch.cpu.get_capabilities().get("num_physical_cores", allowed), allowed)
    torch.set_num_threads(wanted or max(1, cores // local_processes))
    return torch.get_num_threads()


def keep_freed_memory():
    """Have the C library keep what is freed for the next update.

    To give it back and fetch it anew costs a tenth of an update. For training on a CPU with glibc;
    elsewhere there is no such setting, and nothing is done.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX: no memory map of its own for a large tensor
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes


def choose_device(mixed_precision, cpu_threads):
    """Choose what to run on, and set torch's threads: (whether on the CPU, precision, threads).

    Raises:
        InputError: the launcher asks for what these scripts do not support, or for fp16 on a CPU.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise InputError(f"accelerate is set to {name}, which this script does not support: "
                             "encoders of this size train fastest with plain data parallelism, "
                             "accelerate launch --multi_gpu")
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device_type = "cpu" if on_cpu else torch.accelerator.current_accelerator().type
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")
    precision = pick_precision(mixed_precision, launcher, device_type)
    if on_cpu:
        keep_freed_memory()
        if precision == "fp16":
            raise InputError("--mixed_precision fp16 needs a GPU; give bf16, no or auto")
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return on_cpu, precision, set_cpu_threads(cpu_threads, local_processes)


class Processes:
    """What the processes of a run tell each other on the CPU: sums of counts, and whose turn it is.

    They do so over gloo: with NCCL the CPU would wait for the GPU, and whoever waits for more than
    ten minutes is given up.

    Raises:
        InputError: the launcher started more processes than train together.
    """

    def __init__(self, num_processes, rank, local_rank):
        self.num_processes, self.rank = num_processes, rank
        self.turn = (rank > 0) + (local_rank > 0)  # 1 for the first of another machine
        started = int(os.environ.get("WORLD_SIZE", num_processes))
        if started != num_processes:
            raise InputError(f"{started} processes were started, but each would train alone. On a "
                             "CPU: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
                             "--num_processes N run_….py …")
        self.group = None
        if started > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))

    def sum(self, *values):
        """Add up numbers over all processes, in float64: a list of as many floats."""
        totals = torch.tensor(values, dtype=torch.float64)
        if self.num_processes > 1:
            torch.distributed.all_reduce(totals, group=self.group)
        return totals.tolist()

    @contextmanager
    def main_first(self):
        """Let the first process go first, then the first of each machine, then the others.

        What one caches, the next find. Where one raises InputError inside, it says why, and all
        end.
        """
        for turn in range(3):
            if turn == self.turn:
                try:
                    yield
                except InputError as error:
                    error.only_here = True
                    self.sum(True)
                    raise
            if self.sum(False)[0]:
                # The launcher ends all as soon as one is gone: let the other speak first.
                time.sleep(10)
                sys.exit(2)


# ==== utils/checkpoints.py, whole (to change it, change it there; `make fix` copies it) ====
# Checkpoints that count only when they are whole.

def hash_folder(folder):
    """SHA-256 of each file of a checkpoint but manifest.json: dict by name."""
    digests = {}
    for path in sorted(Path(folder).iterdir()):
        if path.name != "manifest.json":
            with open(path, "rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def checkpoint_fault(folder):
    """Say in words why a checkpoint does not agree with its manifest.json; None if it does."""
    try:
        expected = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))
        wrong = expected.items() - hash_folder(folder).items()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"manifest.json, or a file beside it, is missing or damaged ({error})"
    if not expected:
        return "its manifest.json names no file"
    names = ", ".join(sorted(dict(wrong)))
    return f"{names} is missing, or not what was written" if wrong else None


def step_of(folder):
    """Number of updates of a checkpoint, by the name of its folder; None where that is none."""
    name = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(name[1]) if name else None


def list_checkpoints(output_dir):
    """List the folders named checkpoint-N in output_dir, oldest first, whole or not."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if step_of(path) is not None]
    return sorted(folders, key=step_of)


def save_checkpoint(output_dir, step, write, limit, keep=None):
    """Save checkpoint-{step}: aside, with its manifest, then renamed; then old ones go.

    Args:
        output_dir: folder of the run.
        step: number of updates done.
        write: function that writes the checkpoint's files into the empty folder that it is given.
        limit: how many checkpoints stay, at least 1.
        keep: name of one that stays whatever its age, such as the best, and counts; None for none.
    """
    folder = output_dir / f"checkpoint-{step}"
    aside = output_dir / f"tmp-checkpoint-{step}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    manifest = json.dumps(hash_folder(aside), indent=1)
    (aside / "manifest.json").write_text(manifest, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one of this name, which is in the way
    os.replace(aside, folder)
    ours = [path for path in list_checkpoints(output_dir) if (path / "manifest.json").exists()]
    old = [path for path in ours if path.name not in (keep, folder.name)]
    for path in old[: max(0, len(ours) - limit)]:  # the oldest come first
        aside = path.with_name(f"tmp-{path.name}")  # so that a kill leaves no half of it
        os.replace(path, aside)
        shutil.rmtree(aside)


# ==== utils/output.py, whole (to change it, change it there; `make fix` copies it) ====
# The folder of a run: what may lie there, and what a run goes on from.

def open_output(output_dir, training, resume, overwrite, say):
    """Make the output folder, and find the checkpoint to go on from: (checkpoint, state).

    Args:
        output_dir: folder of the run; None where it leaves nothing behind.
        training: it does not only evaluate.
        resume: "latest", a folder, or None.
        overwrite: replace what lies there.
        say: called with lines for the user.

    Returns:
        state is a dict: `step`, the updates done; `totals`, sums and counts of losses since the
        start, and `logged`, those at the last line of the log; the `initial`, `latest` and `best`
        scores; and what else a resume takes up.

    Raises:
        InputError: the folder is in use or cannot be written, or the checkpoint is not whole.
    """
    state = {"step": 0, "totals": 0, "logged": 0, "initial": {}, "latest": {}, "best": {},
             "fills": {}, "note": "", "made_with": {}, "ended_by_patience": None,
             "run_id": os.urandom(8).hex()}
    if output_dir is None:
        return None, state
    if not output_dir:  # as of a variable of the shell that is not set
        raise InputError("--output_dir is empty; name a folder")
    with blame(f"--output_dir {output_dir}: cannot be written, or is a file", "Name another "
               "folder."):
        os.makedirs(output_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    output_dir, checkpoint = Path(output_dir), None
    folders = list_checkpoints(output_dir)
    candidates = [Path(resume)] if resume else []
    if resume == "latest":
        candidates = reversed(folders)
    for folder in candidates:
        fault = checkpoint_fault(folder)
        if fault is None:
            checkpoint = folder
            break
        if resume != "latest":
            raise InputError(f"--resume_from_checkpoint {resume}: not a whole checkpoint: {fault}. "
                             "Give another, or latest.")
        say(f"Warning     {folder} is passed over: {fault}")
    if resume and not checkpoint:
        say(f"Resume      there is no whole checkpoint in {output_dir}: starting anew")
        folders = []  # those that are damaged may be replaced
    goes_on = overwrite or (checkpoint and checkpoint.resolve().parent == output_dir.resolve())
    for path in [*folders, output_dir / "model.safetensors"]:
        if training and path.exists() and not goes_on:
            go_on = "" if resume else ("To go on with that run, give --resume_from_checkpoint "
                                       "latest. ")
            raise InputError(f"--output_dir {output_dir} is in use: {path} lies there. {go_on}To "
                             "replace it, give --overwrite_output_dir; or name another folder.")
    if checkpoint:
        state |= json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if state["best"] and not (output_dir / f"checkpoint-{state['best']['step']}").exists():
            state["best"] = {}  # it lies in another folder, from which this run goes on
    return checkpoint, state


def clear_output(output_dir, step, overwrite):
    """Remove checkpoints and log lines after this update, and what a kill has left half done."""
    folders = [*output_dir.glob("tmp-checkpoint-*"), output_dir / "tmp-model"]  # a kill leaves halves
    files = [*output_dir.glob("*.????????.tmp")]
    if overwrite or step:
        folders += [path for path in list_checkpoints(output_dir) if step_of(path) > step]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if overwrite:
        names = ["model.safetensors", "all_results.json", "nbest_predictions.json", "null_odds.json"]
        files += [*map(output_dir.joinpath, names), *output_dir.glob("predictions.*")]
    for file in files:
        file.unlink(missing_ok=True)
    cut_log(output_dir / "log.jsonl", step or -1)


def cut_log(path, step):
    """Cut a log.jsonl back to the lines up to an update; a missing file is fine."""
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    kept = []
    for line in lines:  # a kill can leave the last one half written, without its end
        entry = re.fullmatch(r'\{"step": (\d+)(, .*)?\}\n', line)
        if entry and int(entry[1]) <= step:
            kept.append(line)
    with written_aside(path) as aside:
        aside.write_text("".join(kept), encoding="utf-8")


# ==== utils/signals.py, whole (to change it, change it there; `make fix` copies it) ====
# SIGTERM and Ctrl-C: the update is finished and saved, and then the run ends.

class StopSignal:
    """Notes SIGTERM or Ctrl-C in `number`, for the loop to finish its update and save.

    A second Ctrl-C ends at once.
    """

    numbers = signal.SIGTERM, signal.SIGINT

    def __enter__(self):
        self.number = 0
        self.before = {number: signal.signal(number, self.note) for number in self.numbers}
        return self

    def note(self, number, _frame):
        if not self.number:
            self.number, self.since = number, time.monotonic()
        # Launchers pass a Ctrl-C on to processes that had it from the terminal already: that is not
        # a second one.
        elif number == signal.SIGINT and time.monotonic() - self.since > 2:
            raise KeyboardInterrupt

    def __exit__(self, *_):
        for handler in self.before.items():
            signal.signal(*handler)


class InterruptEnds(StopSignal):
    """Lets Ctrl-C end the run at once, and the data workers of a library, which hang or talk."""

    numbers = (signal.SIGINT,)

    def note(self, number, _frame):
        if multiprocess.parent_process() is None:  # a worker, forked, has this handler too
            for worker in multiprocess.active_children():
                worker.kill()
            print("\nStopped by Ctrl-C; what was saved stays as it is", file=sys.stderr, flush=True)
            os._exit(128 + number)


def ignore_interrupts(_worker=None):
    """Leave Ctrl-C to the loop, which still needs the data of its update."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_stopped_run(accelerator, number, step, say):
    """End a run that a signal has stopped, whose checkpoint is saved, and say how to go on.

    Status: 128 + number.

    Args:
        number: of the signal; 0 where another process noted it.
    """
    number = number or signal.SIGTERM
    say(f"Stopped by {signal.Signals(number).name} after update {step}, which is saved. To go on, "
        "give the same command with --resume_from_checkpoint latest")
    accelerator.end_training()
    sys.exit(128 + number)


# ==== utils/runs.py, whole (to change it, change it there; `make fix` copies it) ====
# A run: its processes, its folder, and what it leaves behind.

# Flags of all tasks that a resume may not change.
FIXED = ("seed", "learning_rate", "weight_decay", "max_grad_norm", "lr_scheduler_type",
         "warmup_steps", "config_overrides", "load_best_model_at_end")
OURS = "<!-- Written by the run that trained this model. -->"


class Run(Processes):
    """A run: its processes, its folder, its state, and what it leaves behind.

    Args:
        task: what the script does, in a word: "mlm".
        args: Namespace of the flags.
        writes: whether the run leaves something behind.
        unused_weights: whether the model leaves some of its weights without a gradient.

    Attributes:
        accelerator: of accelerate.
        device: where tensors go.
        settings: dict of the flags that trackers and the model card show.
        is_main: whether this is the first process.
        folder: where the run leaves what it makes.
        checkpoint: folder of the one that it goes on from, or None.
        step, totals, logged, initial, latest, best, fills, note, made_with, ended_by_patience, run_id:
            the state of the run, which goes into a checkpoint's state.json, as of open_output.
        card: what the model card says: `task`, what was done with the model, in words; `tag`, the
            Hub's name of the task, or None; `data`, dict of split to what it is, in words;
            `tables`, Markdown to stand below the scores.
    """

    def __init__(self, task, args, writes=True, unused_weights=False):
        transformers.logging.set_verbosity_error()  # the lines below say it of heads and lengths
        transformers.logging.disable_progress_bar()
        self.on_cpu, precision, self.threads = choose_device(args.mixed_precision, args.cpu_threads)
        find_unused = DistributedDataParallelKwargs(find_unused_parameters=unused_weights)
        self.accelerator = accelerator = Accelerator(
            cpu=self.on_cpu, mixed_precision=precision, log_with=args.report_to or None,
            project_dir=args.output_dir, kwargs_handlers=[find_unused])
        super().__init__(accelerator.num_processes, accelerator.process_index,
                         accelerator.local_process_index)
        self.task, self.args, self.settings, self.writes = task, args, vars(args), writes
        self.device, self.is_main = accelerator.device, self.rank == 0
        self.card = {"tag": None, "data": {}, "tables": ""}
        self.stop_signal, self.repository = StopSignal(), None
        if not self.is_main:
            datasets.disable_progress_bars()
        self.open(args.resume_from_checkpoint, args.overwrite_output_dir)

    def say(self, *lines):
        """Print lines, on the first process alone."""
        if self.is_main:
            print(*lines, sep="\n", flush=True)

    def open(self, resume, overwrite):
        """Open the folder, and take up the state of the checkpoint, where there is one.

        A run that does not train leaves what is there, and gets a folder of its own in it.
        """
        args = self.args
        self.folder = Path(args.output_dir)
        self.checkpoint, state = open_output(args.output_dir if self.writes else None,
                                             args.do_train, resume, overwrite, self.say)
        if self.writes and not args.do_train and (self.folder / "model.safetensors").exists():
            number = 1
            while (self.folder / f"eval-{number}").exists():
                number += 1
            number = self.sum(number * self.is_main)[0]  # the same on all processes
            self.folder /= f"eval-{number:.0f}"
            self.folder.mkdir(exist_ok=True)
        self.state_names = [*state]
        vars(self).update(state)  # self.step, self.note …: each an attribute of its own

    def state(self):
        """What goes into a checkpoint's state.json: a dict, as of open_output."""
        return {name: vars(self)[name] for name in self.state_names}

    def load_model(self, kind, config, tokenizer, head, **settings):
        """Load --model, or the checkpoint that the run goes on from: (model, note).

        Arguments and note as of load_model.
        """
        set_seed(self.args.seed)
        name, scratch = self.args.model, self.args.from_scratch
        if self.checkpoint:
            name, config, scratch = str(self.checkpoint), None, False
        return load_model(kind, name, config, tokenizer, head, from_scratch=scratch, **settings,
                          **hub_settings(self.args))

    def introduce(self, model, note):
        """Say what the run begins with, and what it computes on. note: as of load_model."""
        self.note = self.note or note  # of the model that the run began with
        precision = self.accelerator.mixed_precision.replace("no", "float32")
        several = "es" * (self.num_processes > 1)
        self.say(f"Model       {self.checkpoint or self.args.model}, {model.num_parameters():,} "
                 f"weights; {note}",
                 f"Running on  {self.device.type}, {self.num_processes} process{several}, "
                 f"{self.threads} CPU threads each, {precision}")

    def prepare_for_evaluation(self, model):
        """Make a model ready that is not trained, as it computes in a training."""
        self.start_trackers()
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def in_float32(self, model):
        """Take a model out of its wrappers: what is shown is computed in float32."""
        return self.accelerator.unwrap_model(model, keep_fp32_wrapper=False,
                                             keep_torch_compile=False)

    def check_resume(self, model_type, data, flags):
        """Refuse to go on from a checkpoint of other data or settings; else note what they are.

        Args:
            model_type: kind of the model, as "bert".
            data: dict of split to what tells its data apart.
            flags: those of the task that may not change.
        """
        args = self.args
        passes = args.gradient_accumulation_steps * self.num_processes
        made_with = {"task": self.task, "kind of model": model_type,
                     "precision": self.accelerator.mixed_precision,
                     "global batch": args.per_device_train_batch_size * passes,
                     **{f"--{flag}": getattr(args, flag) for flag in (*FIXED, *flags)}, **data}
        for name in {**self.made_with, **made_with} if self.checkpoint else ():
            before, value = self.made_with.get(name), made_with.get(name)
            if before != value:
                raise InputError(
                    f"{self.checkpoint}: {name} was {before} and is now {value}. A run goes on with "
                    "the text, settings and global batch (processes x --per_device_train_batch_size "
                    f"x --gradient_accumulation_steps, now with {self.num_processes} processes) that "
                    "it began with.")
        self.made_with = made_with
        if self.sum(self.step)[0] != self.step * self.num_processes:
            raise InputError("the processes found different checkpoints. Expected a folder that all "
                             "machines see; put --output_dir on a shared disk.")

    def start_trackers(self):
        """Start what is told of the run: the trackers of --report_to, the repository on the Hub.

        A resumed run goes on with its own.
        """
        args, folder = self.args, str(self.folder)
        shown = {flag: value if isinstance(value, int | float) else f"{value}"
                 for flag, value in self.settings.items()}
        self.accelerator.project_configuration.logging_dir = f"{folder}/runs"
        with blame(f"--report_to {' '.join(args.report_to)}: cannot start", "For wandb, 'wandb "
                   "login' or WANDB_MODE=offline."):
            self.accelerator.init_trackers(os.environ.get("WANDB_PROJECT", self.task), shown, {
                "wandb": {"name": args.run_name, "id": self.run_id, "resume": "allow",
                          "dir": folder},
                "trackio": {"name": args.run_name, "resume": "allow" if self.step else "never"},
                # Hides what stood there from here on.
                "tensorboard": {"purge_step": self.step + (self.step > 0)},
            })
        if args.push_to_hub and self.is_main:  # before the training, in case it fails
            with blame("--push_to_hub: cannot start", "Log in with 'hf auth login', and give "
                       "--hub_model_id NAME/MODEL."):
                name = args.hub_model_id or self.folder.resolve().name
                private = getattr(args, "hub_private_repo", None)  # of the Trainer scripts
                repository = huggingface_hub.create_repo(name, exist_ok=True, private=private)
                self.repository = repository.repo_id

    def save_model_and_results(self, model, tokenizer, results):
        """Save a model that was trained, and the results: before anything else can fail.

        Args:
            model: not wrapped.
            results: dict of the scores.
        """
        if self.args.do_train and self.is_main:
            aside = self.folder / "tmp-model"
            advice = "The last checkpoint is whole." if list_checkpoints(self.folder) else ""
            with blame(f"--output_dir {self.folder}: the model cannot be saved", advice):
                model.save_pretrained(aside)
                tokenizer.save_pretrained(aside)
            for path in aside.iterdir():
                shutil.copymode(aside / "config.json", path)  # safetensors lets the owner alone read
                os.replace(path, self.folder / path.name)
            aside.rmdir()
        self.write_results(results)

    def write_results(self, results):
        """Write all_results.json, and after a training the model card; again with what comes later.

        A run that was resumed adds to the results that it finds, if they are of the same model.
        """
        if not (self.is_main and self.writes and results):
            return
        path, older = self.folder / "all_results.json", {}
        if self.checkpoint and path.exists():
            older = json.loads(path.read_text(encoding="utf-8"))
        if older.get("step") != results.get("step"):
            older = {}  # of an earlier model
        results = older | results
        write_json(path, results)
        cards = [self.folder / name for name in ("README.md", "MODEL_CARD.md")]
        free = [card for card in cards if not card.exists()
                or OURS in card.read_text(encoding="utf-8", errors="replace")]
        if self.args.do_train and free:  # beside one of the user's
            free[0].write_text(self.make_card(results), encoding="utf-8")

    def make_card(self, results):
        """Make the model card: what the model was made of, and its scores."""
        base, card = self.args.model, self.card
        head = huggingface_hub.ModelCardData(library_name="transformers", pipeline_tag=card["tag"],
                                             base_model=None if os.path.exists(base) else base)
        data = "\n".join(f"- {split}: {html.escape(words)}" for split, words in card["data"].items())
        scores = "\n".join(f"| {' | '.join(row)} |" for row in score_rows(results))
        settings = {flag: value for flag, value in self.settings.items()
                    if str(value) not in ("None", "False", "[]")}
        settings = json.loads(json.dumps(settings, default=str))
        return f"""---
{head.to_yaml()}
---

{OURS}

# {self.folder.resolve().name}

{Path(base).name}, {card['task']}.

{data}

| score | before | after |
| --- | ---: | ---: |
{scores}

Losses are in nats, a mean over what is predicted.

{card['tables']}
```yaml
{yaml.safe_dump(settings, allow_unicode=True)}```
"""

    def report_results(self, results):
        """Show the results, and tell trackers and the Hub, which may fail."""
        rows = score_rows(results)
        if rows:
            for name, before, after in [("", "before", "after"), *rows]:
                self.say(f"{name:<36}{before:>16}{after:>16}")
            self.say(f"Before: {self.note}" if self.args.do_train else "",
                     f"Results are in {self.folder / 'all_results.json'}")
        self.accelerator.log({name: results[name] for name, *_ in rows}, step=results.get("step", 0))
        self.accelerator.end_training()
        if self.repository:
            with blame("--push_to_hub", f"The model is safe in {self.folder}; upload it with: hf "
                       f"upload NAME/MODEL {self.folder}"):
                apart = ["checkpoint-*", "eval-*", "tmp-*", "*.tmp", "wandb/*"]
                print("Uploaded to", huggingface_hub.upload_folder(
                    repo_id=self.repository, folder_path=self.folder, ignore_patterns=apart))


def score_rows(results):
    """List (name, before, after) of the scores, as text: of all results but those of the training."""
    rows = []
    for name, value in results.items():
        is_number = isinstance(value, int | float)
        if is_number and not name.startswith(("initial_", "train_", "epoch", "step")):
            values = results.get(f"initial_{name}", "-"), value
            rows.append((name, *(f"{v:,.4f}" if isinstance(v, float) else f"{v}" for v in values)))
    return rows


# ==== utils/loop.py, whole (to change it, change it there; `make fix` copies it) ====
# What stands around the updates of a loop: log, scores and checkpoints.

def build_optimizer(model, learning_rate, weight_decay):
    """Make a fused AdamW that decays matrices alone: not biases, nor the weights of LayerNorm."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def as_predictions(scores):
    """Name the scores of test data: predict_loss for eval_loss."""
    return {f"predict_{name.removeprefix('eval_')}": value for name, value in scores.items()}


class LoopRun(Run):
    """A run of a loop: what is due around its updates.

    Attributes:
        max_steps: updates to make, from `begin` on.
    """

    def begin(self, model, tokenizer, sampler, score, loss_weights):
        """Make ready for the first update, and clear the folder of what the run replaces.

        Args:
            model, tokenizer: as they are loaded.
            sampler: the GlobalBatchSampler of the run.
            score: function that scores a model, a dict of results; None where there are no data.
            loss_weights: dict of the name of each kind of loss to its weight in the sum.

        Returns:
            The model, wrapped for several processes and for its precision.
        """
        args, self.pending = self.args, []  # losses that are still on the device
        self.tokenizer, self.sampler = tokenizer, sampler
        self.score, self.loss_weights = score, loss_weights
        self.max_steps = args.max_steps
        if self.max_steps <= 0:
            self.max_steps = max(1, sampler.updates_until(args.num_train_epochs))
        if args.gradient_checkpointing:
            checkpoint_gradients(model)
        optimizer = build_optimizer(model, args.learning_rate, args.weight_decay)
        self.schedule = get_scheduler(args.lr_scheduler_type, optimizer,
                                      self.updates(args.warmup_steps), self.max_steps)
        model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.model = self.accelerator.unwrap_model(model, keep_torch_compile=True)
        if self.checkpoint:
            path, scaler = self.checkpoint / "optimizer.pt", self.accelerator.scaler
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
            # Rates are a function of the update: of a schedule, nothing else has to be saved.
            self.schedule.last_epoch = self.step
            if scaler and saved["scaler"]:
                scaler.load_state_dict(saved["scaler"])
        self.say(f"Updates     {self.max_steps:,}, {sampler.updates_in(0):,} an epoch, with "
                 f"{sampler.global_batch} examples each (processes {self.num_processes} x batch "
                 f"{sampler.batch_size} x accumulation {sampler.accumulation_steps}); going on "
                 f"from {self.checkpoint or 'the start'}")
        scores = score(self.model) if score and not self.checkpoint else {}
        self.start_trackers()
        if self.is_main:  # only now that nothing is left to go wrong
            clear_output(self.folder, self.step, args.overwrite_output_dir)
        self.bar = tqdm(total=self.max_steps, initial=self.step, desc="Training",
                        disable=not self.is_main or None)
        if scores:
            self.initial = {f"initial_{name}": value for name, value in scores.items()}
            self.log(self.initial)
        self.first_step, self.begun = self.step, time.perf_counter()
        return model

    def updates(self, number):
        """Turn what a flag counts into updates: below 1 it is a share of all of them."""
        return math.ceil(round(number * self.max_steps, 6)) if number < 1 else int(number)

    def is_due(self, strategy, every):
        if strategy == "epoch":
            return self.sampler.place(self.step)[1] == 0 or self.step == self.max_steps
        return strategy == "steps" and self.step % self.updates(every) == 0

    def seed_dropout(self):
        """Make dropout a function of (seed, update, rank): no checkpoint need carry a generator."""
        sequence = np.random.SeedSequence((self.args.seed, self.step, self.rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def after_update(self, losses, counts, norm, stop):
        """Log, score and save what is due after an update.

        Args:
            losses: sums of this process, nats, on the device; (kinds,).
            counts: of what the losses are of, of all processes; a list of as many.
            norm: of the gradient, before it was clipped; a scalar on the device.
            stop: whether any process noted a signal.

        Returns:
            Whether there is another update to make.
        """
        args, self.step = self.args, self.step + 1
        is_last = self.step == self.max_steps
        self.pending.append(losses)
        self.totals = np.add(self.totals, [[0] * len(counts), counts]).tolist()
        self.bar.update()
        if self.is_due("steps", args.logging_steps) or is_last:
            self.collect_losses()
            means = self.means(np.subtract(self.totals, self.logged))
            self.logged = self.totals
            rate = self.schedule.get_last_lr()[0]
            self.log({**means, "learning_rate": rate, "grad_norm": norm.item()})
        since = time.perf_counter()
        save_is_due = self.is_due(args.save_strategy, args.save_steps)
        score_is_due = self.is_due(args.eval_strategy, args.eval_steps) or is_last
        if self.score and (score_is_due or (save_is_due and args.load_best_model_at_end)):
            self.evaluate()
        if save_is_due or (stop and not is_last):
            self.save()
        self.begun += time.perf_counter() - since  # neither is training
        return not (stop or is_last)

    def collect_losses(self):
        """Read the losses that are still on the device, and add them up over all processes."""
        if self.pending:
            losses = torch.stack(self.pending).cpu().double().sum(dim=0)  # (kinds,)
            self.totals[0] = np.add(self.totals[0], self.sum(*losses)).tolist()
            self.pending = []

    def means(self, totals):
        """Turn sums of losses and their counts into means, and `loss`, their weighted sum."""
        means = np.divide(totals[0], np.maximum(totals[1], 1)).tolist()  # (kinds,)
        loss = float(np.dot(means, [*self.loss_weights.values()]))
        return {"loss": loss, **dict(zip(self.loss_weights, means, strict=True))}

    def log(self, values):
        """Add a line to log.jsonl, print it, and tell the trackers."""
        if self.is_main:
            epoch = round(self.sampler.epochs_until(self.step), 4)
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, "epoch": epoch, **values}) + "\n")
            shown = (f"{name} {value:.6g}" for name, value in values.items()
                     if isinstance(value, float))
            tqdm.write(f"Update {self.step:>6}  {'  '.join(shown)}")
        self.accelerator.log(values, step=self.step)

    def evaluate(self):
        scores = self.score(self.model)
        self.latest = {**scores, "step": self.step}
        self.log(scores)

    def save(self):
        """Save a checkpoint; note the best of those that are saved, so that it can be loaded."""
        self.collect_losses()
        args, keep = self.args, None
        if args.load_best_model_at_end and self.latest.get("step") == self.step:
            both = [self.best or self.latest, self.latest]
            self.best = min(both, key=lambda scores: scores["eval_loss"])
        if self.best:
            keep = f"checkpoint-{self.best['step']}"
        if self.is_main:
            save_checkpoint(self.folder, self.step, self.write, args.save_total_limit, keep)
        self.sum(0)  # the others wait: none trains on if this one fails

    def write(self, folder):
        """Write the files of a checkpoint into a folder."""
        scaler = self.accelerator.scaler
        training = {"optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else None}
        state = json.dumps(self.state(), indent=1)
        with blame(f"{folder} cannot be written", "A whole checkpoint, if there was one, is still "
                   "there."):
            self.unwrapped().save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            torch.save(training, folder / "optimizer.pt")
            (folder / "state.json").write_text(state, encoding="utf-8")

    def unwrapped(self):
        """Give the model as it is saved."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def finish_training(self):
        """End the run where a signal has stopped it; else load the best model, if asked for.

        Returns:
            dict of results.
        """
        sampler, seconds = self.sampler, time.perf_counter() - self.begun
        self.bar.close()
        if self.step < self.max_steps:
            end_stopped_run(self.accelerator, self.stop_signal.number, self.step, self.say)
        if self.score and self.latest.get("step") != self.step:  # it was killed before this
            self.evaluate()
        if self.best and self.best["eval_loss"] < self.latest["eval_loss"]:
            name = f"checkpoint-{self.best['step']}"
            self.say(f"Best        the model of {name} is kept")
            model = self.unwrapped()
            best = type(model).from_pretrained(self.folder / name, dtype=torch.float32)
            model.load_state_dict(best.state_dict())
            self.latest = self.best
        results = {"epoch": sampler.epochs_until(self.step), **self.initial}
        results |= {f"train_{name}": value for name, value in self.means(self.totals).items()}
        seen = sampler.examples_until(self.step) - sampler.examples_until(self.first_step)
        if seen:  # otherwise it was a finished run that was resumed, and these are known already
            results |= {"train_runtime": seconds, "train_samples_per_second": seen / seconds}
        return {**results, **self.latest, "step": self.step}


# ==== run_nsp.py ====


if __name__ == "__main__":
    run_main(main)
