# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "transformers>=5.23", "accelerate>=1.15", "datasets>=5.2",
#                 "multiprocess>=0.70.19", "evaluate>=0.4.6", "seqeval>=1.2.2", "numpy>=2.4",
#                 "pyarrow>=26.0", "huggingface-hub>=2.4", "PyYAML>=6.0", "tqdm>=4.67",
#                 "wandb>=0.31"]
# ///
"""Train a model to find names in text (named entity recognition), and report precision, recall and F1.

    accelerate launch run_ner.py --model bert-base-cased --train_file train.conll --validation_file dev.conll
    accelerate launch run_ner.py --model outputs/ner --test_file test.conll
    accelerate launch run_ner.py --model outputs/ner --text "Ada Lovelace was born in London."

Reads tagged sentences: CoNLL (a word a line, its tag last), .jsonl (tokens and ner_tags, or text and character spans),
.csv with the columns Sentence and Tag, each also packed, or a data set of the Hub; tags in IOB1, IOB2 or BIOES. Writes
to --output_dir: the model and tokenizer, all_results.json (eval_f1 and the like by conlleval's rules, eval_strict_f1
by the scheme's), predictions.conll and predictions.jsonl, log.jsonl, checkpoints and a model card.
Every word gets one prediction and counts, however long its sentence is.

Source: Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419/; Devlin et al. 2018, section 5.3,
https://arxiv.org/abs/1810.04805
"""

import argparse
import ast
import bz2
import codecs
import copy
import csv
import ctypes
import dataclasses
import difflib
import errno
import glob
import gzip
import hashlib
import html
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
import unicodedata
import zipfile
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

try:
    import datasets
    import evaluate
    import huggingface_hub
    import multiprocess
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
    from accelerate.utils import parse_flag_from_env, send_to_device, set_seed
    from seqeval.metrics import accuracy_score, classification_report, f1_score
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import IOB1, IOB2, IOBES
    from torch.utils.data import DataLoader, Sampler
    from tqdm import tqdm
    from transformers import (
        AutoConfig,
        AutoModelForTokenClassification,
        AutoTokenizer,
        EarlyStoppingCallback,
        HfArgumentParser,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.hf_argparser import HfArg, string_to_bool
    from transformers.trainer_callback import ExportableState, PrinterCallback, TrainerState
except ImportError as error:
    print(f"run_ner.py: error: {error}. Install what it needs: pip install torch transformers "
          "accelerate datasets multiprocess evaluate seqeval numpy pyarrow huggingface-hub PyYAML "
          "tqdm wandb", file=sys.stderr)
    sys.exit(2)

DEFAULT_DATASET = "lhoestq/conll2003"  # taken where no data are named, so that a bare call runs
# What columns of words, of tags and of spans are called in tables.
COLUMNS = ("tokens", "Sentence", "text", "ner_tags", "tags", "Tag", "entities", "label")


# ---------------------------------------------------------------- arguments


@dataclass
class NerArguments(TrainingArguments):
    _argument_group_name = "training and output: all of transformers.TrainingArguments, and"
    output_dir: str | None = HfArg(default="outputs/ner", help="folder for all that a run leaves "
                                   "behind")
    overwrite_output_dir: bool = HfArg(default=False, help="train although a model or checkpoints "
                                       "lie there, and replace them")
    per_device_train_batch_size: int = HfArg(default=16, help="windows per process and pass")
    per_device_eval_batch_size: int = HfArg(default=16, help="the same in evaluation")
    mixed_precision: str = HfArg(default="auto",
                                 metadata={"choices": ["auto", "no", "bf16", "fp16"]}, help="auto: "
                                 "as the launcher says, else bf16 where the hardware computes it "
                                 "natively; no: float32")
    cpu_threads: int | None = HfArg(default=None, help="torch threads per process (default: "
                                    "physical cores / processes)")
    eval_strategy: str = HfArg(default="epoch", help="when to evaluate: no, steps or epoch")
    save_strategy: str = HfArg(default="epoch", help="when to save: no, steps or epoch")
    save_total_limit: int | None = HfArg(default=2, help="checkpoints that are kept")
    load_best_model_at_end: bool | None = HfArg(default=None,
                                                metadata={"nargs": "?", "const": True}, help="keep "
                                                "the model with the best --metric_for_best_model "
                                                "(default: where it can be told)")
    metric_for_best_model: str | None = HfArg(default="f1", help="what tells the best model")
    early_stopping_patience: int | None = HfArg(default=None, help="stop after so many evaluations "
                                                "without a better model")
    logging_steps: float = HfArg(default=10, help="updates between two lines of the log, or below "
                                 "1 a share of all")
    logging_nan_inf_filter: bool = HfArg(default=False, help="leave losses that are no number out "
                                         "of the log")
    restore_callback_states_from_checkpoint: bool = HfArg(default=True, help="go on counting for "
                                                          "early stopping")
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="look for weights without "
                                                    "a gradient")
    report_to: list[str] | None = HfArg(default_factory=lambda: ["none"], help="trackers: wandb, "
                                        "trackio, tensorboard")
    run_name: str | None = HfArg(default=None, help="name in the trackers (default: --output_dir)")
    resume_from_checkpoint: str | None = HfArg(default=None, metadata={"nargs": "?", "const": "latest"}, help="go on "
                                               "from a checkpoint: latest, the newest whole one in --output_dir, or a "
                                               "folder")


class Parser(HfArgumentParser):
    def error(self, message):  # argparse would print its usage, once for each process
        ArgumentParser.error(self, message)


def parse_args(argv=None):
    """Parse the command line: a Namespace of all flags, checked."""
    parser = Parser(NerArguments, description=__doc__.partition("\n")[0], allow_abbrev=False,
                    formatter_class=HelpFormatter)
    group = add_model_and_data_flags(parser, DEFAULT_DATASET, "sentences", "sentences")
    add_flags(
        group,
        ("max_seq_length", number(int, 3), 128,
         "tokens per window, [CLS] and [SEP] too; a longer sentence is cut into overlapping "
         "windows, of which none of its words is lost"),
    )
    group = parser.add_argument_group("names")
    add_flags(
        group,
        ("text", str, "label this text, at the end; without data, that is all"),
        ("text_column_name", str, "column of the words (default: tokens, Sentence or text)"),
        ("label_column_name", str, "column of the tags (default: ner_tags, tags or Tag)"),
        ("label_list", [str],
         "all tags, in order, as O B-PER I-PER (default: those of the data, or of a model that is "
         "not trained)"),
        ("on_bad_row", ["error", "skip"], "error",
         "a faulty sentence ends the run, or goes to skipped_rows.jsonl"),
        ("stride", number(int, 0),
         "tokens that two windows of a sentence share (default: a quarter of --max_seq_length)"),
        ("label_all_tokens", bool, "train on all tokens of a word, not on its first alone"),
        ("constrained_decoding", bool, True,
         "choose the best sequence of tags that the scheme allows"),
        ("class_weights", str,
         "weights of types in the loss, as PER=2,LOC=1,O=0.5, 1 for those not named; or balanced: "
         "each label as if all were equally frequent"),
        ("freeze_embeddings", bool, "leave the embeddings as they are"),
        ("freeze_layers", number(int, 0), 0,
         "leave so many layers as they are, counted from the embeddings on"),
        ("unlabeled_file", [str],
         "files or globs for pseudo-labelling: a text a line in .txt; any other layout as above, "
         "whose tags are not read"),
        ("pseudo_label_rounds", COUNT, 1, "times to label --unlabeled_file and train anew with it"),
        ("pseudo_label_threshold", number(float, 0, 1), 0.9,
         "keep a sentence if all words have this probability"),
    )
    group.add_argument("--no_constrained_decoding", dest="constrained_decoding",
                       action="store_false", help="choose the best tag of each word")
    settle_flags(parser)
    args = parse_with_config(parser, argv)
    check_args(args, parser)
    return args


def check_args(args, parser):
    """Find settings that cannot work, before anything is loaded.

    Those that depend on others are filled in.
    """
    check_trainer_flags(args, parser)
    most = args.max_seq_length - 3
    args.stride = args.max_seq_length // 4 if args.stride is None else args.stride
    if args.stride > most:
        parser.error(f"--stride is {args.stride}; expected 0 to {most}, less than a window holds")
    if args.text is not None and not args.text.strip():
        parser.error("--text is empty; give a text")
    if re.search("[\ud800-\udfff]", args.text or ""):
        parser.error("--text is not UTF-8; give it in the encoding of the terminal")
    files = args.train_file or args.validation_file or args.test_file
    chosen = args.do_train or args.do_eval or args.do_predict
    choose_tasks(args, parser, DEFAULT_DATASET, files, chosen or args.text is None)
    if args.dataset_name and not chosen:
        args.do_predict = None  # if the data set has a test split
    if args.unlabeled_file and not args.do_train:
        parser.error("--unlabeled_file is for training: give --train_file, too")
    if args.unlabeled_file and args.resume_from_checkpoint not in (None, "latest"):
        parser.error("--resume_from_checkpoint takes latest where there is --unlabeled_file, as "
                     "each round has its own")
    scores = ("f1", "strict_f1", "precision", "recall", "accuracy", "loss")
    if str(args.metric_for_best_model).removeprefix("eval_") not in scores:
        parser.error(f"--metric_for_best_model {args.metric_for_best_model}: expected one of "
                     f"{', '.join(scores)}")


# ---------------------------------------------------------------- reading tagged sentences


def find_words(text):
    """Find the words of a text, by white space and punctuation.

    Each punctuation mark or symbol, such as an emoji, is a word of its own. What modifies a
    character (a combining mark, a variation selector, a skin tone) stays with the one before it,
    and a zero-width joiner joins two.

    Returns:
        A list of (start, end), in characters.
    """
    words = []
    for chunk in re.finditer(r"\S+", text):
        start = None  # where a word began that may go on
        for at in range(*chunk.span()):
            kind = unicodedata.category(text[at])
            joins = kind[0] == "M" or kind == "Cf" or text[at] in "🏻🏼🏽🏾🏿" or text[at - 1] == "\u200d"
            if joins and at > chunk.start():
                words[-1] = (words[-1][0], at + 1)
            elif kind[0] in "PS":
                words.append((at, at + 1))
                start = None
            elif start is None:
                words.append((at, at + 1))
                start = at
            else:
                words[-1] = (start, at + 1)
    return words


def tag_spans(text, words, spans, place):
    """Tag the words of a text that spans lie on, in IOB2.

    Args:
        text: the text.
        words: (start, end) of each word.
        spans: list of (start, end, label), in characters, end not included.
        place: where it stands, for messages.

    Returns:
        (tags, list of those widened to whole words).

    Raises:
        InputError: a span lies outside the text, has no word in it, or overlaps another.
    """
    tags, widened = ["O"] * len(words), []
    for start, end, label in sorted(spans, key=lambda span: span[:2]):
        if not 0 <= start < end <= len(text):
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] lies outside the text "
                             f"of {len(text)} characters, or is empty. Expected 0 <= start < end, "
                             "the end not included.")
        inside = [n for n, (first, last) in enumerate(words) if first < end and last > start]
        if not inside:
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] holds white space "
                             "alone. Take it out.")
        if any(tags[n] != "O" for n in inside):
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] "
                             f"({text[start:end][:40]!r}) overlaps another. A word has one tag: "
                             "take one of the two out.")
        for n in inside:
            tags[n] = f"{'B' if n == inside[0] else 'I'}-{label}"
        found = (words[inside[0]][0], words[inside[-1]][1])
        if found[0] < start or found[1] > end:  # white space around a span does no harm
            widened.append({"place": place, "label": label, "span": [start, end],
                            "text": text[start:end], "widened_to": list(found),
                            "widened_text": text[found[0] : found[1]]})
    return tags, widened


def read_spans(row, place):
    """Read the spans of a row of .jsonl, under `entities` or `label`.

    As [start, end, label], or as an object with start, end and label; doccano and Label Studio
    write start_offset, end_offset and labels. InputError for anything else.

    Returns:
        A list of (start, end, label).
    """
    spans, found = [], row["entities"] if row.get("entities") is not None else row.get("label") or []
    for span in found if isinstance(found, list | tuple) else [found]:
        if isinstance(span, dict):
            labels = span.get("labels")
            span = [span.get("start", span.get("start_offset")),
                    span.get("end", span.get("end_offset")),
                    span.get("label", labels[0] if isinstance(labels, list) and len(labels) == 1
                             else labels or None)]
        if not (isinstance(span, list | tuple) and len(span) == 3
                and all(type(x) is int for x in span[:2]) and isinstance(span[2], str)
                and span[2].strip()):
            found = json.dumps(span, default=str)[:60]
            raise InputError(f"{place}: expected spans as [start, end, label], found {found}")
        spans.append(tuple(span))
    return spans


def read_conll(path, encoding="utf-8"):
    """Read tagged words, one a line: yields (place, dict of tokens, tags and after_docstart).

    The first column is the word, the last its tag, by tabs or blanks; a blank line, or one of white
    space, ends a sentence. `-DOCSTART-` begins a document. A file of one column has no tags: they
    are None. In place of a sentence with a line of one column in a file that has tags, or of
    several in one that has none, stands the InputError that says so.
    """
    columns = fault = None
    tokens, tags, start, docstart = [], [], 1, False
    batches = read_lines(path, encoding)
    lines = ((n, line) for first, batch in batches for n, line in enumerate(batch, first))
    for number, line in itertools.chain(lines, [(None, "")]):
        cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
        is_break = not line.strip() or cells[0] == "-DOCSTART-"
        if is_break and tokens:
            sentence = {"tokens": tokens, "tags": tags if columns > 1 else None,
                        "after_docstart": docstart}
            yield f"{path}, line {start}", fault or sentence
            docstart = docstart and fault is not None
            tokens, tags, fault = [], [], None
        if is_break:
            docstart = docstart or bool(line.strip())
            continue
        columns = columns or len(cells)
        if len(cells) == 1 != columns or columns == 1 != len(cells):
            expected = "1 column, as in the lines before"
            if columns > 1:
                expected = "2 columns or more (word, …, tag)"
            fault = fault or InputError(f"{path}, line {number}: expected {expected}, found "
                                        f"{len(cells)} in {line[:40]!r}. Put one tab between word "
                                        "and tag, and an empty line between sentences.")
        start = start if tokens else number
        tokens.append(cells[0])
        tags.append(cells[-1])


def read_tagged_row(row, place, text_column, label_column, names):
    """Read a sentence out of a row of a table.

    Args:
        row: dict of column to value.
        text_column, label_column: names to use instead of `tokens` and `ner_tags` or `Sentence` and
            `Tag`.
        names: the tags by number, where the row has numbers; or None.

    Returns:
        dict of tokens, tags (None where it has none), and of text, offsets and widened where words
        were found in text.

    Returns:
        Dict of tokens and tags, with text and offsets where it has spans.

    Raises:
        InputError: there is no such column, or tokens and tags do not fit each other.
    """
    for flag, name in (("--text_column_name", text_column), ("--label_column_name", label_column)):
        if name and name not in row:
            raise InputError(f"{place}: {flag} {name}: there is no such column; the columns are "
                             f"{', '.join(row)}")
    text_name = text_column or next((name for name in ("tokens", "Sentence", "text") if name
                                     in row), "tokens")
    if text_name not in row:
        raise InputError(f"{place}: there is no column of words; the columns are "
                         f"{', '.join(map(str, row))}. Expected tokens and ner_tags, or Sentence "
                         "and Tag, or text and entities; or name them with --text_column_name and "
                         "--label_column_name.")
    value = row[text_name]
    label_name = label_column or next((name for name in ("ner_tags", "tags", "Tag") if name in row),
                                      None)
    if isinstance(value,
                  str) and text_name != "Sentence" and (label_name is None or label_name not
                                                        in row):
        words = find_words(value)
        found = {"tokens": [value[start:end] for start, end in words], "tags": None, "text": value,
                 "offsets": words, "widened": []}
        if "entities" in row or "label" in row:
            found["tags"], found["widened"] = tag_spans(value, words, read_spans(row, place), place)
        return found
    tokens = value.split() if isinstance(value, str) else value
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{place}: expected a list of words in column {text_name!r}, found "
                         f"{str(value)[:40]!r}")
    tags = row.get(label_name) if label_name else None
    if isinstance(tags, str):
        try:
            tags = ast.literal_eval(tags)  # a literal: nothing in it can run
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise InputError(f"{place}: expected a list of tags such as ['O', 'B-PER'] in column "
                             f"{label_name!r}, found {row[label_name][:60]!r}") from None
    if tags is not None and not isinstance(tags, list):
        raise InputError(f"{place}: expected a list of tags in column {label_name!r}, found "
                         f"{str(tags)[:40]!r}")
    if tags is not None and len(tags) != len(tokens):
        raise InputError(f"{place}: {len(tokens)} words, but {len(tags)} tags, in "
                         f"{' '.join(tokens)[:60]!r}. Each word needs one tag.")
    if any(type(tag) is int for tag in tags or ()):
        if names is None or not all(type(tag) is int and 0 <= tag < len(names) for tag in tags):
            raise InputError(f"{place}: tags are numbers ({str(tags)[:40]}), without the names for "
                             "them. Name them all in order with --label_list, as in --label_list "
                             "O B-PER I-PER.")
        tags = [names[tag] for tag in tags]
    return {"tokens": tokens, "tags": tags}


def check_tagged(row, place):
    """Raise InputError where a sentence has a tag of no scheme, or half a character in it."""
    bad = next(([tag] for tag in row["tags"] or () if not is_tag(tag)), None)
    if bad:
        raise InputError(f"{place}: {str(bad[0])[:40]!r} is no tag of a scheme that is known "
                         f"(IOB1, IOB2, BIOES), in {' '.join(row['tokens'])[:60]!r}. Expected O, "
                         "or B-, I-, E- or S- and a type, as B-PER; where single words have U- "
                         "and last ones L-, write S- and E-.")
    broken = next((token for token in row["tokens"] if re.search("[\t\n\r]", token)), None)
    if broken is not None:
        raise InputError(f"{place}: a word with a tab or a line break in it, {broken[:40]!r}, "
                         "which a column cannot hold. Split it, or take the white space out.")
    if any(re.search("[\ud800-\udfff]", token) for token in row["tokens"]):
        raise InputError(f"{place}: half a character (a lone surrogate, such as a cut-off emoji "
                         "leaves). Expected Unicode text; take it out of the file.")


def read_tagged(path, text_column, label_column, names, on_fault, encoding="utf-8", say=print):
    """Read sentences, with tags or without: yields dicts of place, tokens, tags and more.

    Tables (JSON, Parquet, .csv, and .tsv with a header of such columns) are read by
    read_tagged_row, any other file by read_conll. A sentence without words is left out.

    Args:
        path: of a file, packed or not.
        text_column, label_column, names: as of read_tagged_row.
        on_fault: called with place and InputError of each row that is at fault.
        encoding: of the file.
        say: called with lines on how it is read.
    """
    kind = find_kind(path, (), encoding, say)
    if kind == "TSV":
        header = next((lines[0].split("\t") for _, lines in read_lines(path, encoding)), [])
        of_words = {text_column, "tokens", "Sentence", "text"} & {*header}
        kind = kind if of_words and not any(map(is_tag, header)) else "text"
    if kind == "text":
        rows = read_conll(path, encoding)
    else:
        columns = [*filter(None, (text_column, label_column)), *COLUMNS]
        rows = read_table(path, kind, columns, encoding, say)
    for place, row in rows:
        try:
            if isinstance(row, InputError):
                raise row
            if kind != "text":
                row = read_tagged_row(row, place, text_column, label_column, names)
            check_tagged(row, place)
        except InputError as fault:
            on_fault(place, fault)
        else:
            if row["tokens"]:
                yield {"place": place, **row}


def is_tag(tag):
    return isinstance(tag, str) and (tag == "O" or re.fullmatch(r"[BIES]-\S[^\t\n\r]*", tag)
                                     is not None)


def find_scheme(sentences):
    """Recognise the scheme of tags: ("IOB1", "IOB2" or "BIOES"; how many tags do not follow it).

    Where no entity ends in E- or is an S-, entities that begin with I- are held against those that
    begin with B-, of entities that do not follow one of their own type, where both schemes write
    B-.

    Args:
        sentences: lists of tags, such as B-PER.
    """
    sentences = list(sentences)
    prefixes = Counter(tag[0] for tags in sentences for tag in tags)
    begun = Counter()
    for tags in sentences:
        for before, tag in zip(["O", *tags], tags, strict=False):
            if tag != "O" and before[1:] != tag[1:]:
                begun[tag[0]] += 1
    bioes = prefixes["E"] + prefixes["S"] > 0
    scheme = "BIOES" if bioes else "IOB1" if begun["I"] > begun["B"] else "IOB2"
    faults = sum(a != b for tags in sentences for a, b
                 in zip(tags, write_tags(tags, scheme), strict=True))
    return scheme, faults


def write_tags(tags, scheme):
    """Write the entities that conlleval reads from tags in a scheme.

    What was at fault no longer is.

    Args:
        tags: list of tags of a sentence, in any scheme.
        scheme: "IOB1", "IOB2" or "BIOES".

    Source: Tjong Kim Sang and Buchholz 2000, https://aclanthology.org/W00-0726/, whose conlleval
    decides where an entity begins and ends; Ratinov and Roth 2009,
    https://aclanthology.org/W09-1119/, for BIOES.
    """
    written, before = ["O"] * len(tags), (None, -2)  # type and end of the entity before
    for kind, first, last in get_entities(list(tags)):
        for n in range(first, last + 1):
            prefix = "B" if n == first else "I"
            if scheme == "BIOES" and n == last:
                prefix = "S" if first == last else "E"
            if scheme == "IOB1" and n == first and before != (kind, first - 1):
                prefix = "I"
            written[n] = f"{prefix}-{kind}"
        before = (kind, last)
    return written


# ---------------------------------------------------------------- data


def find_rows(args, on_fault, say):
    """Find the sentences.

    Returns:
        (dict of split to (list of dicts as read_tagged yields, name), names of a data set's tags).

    Raises:
        InputError: a file, the data set or a column of it is not there, or has no sentence in it.
    """
    found, class_names, columns = {}, None, (args.text_column_name, args.label_column_name)
    loaded = load_splits(args.dataset_name, args.dataset_config_name) if args.dataset_name else {}
    # Where there are no validation data, a part of the training data is what is evaluated on.
    lacks = args.do_eval and not args.validation_file and "validation" not in loaded
    splits = {"train": args.do_train or lacks, "validation": args.do_train or args.do_eval,
              "test": args.do_predict is not False}
    if args.dataset_name:
        for split in (split for split in loaded if splits.get(split)):
            class_names = class_names or names_of_tags(loaded[split].features,
                                                       args.label_column_name)
            tag_names = names_of_tags(loaded[split].features,
                                      args.label_column_name) or args.label_list
            rows, place = [], f"{args.dataset_name}, split {split}, row "
            for n, row in enumerate(loaded[split]):
                try:
                    row = read_tagged_row(row, f"{place}{n}", *columns, tag_names)
                    check_tagged(row, f"{place}{n}")
                except InputError as fault:
                    on_fault(f"{place}{n}", fault)
                else:
                    rows += [{"place": f"{place}{n}", **row}] if row["tokens"] else []
            if not rows:
                raise InputError(f"{args.dataset_name}, split {split}: there is no sentence in it")
            found[split] = rows, args.dataset_name
    splits = {split: getattr(args, f"{split}_file") for split, wanted in splits.items() if wanted}
    for split, patterns in (splits | {"unlabeled": args.unlabeled_file}).items():
        if not patterns:
            continue
        paths = find_files(patterns, f"--{split}_file")
        rows = []
        for path in paths:
            if split == "unlabeled" and ending_of(path) == ".txt":
                batches = read_lines(path, args.file_encoding)
                lines = ((f"{path}, line {n}", line.strip()) for first, batch in batches
                         for n, line in enumerate(batch, first))
                rows += [{"place": place,
                          **read_tagged_row({"text": line}, place, None, None, None)} for place,
                         line in lines if line]
            else:
                rows += read_tagged(path, *columns, args.label_list, on_fault, args.file_encoding, say)
        name = os.path.basename(paths[0]) + (f" and {len(paths) - 1} more files" if paths[1:]
                                             else "")
        if not rows:
            raise InputError(f"{', '.join(paths[:3])}: there is no sentence in it. Expected a word "
                             "a line with its tag, or a table with a row for each sentence.")
        found[split] = rows, name
    return found, class_names


def names_of_tags(features, label_column):
    """Names of a data set's tags where it has numbers for them (ClassLabel), else None."""
    for name in (label_column,) if label_column else ("ner_tags", "tags"):
        names = getattr(getattr(features.get(name), "feature", None), "names", None)
        if names:
            return names
    return None


def prepare_rows(args, folder, say):
    """Read what the run needs.

    Sentences that are at fault end the run, or go to skipped_rows.jsonl (--on_bad_row skip).

    Returns:
        (dict of split to (sentences, name), names of a data set's tags, or None).
    """
    skipped, data = [], {}

    def on_fault(place, fault):
        if args.on_bad_row == "error":
            raise fault
        skipped.append({"place": place, "reason": str(fault)})

    try:
        found, class_names = find_rows(args, on_fault, say)
    except InputError as error:
        left_out = f" Left out as faulty: {len(skipped):,}, the first {skipped[0]['reason']}" if skipped else ""
        raise InputError(f"{error}{left_out}") from None
    unlabeled, name_of_unlabeled = found.pop("unlabeled", ([], ""))
    check_all_tagged(found)
    samples = {"train": args.max_train_samples, "validation": args.max_eval_samples,
               "test": args.max_predict_samples}
    for split, ((rows, name), part) in choose_parts(found, args).items():
        numbers = choose_numbers(len(rows), name, *part)
        if samples[split]:
            rng = np.random.default_rng((args.seed if split == "train" else 0, 1))
            numbers = numbers[rng.permutation(len(numbers))[: samples[split]]]
        data[split] = [rows[n] for n in np.sort(numbers)], name
    if unlabeled:
        data["unlabeled"] = [row | {"tags": None} for row in unlabeled], name_of_unlabeled
    widened = []
    for row in itertools.chain.from_iterable(rows for rows, _ in data.values()):
        widened += row.get("widened", ())
    write_list(folder, "skipped_rows.jsonl", skipped, "faulty sentences are left out", say)
    write_list(folder, "widened_spans.jsonl", widened, "spans cut a word, and are read as "
               "whole words", say)
    return data, class_names


def check_all_tagged(found):
    """Raise InputError where a sentence has no tags, but for test data without any.

    found: dict of split to (sentences, name).
    """
    for split, (rows, _) in found.items():
        if split == "test" and all(row["tags"] is None for row in rows):
            continue
        for row in rows:
            if row["tags"] is None:
                raise InputError(f"{row['place']}: there are no tags, in "
                                 f"{' '.join(row['tokens'])[:60]!r}. Data to train on or to "
                                 "evaluate on need a tag for each word; a --test_file may have "
                                 "none, but then in no sentence.")


def choose_numbers(total, name, which, percent):
    """Choose the sentences of a part: an int array of their numbers.

    Those that are drawn for evaluation are drawn by number alone: every seed has the same.

    Args:
        total: how many there are, of the source of this name.
        which, percent: as of choose_parts.
    """
    if which == "all":
        return np.arange(total)
    drawn = max(1, round(total * percent / 100))
    if drawn >= total > 0:
        raise InputError(f"{name}: it has {total} sentence, too few to set one apart for "
                         "evaluation. Give --validation_file, or --validation_split_percentage 0.")
    order = np.random.default_rng(0).permutation(total)
    return order[:drawn] if which == "drawn" else order[drawn:]


def unify_tags(data, scheme, say):
    """Bring the tags of all splits into one scheme, that of the first split where it is None.

    Where tags break the rules of their own scheme, as an I-PER after an O does in IOB2, their
    entities are read by conlleval's rules, which begins one there; how many is said.

    Returns:
        That scheme.
    """
    for split, (rows, _) in data.items():
        tagged = [row for row in rows if row["tags"] is not None]
        if not tagged:
            continue
        own, faults = find_scheme(row["tags"] for row in tagged)
        scheme = scheme or own
        said = f"{own}" + (f", read as {scheme}" if own != scheme else "")
        if faults:
            first = next(row for row in tagged if write_tags(row["tags"], own) != row["tags"])
            say(f"  Careful:  {faults:,} tags of the {split} data do not follow {own}, such as an "
                "I- that begins an entity; read as conlleval reads them, B-, first in "
                f"{first['place']}")
        for row in tagged:
            row["tags"] = write_tags(row["tags"], scheme)
        say(f"Tags        {split}: {said}")
    return scheme


def choose_labels(data, label_list, model_labels, class_names, trains, say):
    """Choose the labels, a list of tags.

    Those of the data are the names of a data set's tags where it has them, or else all that stand
    in the training and validation data, O first.

    Args:
        data: dict of split to (sentences, name).
        label_list: --label_list or None.
        model_labels: those that the model was trained with, in its order, or None.
        class_names: of a data set, or None.
        trains: it is to be trained.

    Returns:
        --label_list, those of a model that is only used, or those of the data.

    Raises:
        InputError: tags of the data are not among --label_list, or not among those of a model that
        is only used.
    """
    counts = {split: Counter(tag for row in rows for tag in row["tags"] or ()) for split, (rows, _)
              in data.items()}
    kept = [tag for split in ("train", "validation") for tag in counts.get(split, ())]
    labels = ["O", *sorted({*kept} - {"O"}, key=lambda tag: (tag[2:], "BIES".index(tag[0])))]
    if label_list or (model_labels and not trains):
        labels = label_list if trains or not model_labels else model_labels
        unknown = sorted({tag for found in counts.values() for tag in found} - {*labels})
        if unknown:
            place = next(row["place"] for rows, _ in data.values() for row in rows
                         if {*(row["tags"] or ())} & {*unknown})
            whose, advice = ("--label_list", "Give all of them.") if labels is label_list else (
                "the model", "Give data with the same tags, or train the model on these.")
            raise InputError(f"{place}: tags that are not among those of {whose}: "
                             f"{', '.join(unknown)}; these are {', '.join(labels)}. {advice}")
    elif class_names and {*labels} <= {*class_names}:
        labels = class_names
    if trains and not label_list and model_labels and {*model_labels} == {*labels}:
        labels = model_labels  # its head is trained already, in this order
    for split in ("validation", "test"):
        for tag in sorted({*counts.get(split, ())} - {*counts["train"]}) if trains else ():
            place = next(row["place"] for row in data[split][0] if tag in (row["tags"] or ()))
            say(f"  Careful:  {tag} is not in the training data, but {counts[split][tag]:,} times "
                f"in the {split} data, first in {place}")
    return labels


# ---------------------------------------------------------------- words, tokens and windows


def tokenize_words(sentences, spaced, tokenizer):
    """Tokenize words one by one: for each sentence a list of lists of ids, none of them empty.

    Args:
        sentences: lists of words.
        spaced: for each word, whether a blank stands before it, which matters to byte-level
            vocabularies.
        tokenizer: the model's own. A word of which it makes nothing becomes its unknown token.
    """
    texts = [[" " * blank + word for word, blank in zip(words, blanks, strict=True)] for words,
             blanks in zip(sentences, spaced, strict=True)]
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(texts)))
    ids = tokenizer(distinct, add_special_tokens=False,
                    verbose=False)["input_ids"] if distinct else []
    unknown = tokenizer.mask_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    table = {text: row or [unknown] for text, row in zip(distinct, ids, strict=True)}
    return [[table[text] for text in row] for row in texts]


def cut_windows(lengths, room, stride):
    """Cut a sentence into windows of whole words.

    Each word is predicted in one window, its own: of those that hold it, the one in which the side
    with less context has most. The start and the end of the sentence cut off no context.

    Args:
        lengths: tokens of each word, int array of shape (words,); a word of more than `room` counts
            as `room`.
        room: tokens in a window, without special ones.
        stride: tokens that two windows share, less than room.

    Returns:
        List of (first word, end, first word of its own, end of its own).
    """
    lengths = np.minimum(lengths, room)
    ends = np.cumsum(lengths)
    begins, windows, start, end = ends - lengths, [], 0, 0
    while end < len(lengths):
        found = int(np.searchsorted(ends, begins[start] + room, side="right"))
        if found <= end:  # a long word follows, for which this start leaves no room
            start = end
            continue
        end = found
        windows.append((start, end))
        start = max(start + 1, int(np.searchsorted(begins, ends[end - 1] - stride, side="right"))
                    - 1)
        start = min(start, end)
    context = np.full((len(windows), len(lengths)), -1.0)
    for n, (first, last) in enumerate(windows):
        left = begins[first:last] - begins[first] if first else np.inf
        right = ends[last - 1] - ends[first:last] if last < len(lengths) else np.inf
        context[n, first:last] = np.minimum(left, right)
    own = context.argmax(axis=0) if windows else np.zeros(0, int)  # (words,)
    return [(first, last, *(int(n) for n in np.searchsorted(own, [n, n + 1]))) for n, (first, last)
            in enumerate(windows)]


def align(batch, numbers, tokenizer, *, edges, label_ids, max_seq_length, stride, label_all_tokens):
    """Make windows of sentences, for `Dataset.map`.

    Args:
        batch: lists of `tokens`, `spaced` and `tags` (None without).
        numbers: that of each sentence.
        edges: ids of [CLS] and [SEP].
        label_ids: dict of tag to number; another tag is not predicted.
        label_all_tokens: the tokens after the first of a word get its label, too, I- instead of B-.

    Returns:
        dict of lists, an entry for each window: input_ids and labels (-100 where nothing is
        predicted), lists of equal length; positions, that of the first token of each word of its
        own; sentence, its number.
    """
    rows = {"input_ids": [], "labels": [], "positions": [], "sentence": []}
    tokenized = tokenize_words(batch["tokens"], batch["spaced"], tokenizer)
    for number, words, tags in zip(numbers, tokenized, batch["tags"], strict=True):
        room = max_seq_length - 2
        for first, last, own, own_end in cut_windows(np.array([len(ids) for ids in words]), room,
                                                     stride):
            ids, labels, positions = [edges[0]], [-100], []
            for n in range(first, last):
                tokens = words[n][:room]
                tag = tags[n] if tags is not None and own <= n < own_end else None
                if own <= n < own_end:
                    positions.append(len(ids))
                rest = -100
                if label_all_tokens and tag is not None:
                    inside = f"I-{tag[2:]}" if tag[0] in "BS" else tag
                    rest = label_ids.get(inside, label_ids.get(tag, -100))
                ids += tokens
                labels += [label_ids.get(tag, -100)] + [rest] * (len(tokens) - 1)
            rows["input_ids"].append([*ids, edges[1]])
            rows["labels"].append([*labels, -100])
            rows["positions"].append(positions)
            rows["sentence"].append(number)
    return rows


def make_windows(sentences, tokenizer, labels, max_seq_length, stride, label_all_tokens, *,
                 num_proc=None, overwrite=False, in_memory=False):
    """Make the windows of sentences, or find them in the cache: a Dataset as align makes them.

    Args:
        sentences: dicts as read_tagged yields.
        labels: the tags, in order.
        stride: as for cut_windows.
        label_all_tokens: as for align.
        num_proc: processes that tokenize, or None.
        overwrite: do not look into the cache.
        in_memory: nothing is written, as for what is asked.
    """
    settings = {"edges": edge_ids(tokenizer), "label_ids": {tag: n for n, tag in enumerate(labels)},
                "max_seq_length": max_seq_length, "stride": stride,
                "label_all_tokens": label_all_tokens}
    rows = {"tokens": [], "spaced": [], "tags": []}
    for sentence in sentences:
        ends = [0, *(end for _, end in sentence.get("offsets", ()))]
        rows["tokens"].append(sentence["tokens"])
        rows["spaced"].append([start > end for (start, _), end
                               in zip(sentence["offsets"], ends, strict=False)] if "offsets"
                              in sentence else [n > 0 for n in range(len(sentence["tokens"]))])
        rows["tags"].append(sentence["tags"])
    numbers = datasets.List(datasets.Value("int32"))
    made_kinds = datasets.Features({"input_ids": numbers, "labels": numbers, "positions": numbers,
                                    "sentence": datasets.Value("int64")})
    if in_memory:
        return datasets.Dataset.from_dict(align(rows, range(len(sentences)), tokenizer, **settings),
                                          made_kinds)
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else f"{tokenizer!r} {tokenizer.get_vocab()}"
    key = hashlib.sha256(f"1 {json.dumps(rows)} {settings} {vocabulary}".encode()).hexdigest()[:32]
    cache = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / f"windows-{key}.arrow"
    if made.exists() and not overwrite:
        with suppress(pyarrow.ArrowInvalid):  # a damaged one is made anew
            return datasets.Dataset.from_file(str(made))
    kinds = datasets.Features({"tokens": datasets.List(datasets.Value("large_string")),
                               "spaced": datasets.List(datasets.Value("bool")),
                               "tags": datasets.List(datasets.Value("string"))})
    with InterruptEnds():
        return datasets.Dataset.from_dict(rows,
                                          kinds).map(align, batched=True, with_indices=True,
                                                     remove_columns=list(rows), num_proc=num_proc,
                                                     fn_kwargs={"tokenizer": tokenizer, **settings},
                                                     desc="Tokenizing", new_fingerprint=key,
                                                     cache_file_name=str(made),
                                                     load_from_cache_file=False,
                                                     features=made_kinds)


def lengths_of(windows):
    """Count the tokens of each window, without Python lists of them: int64, (windows,)."""
    return pa.compute.list_value_length(windows.data["input_ids"]).to_numpy().astype(np.int64)


class TagCollator:
    """Makes batches of windows, given their numbers, padded to the longest.

    Args:
        windows: Dataset of input_ids and labels, as align makes them.
        pad_id: id of the padding.
        edges: ids of [CLS] and [SEP], of which the batch consists where there are no windows for a
            process.
    """

    def __init__(self, windows, pad_id, edges):
        self.windows, self.pad_id, self.edges = windows.select_columns(["input_ids", "labels"]), pad_id, edges

    def __call__(self, numbers):
        """Make a batch of the windows of these numbers.

        Without numbers, as the last global batch can leave a process, it is one row in which
        nothing is predicted.

        Returns:
            input_ids, attention_mask and labels, (batch, seq).
        """
        rows = self.windows[numbers] if numbers else {"input_ids": [self.edges],
                                                      "labels": [[-100, -100]]}
        ids = [np.array(row, dtype=np.int64) for row in rows["input_ids"]]
        return {"input_ids": pad(ids, self.pad_id),
                "attention_mask": pad([np.ones_like(row) for row in ids], 0),
                "labels": pad([np.array(row, dtype=np.int64) for row in rows["labels"]], -100)}


# ---------------------------------------------------------------- predictions and scores


def allowed_moves(labels, scheme):
    """Which tags may stand where.

    Args:
        labels: the tags.
        scheme: "IOB1", "IOB2" or "BIOES"; None allows all.

    Returns:
        Bool arrays of those that may begin, (labels,), follow, (labels, labels), and end.
    """
    prefixes, kinds = np.array([tag[0] for tag in labels]), np.array([tag[2:] for tag in labels])
    everywhere = np.ones(len(labels), dtype=bool)
    if scheme is None:
        return everywhere, np.ones((len(labels), len(labels)), dtype=bool), everywhere
    # (labels, labels), (labels,)
    same, inside = kinds[:, None] == kinds[None, :], np.isin(prefixes, ["B", "I"])
    # B and I go on, with I or E of their own type; after all others something new begins
    if scheme == "BIOES":
        goes_on = np.isin(prefixes, ["I", "E"])
        return ~goes_on, np.where(inside[:, None], same & goes_on[None, :],
                                  ~goes_on[None, :]), ~inside
    # what only stands behind one of its own type
    limited = prefixes == ("I" if scheme == "IOB2" else "B")
    return ~limited, ~limited[None, :] | (same & inside[:, None]), everywhere


def best_paths(scores, lengths, moves):
    """Find the best sequence of labels that is allowed (Viterbi).

    Args:
        scores: log-probabilities, float array of shape (sentences, words, labels); of a sentence,
            the first `lengths` words count.
        lengths: int array of shape (sentences,).
        moves: as allowed_moves returns.

    Returns:
        Int array of shape (sentences, words).

    Source: Viterbi 1967; Ratinov and Roth 2009, section 3.3, on what it brings here.
    """
    begins, follows, ends = (np.where(allowed, 0.0, -1e9) for allowed in moves)
    total, back, best = scores[:, 0] + begins, [], np.zeros(scores.shape[:2], dtype=np.int64)
    at_end = np.zeros((len(scores), scores.shape[2]))
    for n in range(scores.shape[1]):
        if n:
            through = total[:, :, None] + follows  # (sentences, from, to)
            back.append(through.argmax(axis=1))
            total = through.max(axis=1) + scores[:, n]
        at_end = np.where((lengths == n + 1)[:, None], total + ends, at_end)
    label = at_end.argmax(axis=1)
    for n in range(scores.shape[1] - 1, -1, -1):
        if n < len(back):  # a word behind this one
            label = np.where(lengths > n + 1,
                             np.take_along_axis(back[n], label[:, None], axis=1)[:, 0], label)
        best[:, n] = np.where(lengths > n, label, 0)
    return best


@torch.no_grad()
def predict_words(model, windows, words, pad_id, *, batch_size, device, processes, moves):
    """Predict the label of each word.

    Sentences are shared out over the processes; each is decoded as soon as the scores of its words
    are there, so that no scores pile up.

    Args:
        model: not wrapped.
        windows: Dataset as align makes it.
        words: number of words of each sentence, in order.
        moves: as allowed_moves returns.

    Returns:
        int64 and float32 arrays of shape (all words,), the same on all processes, and two floats.

    Returns:
        (labels, probabilities, summed nll of the true labels, number of these).
    """
    model.eval()
    starts = np.concatenate([[0], np.cumsum(words)]).astype(np.int64)  # where each sentence begins
    labels, chances = np.zeros(starts[-1], dtype=np.int64), np.zeros(starts[-1], dtype=np.float32)
    sentences, lengths = np.array(windows["sentence"]), lengths_of(windows)
    by_length = np.argsort(np.bincount(sentences, lengths, minlength=len(words)), kind="stable")
    rank = np.empty(len(words), dtype=np.int64)
    rank[by_length] = np.arange(len(words))
    order = np.argsort(rank[sentences], kind="stable")  # windows of a sentence stay together
    order = order[rank[sentences[order]] % processes.num_processes == processes.rank]
    nll, counted, open_scores = [], 0, {}

    def decode():
        ready = [n for n, parts in open_scores.items() if sum(map(len, parts)) == words[n]]
        if ready:
            sizes = np.array([words[n] for n in ready])
            scores = np.zeros((len(ready), sizes.max(), len(moves[0])), dtype=np.float32)
            for row, n in enumerate(ready):
                scores[row, : sizes[row]] = np.concatenate(open_scores.pop(n))
            for n, path, row, size in zip(ready, best_paths(scores, sizes, moves), scores, sizes,
                                          strict=True):
                labels[starts[n] : starts[n] + size] = path[:size]
                chances[starts[n] : starts[n] + size] = np.exp(row[np.arange(size), path[:size]])

    bar = tqdm(total=len(order), desc="Predicting", unit=" windows", leave=False,
               disable=processes.rank > 0 or None)
    for at in range(0, len(order), batch_size):
        rows = windows[order[at : at + batch_size]]
        ids = [np.array(row, dtype=np.int64) for row in rows["input_ids"]]
        inputs = {"input_ids": pad(ids, pad_id),
                  "attention_mask": pad([np.ones_like(row) for row in ids], 0)}
        logits = model(**send_to_device(inputs, device)).logits.float()  # (batch, seq, labels)
        places = [(n, position) for n, row in enumerate(rows["positions"]) for position in row]
        if places:
            batch, positions = torch.tensor(places, device=device).T
            found = logits[batch, positions].log_softmax(dim=-1)  # (words, labels)
            targets = torch.tensor([rows["labels"][n][position] for n, position in places],
                                   device=device)
            nll.append(F.nll_loss(found, targets, reduction="sum", ignore_index=-100).item())
            counted += int((targets != -100).sum())
            pieces = np.split(found.cpu().numpy(),
                              np.cumsum([len(row) for row in rows["positions"]])[:-1])
            for sentence, piece in zip(rows["sentence"], pieces, strict=True):
                open_scores.setdefault(sentence, []).append(piece)
            decode()
        bar.update(len(ids))
    bar.close()
    loss, counted = processes.sum(math.fsum(nll), counted)
    add_up(processes, labels, chances)  # each word was predicted on one process
    return labels, chances, loss, counted


class EntityScores(evaluate.Metric):
    """Precision, recall and F1 of entities, by conlleval's rules and by the scheme's.

    Computed by seqeval.
    """

    def _info(self):
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=self.__doc__, citation="Nakayama 2018, https://github.com/chakki-works/seqeval",
            inputs_description="predictions, references: lists of tags for each sentence; scheme: IOB1, IOB2 or BIOES",
            features=datasets.Features({"predictions": tags, "references": tags}))

    def _compute(self, predictions, references, scheme):
        """Score sentences.

        Returns:
            Dict of precision, recall, f1, accuracy (of words), strict_f1, and per_entity, a dict.
        """
        accuracy = accuracy_score(references, predictions)
        # seqeval has no rows then
        if all(tag == "O" for tags in [*predictions, *references] for tag in tags):
            return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": accuracy,
                    "strict_f1": 0.0, "per_entity": {}}
        report = classification_report(references, predictions, output_dict=True, zero_division=0)
        strict = f1_score(references, predictions, mode="strict", zero_division=0,
                          scheme={"IOB1": IOB1, "IOB2": IOB2, "BIOES": IOBES}[scheme])
        total = report["micro avg"]
        per_entity = {kind: {"precision": float(row["precision"]), "recall": float(row["recall"]),
                             "f1": float(row["f1-score"]), "number": int(row["support"])} for kind,
                      row in report.items() if not kind.endswith(" avg")}
        return {"precision": float(total["precision"]), "recall": float(total["recall"]),
                "f1": float(total["f1-score"]), "accuracy": accuracy, "strict_f1": float(strict),
                "per_entity": per_entity}


class Tagger:
    """Labels the sentences of a split with a model, and scores them where they have tags.

    Args:
        sentences, windows: of the split.
        labels: the model's tags, in its order.
        scheme: that of the tags.
        rewrite: write what is predicted in the scheme, by conlleval's reading, where the model
            follows another.
        how: what else predict_words takes.

    Attributes:
        tags, chances: tags and their probabilities of each sentence, as of the last call.
        per_entity: dict of type to a dict of its scores, as of the last call.
    """

    def __init__(self, sentences, windows, labels, scheme, rewrite, **how):
        self.sentences, self.windows, self.labels, self.scheme = sentences, windows, labels, scheme
        self.rewrite, self.how, self.tags, self.chances, self.per_entity = rewrite, how, None, None, {}

    def __call__(self, model, prefix="eval"):
        """Label the sentences.

        Returns:
            Dict of scores with a prefix, empty where there are no tags to score by.
        """
        words = [len(sentence["tokens"]) for sentence in self.sentences]
        found, chances, loss, counted = predict_words(model, self.windows, words, **self.how)
        ends = np.cumsum(words)[:-1]
        self.tags = [[self.labels[n] for n in row] for row in np.split(found, ends)]
        self.tags = [write_tags(tags, self.scheme) for tags
                     in self.tags] if self.rewrite else self.tags
        self.chances = np.split(chances, ends)
        if any(sentence["tags"] is None for sentence in self.sentences):
            return {}
        scores = EntityScores(keep_in_memory=True).compute(
            predictions=self.tags, references=[sentence["tags"] for sentence in self.sentences], scheme=self.scheme)
        self.per_entity = scores.pop("per_entity")
        scores = {"loss": loss / max(counted, 1), **scores}
        return {f"{prefix}_{name}": score for name, score in scores.items()}


def entities_of(sentence, tags, chances):
    """List the entities of a tagged sentence.

    start and end are characters, end not included, as in what read_spans reads; the words of a
    sentence without a text of its own are joined by blanks. score is the mean probability of its
    words' tags.

    Returns:
        (text, list of dicts of start, end, label, start_word, end_word, score and text).
    """
    text, offsets = sentence.get("text"), sentence.get("offsets")
    if text is None:
        text, ends = " ".join(sentence["tokens"]), np.cumsum([len(token) + 1 for token in sentence["tokens"]]) - 1
        offsets = [(int(end) - len(token), int(end)) for token, end
                   in zip(sentence["tokens"], ends, strict=True)]
    found = []
    for kind, first, last in get_entities(list(tags)):
        start, end = offsets[first][0], offsets[last][1]
        found.append({"start": start, "end": end, "label": kind, "start_word": first,
                      "end_word": last + 1, "score": float(np.mean(chances[first : last + 1])),
                      "text": text[start:end]})
    return text, found


def write_predictions(output_dir, tagger):
    """Write predictions.conll and predictions.jsonl.

    The first has word, tag if there are any, and prediction; the second text and entities.
    """
    lines, rows = [], []
    for sentence, tags, chances in zip(tagger.sentences, tagger.tags, tagger.chances, strict=True):
        gold = sentence["tags"] or [None] * len(tags)
        if sentence.get("after_docstart"):
            lines += ["\t".join(["-DOCSTART-"] + ["O"] * (1 + (sentence["tags"] is not None))), ""]
        lines += ["\t".join(part for part in row if part is not None) for row
                  in zip(sentence["tokens"], gold, tags, strict=True)]
        lines.append("")
        text, entities = entities_of(sentence, tags, chances)
        rows.append(json.dumps({"text": text, "entities": entities}, ensure_ascii=False))
    Path(output_dir, "predictions.conll").write_text("\n".join(lines) + "\n", encoding="utf-8",
                                                     newline="\n")
    Path(output_dir, "predictions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8",
                                                     newline="\n")


# ---------------------------------------------------------------- train


def freeze(model, embeddings, layers):
    """Leave the embeddings, and the first so many layers, as they are.

    InputError where there are not as many.
    """
    if embeddings or layers:
        parts = [module for name, module in model.base_model.named_children() if "embed" in name]
        for parameter in itertools.chain.from_iterable(part.parameters() for part in parts):
            parameter.requires_grad = False
    if layers:
        total = getattr(model.config, "num_hidden_layers", None)
        stacks = [module for module in model.base_model.modules()
                  if isinstance(module, torch.nn.ModuleList) and len(module) == total]
        if not stacks or layers > total:
            raise InputError(f"--freeze_layers is {layers}; this model has "
                             f"{total if stacks else 'no'} layers that can be frozen one by one")
        for layer in stacks[0][:layers]:
            layer.requires_grad_(False)


def weigh_classes(wanted, labels, windows):
    """Weights of the labels in the loss: float32 tensor of shape (labels,), or None.

    Args:
        wanted: --class_weights: "balanced", TYPE=WEIGHT,… or None.
        labels: the tags.
        windows: of the training data.

    Raises:
        InputError: no such type, or no number.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        found = [label for row in windows["labels"] for label in row if label != -100]
        counts = np.bincount(found, minlength=len(labels))
        weights = np.where(counts > 0, len(found) / (np.count_nonzero(counts)
                                                     * np.maximum(counts, 1)), 1.0)
        return torch.tensor(weights, dtype=torch.float32)
    weights, kinds = torch.ones(len(labels)), ["O" if tag == "O" else tag[2:] for tag in labels]
    for part in wanted.split(","):
        kind, _, value = part.rpartition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if kind not in kinds or not 0 <= weight < math.inf:
            raise InputError(f"--class_weights {wanted}: {part!r} is no TYPE=WEIGHT. Types are "
                             f"{', '.join(sorted({*kinds}))}, weights 0 or more; or give balanced.")
        weights[[n for n, name in enumerate(kinds) if name == kind]] = weight
    return weights


def tag_loss(outputs, labels, num_items_in_batch, weights=None, smoothing=0.0):
    """Cross entropy in nats.

    Args:
        outputs: of the model, with logits (batch, seq, labels).
        labels: (batch, seq), -100 where nothing is predicted.
        num_items_in_batch: number of labels of the whole update, over all passes and processes.
        weights: (labels,).
        smoothing: share of the probability that is spread over all labels.

    Returns:
        A sum over this pass's labels, divided by the number of all labels of the update.
    """
    logits = outputs["logits"].float().flatten(0, 1)  # (batch * seq, labels)
    weights = None if weights is None else weights.to(logits.device)
    total = F.cross_entropy(logits, labels.flatten(), weight=weights, reduction="sum",
                            label_smoothing=smoothing)
    return total / num_items_in_batch.clamp(min=1)


def make_tagger(run, sentences, tokenizer, labels, scheme, moves, in_memory=False):
    """Make the Tagger of sentences. moves: of allowed_moves. in_memory: as for make_windows."""
    args = run.args
    with run.main_first():
        windows = make_windows(sentences, tokenizer, labels, args.max_seq_length, args.stride,
                               False, num_proc=args.preprocessing_num_workers, in_memory=in_memory)
    return Tagger(sentences, windows, labels, scheme, args.constrained_decoding, device=run.device,
                  batch_size=args.per_device_eval_batch_size, processes=run, moves=moves,
                  pad_id=tokenizer.pad_token_id)


def load_tagger(run, config, labels, scheme, tokenizer):
    """Load --model with a head for these labels, or a checkpoint."""
    known, config = labels_of(config), copy.deepcopy(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {tag: n for n, tag in enumerate(labels)}
    config.tag_scheme = scheme
    is_other = known is not None and known != labels and not run.args.from_scratch
    is_other = is_other and not run.checkpoint
    model, note = run.load_model(AutoModelForTokenClassification, config, tokenizer,
                                 "token classification head", ignore_mismatched_sizes=True)
    run.introduce(model, renew_head(model, note) if is_other else note)
    return model


def check_labels(args, labels, known, data):
    """Find labels that cannot work.

    InputError: the model has none and no data have, or they are of no scheme.
    """
    if not known and not args.label_list and not {"train", "validation"} & {*data}:
        raise InputError(f"--model {args.model}: it was not trained to find names: its labels are "
                         "but numbered. Give the --output_dir of a run of this script, or another "
                         "model with such a head; or train it.")
    wrong = [label for label in labels if not is_tag(label)]
    if wrong or len({*labels}) < len(labels):
        whose = "--label_list" if args.label_list else f"--model {args.model}"
        fault = f"{wrong[0]!r} is no tag" if wrong else "a label stands there twice"
        raise InputError(f"{whose}: {fault}; expected O, or B-, I-, E- or S- and a type, as B-PER. "
                         f"The labels are {', '.join(labels)[:200]}")
    if args.early_stopping_patience and "validation" not in data:
        raise InputError("--early_stopping_patience needs scores: give --validation_file")


def labels_of(config):
    """Labels that a model was trained with, in its order; None where they are but numbered."""
    labels = [config.id2label[n] for n in sorted(config.id2label)]
    return None if all(re.fullmatch(r"LABEL_\d+", label) for label in labels) else labels


def content_of(data, labels, tokenizer):
    """Tell apart the data of a run, which a resume may not change: dict of name to value."""
    content = {"labels": labels, "tokenizer": vocabulary_of(tokenizer)}
    for split in [split for split in data if split != "test"]:
        rows = [(row["tokens"], row["tags"]) for row in data[split][0]]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
        content[split] = f"{len(rows):,} sentences ({digest})"
    return content


def fit(run, tokenizer, config, labels, scheme, data, score):
    """Train on the sentences of data["train"], into the folder of the run: (trainer, results)."""
    args = run.args
    run.check_resume(config.model_type, content_of(data, labels, tokenizer), (
        "max_seq_length", "stride", "label_all_tokens", "class_weights", "freeze_embeddings",
        "freeze_layers", "constrained_decoding"))
    with run.main_first():
        windows = make_windows(data["train"][0], tokenizer, labels, args.max_seq_length,
                               args.stride, args.label_all_tokens,
                               num_proc=args.preprocessing_num_workers,
                               overwrite=args.overwrite_cache and run.is_main)
    weights = weigh_classes(args.class_weights, labels, windows)
    model = load_tagger(run, config, labels, scheme, tokenizer)
    freeze(model, args.freeze_embeddings, args.freeze_layers)
    return run.fit(model, tokenizer, lengths_of(windows), score=score,
                   collator=TagCollator(windows, tokenizer.pad_token_id, edge_ids(tokenizer)),
                   compute_loss_func=partial(tag_loss, weights=weights,
                                             smoothing=args.label_smoothing_factor))


def keep_certain(tagger, threshold):
    """Make training sentences of those that are certain.

    Of each, every word's tag is as probable as the threshold, or more.
    """
    kept = [n for n, chances in enumerate(tagger.chances) if chances.min() >= threshold]
    return [tagger.sentences[n] | {"tags": tagger.tags[n]} for n in kept]


def fit_rounds(run, tokenizer, config, labels, scheme, data, taggers):
    """Train, label the unlabelled sentences, and train anew with those that are certain.

    Args:
        data: dict of split to (sentences, name).
        taggers: dict of split to its Tagger; in both stands "unlabeled".

    Returns:
        (trainer, results) of the best round, by eval_f1, or of the last where none can be told.

    Source: Lee 2013, http://deeplearning.net/wp-content/uploads/2013/03/pseudo_label_final.pdf
    """
    args, best, table, extra = run.args, None, [], []
    (sentences, source), tagger = data["train"], taggers["unlabeled"]
    if args.overwrite_output_dir and run.rank == 0:
        clear_output(run.folder, 0, True)
    for number in range(args.pseudo_label_rounds + 1):
        part = begin_round(run, number, extra)
        run.say(f"Round {number}     {len(sentences):,} sentences with tags of their own, "
                f"{len(extra):,} of {len(tagger.sentences):,} with pseudo-labels")
        more = data | {"train": (sentences + extra, source)}
        score = taggers.get("validation")
        trainer, results = fit(part, tokenizer, config, labels, scheme, more, score)
        scores = {name: results[name] for name in ("eval_f1", "eval_strict_f1") if name in results}
        table.append({"round": number, "pseudo_labelled": len(extra), **scores})
        for tracker in run.accelerator.trackers:
            tracker.finish()  # the next round is a run of its own
        run.accelerator.trackers = []
        if best is None or "eval_f1" not in results or not trainer.args.load_best_model_at_end or (
                results["eval_f1"] > best[1]["eval_f1"]):
            best = trainer, results
        if number < args.pseudo_label_rounds:
            tagger(trainer.model)
            extra = keep_certain(tagger, args.pseudo_label_threshold)
    show_rounds(table, run.say)
    if best[0] is not trainer:
        number = next(row["round"] for row in table if row["eval_f1"] == best[1]["eval_f1"])
        run.say(f"Best        the model of round {number} is kept, by eval_f1")
        best[0].scored_at = None  # what scored it has scored later models since
    return best[0], best[1] | {"pseudo_label_rounds": table}


def begin_round(run, number, extra):
    """Make the run of a round, in a folder of its own. extra: its pseudo-labelled sentences."""
    args = run.args
    part = copy.copy(run)  # shares card and settings; folder, checkpoint and state are its own
    part.folder = run.folder / f"round-{number}"
    part.checkpoint, state = open_output(part.folder, True, args.resume_from_checkpoint,
                                         args.overwrite_output_dir, run.say)
    vars(part).update(state)
    if extra and run.rank == 0:
        lines = [f"{token}\t{tag}" if tag else "" for row in extra for token, tag
                 in [*zip(row["tokens"], row["tags"], strict=True), ("", "")]]
        text = "\n".join(lines) + "\n"
        path = Path(part.folder, "pseudo_labelled.conll")
        path.write_text(text, encoding="utf-8", newline="\n")
    return part


def show_rounds(table, say):
    """Print the scores of the rounds."""
    say(f"{'Round':<8}{'pseudo-labelled':>16}{'eval_f1':>12}{'eval_strict_f1':>18}")
    for row in table:
        widths = {"eval_f1": 12, "eval_strict_f1": 18}
        scores = "".join(f"{row[name]:>{widths[name]}.4f}" for name in widths if name in row)
        say(f"{row['round']:<8}{row['pseudo_labelled']:>16,}{scores}")


# ---------------------------------------------------------------- main


def describe_data(data, labels, scheme, say):
    """Say what the data are, and what looks wrong with them."""
    for split, (rows, name) in data.items():
        entities = sum(len(get_entities(row["tags"])) for row in rows if row["tags"] is not None)
        tagged = f"{entities:,} entities" if all(row["tags"] is not None for row
                                                 in rows) else "no tags"
        repeated = len(rows) - len({tuple(row["tokens"]) for row in rows})
        say(f"{split.capitalize():<11} {len(rows):,} sentences, "
            f"{sum(len(row['tokens']) for row in rows):,} words, {tagged}, of {name}"
            + (f"; {repeated:,} sentences stand there more than once" if repeated else ""))
    kinds = list(dict.fromkeys(tag[2:] for tag in labels if tag != "O"))
    say(f"Labels      {len(labels)}, {scheme}: O and {', '.join(kinds)}")


def entity_table(per_entity):
    """Make rows of text of the scores of each type: a list of lists, the header first."""
    return [["type", "precision", "recall", "f1", "number"],
            *([kind, *(f"{row[name]:.4f}" for name in ("precision", "recall", "f1")),
               f"{row['number']:,}"] for kind, row in sorted(per_entity.items()))]


def show_entities(text, entities, note, say):
    """Print the entities of one text."""
    say(f"\n{text}")
    width = max([20, *(len(entity["text"]) + 2 for entity in entities)])
    for entity in entities:
        say(f"  {entity['text']:<{width}}{entity['label']:<12}{entity['score']:.3f}   characters "
            f"{entity['start']} to {entity['end']}")
    if not entities:
        say("  no entity in it")
    if "random" in note:
        say(f"  Careful: {note}; train it first, or this says nothing")


def label_at_end(run, model, taggers, text_tagger, results):
    """Label test data and --text, and show the scores of each type: results with the new scores.

    taggers: dict of split to its Tagger. text_tagger: that of --text, or None.
    """
    args = run.args
    if "test" in taggers:
        results = results | taggers["test"](model, "predict")
    if text_tagger:
        text_tagger(model)
    if run.rank:
        return results
    tables = {split: tagger.per_entity for split, tagger in taggers.items() if tagger.per_entity}
    if "test" in taggers:
        write_predictions(run.folder, taggers["test"])
    for split, per_entity in tables.items():
        prefix = {"validation": "eval", "test": "predict"}[split]
        results.setdefault("per_entity", {})[prefix] = per_entity
        rows = entity_table(per_entity)
        width = max(len(row[0]) for row in rows) + 2
        run.say(f"\n{split.capitalize()}, by type:")
        for kind, *values in rows:
            run.say(f"{kind:<{width}}" + "".join(f"{value:>11}" for value in values))
        run.say("")
    if text_tagger:
        (sentence,), (tags,), (chances,) = (text_tagger.sentences, text_tagger.tags,
                                            text_tagger.chances)
        note = "" if args.do_train else run.note
        show_entities(*entities_of(sentence, tags, chances), note, run.say)
    return results


def describe_for_card(run, data, per_entity):
    """Put into the model card what the data are, and the scores of each type."""
    for split, (rows, name) in data.items():
        words = sum(len(row["tokens"]) for row in rows)
        run.card["data"][split] = f"{len(rows):,} sentences, {words:,} words of {name}"
    lines = []
    for prefix, scores in per_entity.items():
        header, *rows = entity_table(scores)
        lines += [f"| {prefix}: {' | '.join(header)} |", "| --- | ---: | ---: | ---: | ---: |",
                  *(f"| {' | '.join(row)} |" for row in rows), ""]
    source = data["train"][1] if "train" in data else ""
    run.card |= {"task": f"trained on {source} to find names; {run.note}",
                 "tag": "token-classification", "tables": "\n".join(lines)}


def train_or_load(run, tokenizer, config, labels, scheme, data, taggers):
    """Train, in rounds where there are unlabelled sentences, or only load: (model, results)."""
    score = taggers.get("validation")
    if not run.args.do_train:
        model = run.prepare_for_evaluation(load_tagger(run, config, labels, scheme, tokenizer))
        return model, score(model) if run.args.do_eval and score else {}
    if "unlabeled" in data:
        trainer, results = fit_rounds(run, tokenizer, config, labels, scheme, data, taggers)
    else:
        trainer, results = fit(run, tokenizer, config, labels, scheme, data, score)
    if score and trainer.scored_at != trainer.kept_step():
        score(trainer.model)  # for the tables, of the model that is kept
    run.note = trainer.run.note
    return trainer.model, results


def choose_tags(args, config, data, class_names, say):
    """Choose the labels and their scheme, into which the tags of the data are brought.

    Returns:
        (labels, scheme, moves as of allowed_moves).

    Raises:
        InputError: the labels cannot work.
    """
    known, model_scheme = labels_of(config), getattr(config, "tag_scheme", None)
    scheme = unify_tags(data, None if args.do_train else model_scheme, say)
    labels = choose_labels(data, args.label_list, known, class_names, args.do_train, say)
    check_labels(args, labels, known, data)
    scheme = scheme or model_scheme or find_scheme([[tag] for tag in labels])[0]
    describe_data(data, labels, scheme, say)
    # A model that was trained elsewhere may follow another scheme than these data: then its path is
    # not constrained.
    follows = scheme if args.do_train or model_scheme == scheme or known is None else None
    return labels, scheme, allowed_moves(labels, follows if args.constrained_decoding else None)


def main(argv=None):
    args = parse_args(argv)
    config, tokenizer = load_config_and_tokenizer(args, args.max_seq_length)
    todo = args.do_train or args.do_eval or args.do_predict is not False
    run = TrainerRun("ner", args, todo, NerArguments)
    data, class_names = {}, None
    if todo:
        data, class_names = prepare_rows(args, run.folder, run.say)
    labels, scheme, moves = choose_tags(args, config, data, class_names, run.say)
    taggers, text_tagger = {}, None
    for split in ("validation", "test", "unlabeled"):
        if split in data:
            taggers[split] = make_tagger(run, data[split][0], tokenizer, labels, scheme, moves)
    if args.text is not None:
        sentence = read_tagged_row({"text": args.text}, "--text", None, None, None)
        text_tagger = make_tagger(run, [sentence], tokenizer, labels, scheme, moves, in_memory=True)
    with explain_out_of_memory(args.max_seq_length):
        model, results = train_or_load(run, tokenizer, config, labels, scheme, data, taggers)
        describe_for_card(run, data, {})
        run.save_model_and_results(run.accelerator.unwrap_model(model, keep_torch_compile=False), tokenizer, results)
        results = label_at_end(run, model, taggers, text_tagger, results)
        describe_for_card(run, data, results.get("per_entity", {}))
        run.write_results(results)
    run.report_results(results)
    if "test" in taggers:
        run.say(f"\n{len(data['test'][0]):,} sentences are labelled in "
                f"{run.folder / 'predictions.conll'}, their entities listed in predictions.jsonl")


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


# ==== utils/similar_lengths.py, whole (to change it, change it there; `make fix` copies it) ====
# Batches of similar length.

class SimilarLengthSampler(GlobalBatchSampler):
    """A GlobalBatchSampler that puts examples of similar length together, to pad little.

    The order of the epoch is cut into pools. The examples of a pool are sorted by length and cut
    into global batches, which then come in random order. Within one, examples are sorted by length
    too, so those of a micro-batch are close.

    Args:
        lengths: tokens of each example, int array of shape (examples,).
        pool: global batches that are sorted together. Fewer mix lengths more, and pad more.
    """

    def __init__(self, lengths, batch_size, accumulation_steps, num_processes, rank, seed, *,
                 pool=50):
        super().__init__(len(lengths), batch_size, accumulation_steps, num_processes, rank, seed)
        self.lengths, self.pool = np.asarray(lengths), pool

    def order(self):
        order, size = super().order(), self.global_batch
        whole = self.n - self.n % size
        pools = np.arange(self.n) // (self.pool * size)
        pools[whole:] = self.n  # the rest, a smaller batch, stays at the end
        order = order[np.lexsort((self.lengths[order], pools))]  # by pool, then by length
        shuffled = np.random.default_rng((self.seed, self.epoch, 1)).permutation(whole // size)
        return np.concatenate([order[:whole].reshape(-1, size)[shuffled].ravel(), order[whole:]])

    def padding(self):
        """Share of padding among the tokens of the epoch, from 0 to 1, on all processes."""
        order, whole = self.order(), self.n - self.n % self.global_batch
        rest = np.array_split(order[whole:], self.accumulation_steps * self.num_processes)
        batches = [*order[:whole].reshape(-1, self.batch_size), *rest]
        padded = sum(int(self.lengths[batch].max()) * len(batch) for batch in batches if len(batch))
        return 1 - int(self.lengths.sum()) / padded


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


# ==== utils/trainer.py, whole (to change it, change it there; `make fix` copies it) ====
# What Trainer leaves open: its flags, and order, scores and checkpoints as the loops have them.

BOUNDS = {  # of flags that TrainingArguments has without any
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), AMOUNT),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "eval_steps"), ABOVE_0),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit", "cpu_threads"), COUNT),
    "early_stopping_patience": COUNT,
    "dataloader_num_workers": number(int, 0),
    "seed": number(int, 0, 2**32 - 1),
    "label_smoothing_factor": number(float, 0, math.nextafter(1, 0)),
}
REFUSED = (  # flags of TrainingArguments that an ExactTrainer has no use for, and why
    ("auto_find_batch_size", "another batch size gives another result; to save memory, halve "
     "--per_device_train_batch_size and double --gradient_accumulation_steps"),
    ("dataloader_drop_last train_sampling_strategy data_seed",
     "the order of examples is a function of --seed, and none is left out"),
    ("ignore_data_skip save_only_model", "a resumed run ends as one that was left alone"),
    ("average_tokens_across_devices", "each label weighs the same on any number of devices"),
    ("fsdp fsdp_config deepspeed", "encoders of this size train fastest with plain data "
     "parallelism, by accelerate launch --multi_gpu"),
    ("bf16_full_eval fp16_full_eval", "it is scored in the precision in which it is trained, that of "
     "--mixed_precision"),
    ("hub_token hub_strategy hub_revision hub_always_push", "the model is uploaded once, at the "
     "end; log in with: hf auth login"),
    ("eval_accumulation_steps batch_eval_metrics prediction_loss_only eval_use_gather_object",
     "evaluation keeps no more than it needs already"),
)
SHOWN = (  # of TrainingArguments, even where they are as there
    "learning_rate", "num_train_epochs", "max_steps", "weight_decay", "seed", "warmup_steps",
    "lr_scheduler_type", "gradient_accumulation_steps", "max_grad_norm",
)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says what a default is, where there is one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def settle_flags(parser):
    """Give the flags of TrainingArguments bounds, and all others their spelling with hyphens, too.

    Args:
        parser: an HfArgumentParser of one class, with all flags; the group of the class comes last.
    """
    for flag, action in [*parser._option_string_actions.items()]:
        parser._option_string_actions.setdefault(flag.replace("_", "-"), action)
    for action in parser._actions:
        action.type = BOUNDS.get(action.dest, action.type)
        # Of both spellings, messages and --help name the one with underscores.
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        action.option_strings = names
    title = parser.dataclass_types[0]._argument_group_name
    parser._action_groups.sort(key=lambda group: group.title == title)  # of others the order stays


def check_trainer_flags(args, parser):
    """Find flags of a Trainer that cannot work, do not fit each other, or have no use here.

    Args:
        args: Namespace of all flags.
        parser: made them, and knows their defaults.
    """
    for names, reason in REFUSED:
        for name in names.split():
            if getattr(args, name, None) != parser.get_default(name):
                parser.error(f"--{name} is not for this script: {reason}")
    check_output_flags(args, parser)
    given = [name for name in ("bf16", "fp16") if getattr(args, name)]
    if (given and args.mixed_precision != "auto") or len(given) > 1:
        parser.error(f"--mixed_precision {args.mixed_precision} and --{' and --'.join(given)} were "
                     "given; expected one of them")
    args.mixed_precision = given[0] if given else args.mixed_precision
    if args.save_strategy == "best":
        parser.error("--save_strategy best: expected no, steps or epoch. Which model is kept says "
                     "--load_best_model_at_end.")
    if args.early_stopping_patience and args.eval_strategy == "no":
        parser.error("--early_stopping_patience needs scores: give --eval_strategy epoch or steps")


def make_training_arguments(kind, args, on_cpu, precision):
    """Make the TrainingArguments of a run, for its own accelerator. InputError for what they refuse.

    Args:
        kind: the script's subclass of them.
    """
    settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(kind)
                if field.init}
    if args.load_best_model_at_end is None:
        settings["load_best_model_at_end"] = args.save_strategy == args.eval_strategy != "no"
    settings |= {
        "bf16": precision == "bf16", "fp16": precision == "fp16", "use_cpu": on_cpu,
        "disable_tqdm": True, "log_level": "error", "log_level_replica": "error",
        "report_to": "none", "push_to_hub": False, "resume_from_checkpoint": None,  # these are ours
        "accelerator_config": {"use_configured_state": True}, "gradient_checkpointing": None,
        "activation_checkpointing": args.activation_checkpointing or args.gradient_checkpointing,
    }
    with blame("these flags do not fit each other", "See --help."):
        training = kind(**settings)
    training._n_gpu = min(training.n_gpu, 1)  # several GPUs are for processes, not for DataParallel
    return training


def shown_settings(args):
    """Settings for the model card and the trackers: dict of flags to their values.

    They are the flags that TrainingArguments has not, some of those it has, and what was changed.
    """
    plain = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    return {name: value for name, value in vars(args).items()
            if name in SHOWN or value != plain.get(name, dataclasses.MISSING)}


class RunCallback(TrainerCallback):
    """Around each update of an ExactTrainer: order and dropout, then signals, log and bar."""

    def __init__(self, trainer):
        self.trainer, self.run, self.bar = trainer, trainer.run, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="Training",
                        unit=" updates", disable=not self.run.is_main or None)

    def on_epoch_begin(self, args, state, control, **kwargs):
        sampler = self.trainer.sampler
        sampler.epoch = sampler.place(state.global_step)[0]

    def on_step_begin(self, args, state, control, **kwargs):
        # Dropout is a function of (seed, update, rank), so a checkpoint need not carry the state of
        # any generator.
        numbers = args.seed, state.global_step, self.run.rank
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        trainer, run = self.trainer, self.run
        run.step = state.global_step
        is_last = run.step >= state.max_steps
        is_due = (args.eval_strategy == "epoch" and args.eval_delay <= state.epoch
                  and trainer.sampler.place(run.step)[1] == 0)
        if trainer.score and (is_last or is_due):
            control.should_evaluate = True  # before it is saved: a checkpoint has its scores
        if run.sum(run.stop_signal.number > 0)[0] and not is_last:
            trainer.stopped = control.should_save = control.should_training_stop = True
        # What is not logged yet would be lost to a resume.
        control.should_log |= is_last or control.should_save

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save
        if self.trainer.scored_at == state.global_step:
            control.should_evaluate = False
        if self.trainer.stopped:  # within an epoch: its evaluation and checkpoint come after the resume
            control.should_evaluate = control.should_save = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        run = self.run
        values = {name: value for name, value in logs.items() if name != "epoch"}
        if not run.is_main or "train_runtime" in values or not self.trainer.is_in_train:
            return
        if state.global_step == 0:
            values = {f"initial_{name}": value for name, value in values.items()}
        epochs = round(self.trainer.sampler.epochs_until(state.global_step), 4)
        with open(run.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "epoch": epochs, **values}) + "\n")
        run.accelerator.log(values, step=state.global_step)
        shown = [f"{name} {value:.6g}" for name, value in values.items() if name not
                 in ("learning_rate", "grad_norm")]
        tqdm.write(f"Update {state.global_step:>6}  {'  '.join(shown)}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class ExactTrainer(Trainer):
    """A Trainer that trains, scores and saves alike on any number of processes.

    Batches come from a sampler over whole global batches; a score is computed by a function that
    adds up over all processes; a checkpoint counts only when it is whole (see utils.checkpoints),
    and needs no generator's state.

    Args:
        run: a Run, whose state a checkpoint carries.
        sampler: a GlobalBatchSampler of numbers of examples.
        collator: makes a batch of such numbers.
        score: function that scores a model, a dict of results with eval_ in front; or None.
        tokenizer: is saved beside the model.
        rest: what else a Trainer takes.

    Attributes:
        stopped: whether a signal ended the training.
        paused: seconds spent on scoring and saving.
        scored_at: the update after which the model was last scored, or None.
        max_steps: how many there are to be.

    Raises:
        InputError: the flags do not go together, or a package that they need is missing.
    """

    def __init__(self, *, run, sampler, collator, score, tokenizer, **rest):
        self.run, self.sampler, self.score, self.tokenizer = run, sampler, score, tokenizer
        self.stopped, self.paused, self.scored_at = False, 0.0, None
        # Now, when nothing that lies in the output folder is cleared yet.
        with blame("these flags cannot be trained with", "See --optim, --adam_beta1, "
                   "--lr_scheduler_type and what is like them in --help."):
            super().__init__(data_collator=collator, train_dataset=range(sampler.n),
                             eval_dataset=range(1) if score else None, **rest)
            self.max_steps = self.args.max_steps
            if self.max_steps <= 0:
                self.max_steps = sampler.updates_until(self.args.num_train_epochs)
            self.create_optimizer_and_scheduler(self.max_steps)
        self.add_callback(RunCallback(self))
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self):
        """Make the loader of this process's batches, which accelerate would share out again."""
        # The generator keeps iter() from drawing its seed out of the global one.
        return DataLoader(self.train_dataset, batch_sampler=self.sampler,
                          collate_fn=self.data_collator,
                          num_workers=self.args.dataloader_num_workers, generator=torch.Generator(),
                          pin_memory=self.args.device.type == "cuda",
                          worker_init_fn=ignore_interrupts)

    def evaluate(self, *args, **kwargs):
        """Score the model, log the scores, and tell the callbacks."""
        begun = time.perf_counter()
        scores, self.scored_at = self.score(self.model), self.state.global_step
        if self.scored_at == 0:
            self.run.initial = {f"initial_{name}": value for name, value in scores.items()}
        self.log(dict(scores))
        callbacks = self.callback_handler
        self.control = callbacks.on_evaluate(self.args, self.state, self.control, scores)
        self.paused += time.perf_counter() - begun
        return scores

    def kept_step(self):
        """The update whose model is kept: the best one's where that is asked for, or the last."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return best if best and self.state.best_model_checkpoint else self.state.global_step

    def _save_checkpoint(self, model, trial):
        begun, args, state, run = time.perf_counter(), self.args, self.state, self.run
        step, best = state.global_step, None
        if state.best_global_step:
            best = f"checkpoint-{state.best_global_step}"
        if best and (step == state.best_global_step or (run.folder / best).exists()):
            state.best_model_checkpoint = str(run.folder / best)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                state.stateful_callbacks[type(callback).__name__] = callback.state()
        counters = [callback.early_stopping_patience_counter for callback
                    in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)]
        ends = bool(counters) and max(counters) >= args.early_stopping_patience
        run.ended_by_patience = args.early_stopping_patience if ends else None
        if run.is_main:
            keep = best if args.load_best_model_at_end else None
            limit = run.args.save_total_limit or 10**9
            save_checkpoint(run.folder, step, self.write_checkpoint, limit, keep=keep)
        run.sum(0)  # the others wait: none trains on if this one fails
        self.paused += time.perf_counter() - begun

    def write_checkpoint(self, folder):
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        state = json.dumps(self.run.state(), indent=1)
        with blame(f"{folder} cannot be written", "A whole checkpoint, if there was one, is "
                   "still there."):
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            self._save_optimizer_and_scheduler(folder)
            self._save_scaler(folder)
            self.state.save_to_json(folder / "trainer_state.json")
            (folder / "state.json").write_text(state, encoding="utf-8")

    def _load_rng_state(self, checkpoint):
        pass  # see on_step_begin

    def restore_finished(self, checkpoint):
        """Take up the state of a run that had come to its end, and the model that it kept."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.accelerator.prepare_model(self.model, evaluation_mode=True)
        best = self.run.folder / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best.exists() else None
        if self.args.load_best_model_at_end and best.exists():
            self._load_best_model()


def run_trainer(trainer):
    """Train, from a checkpoint where there is one: dict of results, of the model that is kept.

    A signal ends the run, with a checkpoint saved.
    """
    run, args, patience = trainer.run, trainer.args, trainer.args.early_stopping_patience
    sampler, checkpoint, before = trainer.sampler, run.checkpoint, run.step
    begun = time.perf_counter()
    ended = checkpoint and (before >= trainer.max_steps
                            or (patience and run.ended_by_patience == patience))
    if ended:
        trainer.restore_finished(checkpoint)  # there is nothing left to do; train() would do one update more
    else:
        with run.stop_signal:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stopped:
        end_stopped_run(run.accelerator, run.stop_signal.number, run.step, run.say)
    seconds = time.perf_counter() - begun - trainer.paused
    history, kept = trainer.state.log_history, trainer.kept_step()
    if kept != run.step:
        run.say(f"Best        the model of update {kept} is kept, by {args.metric_for_best_model}")
    losses = [line for line in history if "loss" in line]  # each the mean since the line before it
    updates = np.diff([0, *(line["step"] for line in losses)])
    results = {"step": run.step, "epoch": sampler.epochs_until(run.step), **run.initial,
               "train_loss": float(np.average([line["loss"] for line in losses], weights=updates))}
    if not ended:  # else it was a finished run that was resumed, whose time is known, if at all
        seen = sampler.examples_until(run.step) - sampler.examples_until(before)
        results |= {"train_runtime": seconds, "train_samples_per_second": seen / seconds}
    scores = {line["step"]: line for line in history if "eval_loss" in line}.get(kept, {})
    if trainer.score and not scores:  # it ends where the run that it goes on from did not
        scores = trainer.evaluate()
    names = [name.removeprefix("initial_") for name in run.initial]  # in their order
    return results | {name: scores[name] for name in names if name in scores}


# ==== utils/fine_tuning.py, whole (to change it, change it there; `make fix` copies it) ====
# What stands around a model that a Trainer fine-tunes: its run, its head and its dropout.

def write_list(folder, file, rows, words, say):
    """Write what is wrong with the data to a file, a row each, and say how much it is.

    Args:
        rows: values for JSON; without any, there is no file.
        words: what they are.
    """
    if int(os.environ.get("RANK", 0)) == 0:
        path = folder / file
        path.unlink(missing_ok=True)  # that of an earlier run
        if rows:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character
            say(f"  Careful:  {len(rows):,} {words}; they are listed in {path}")


class TrainerRun(Run):
    """A run that fine-tunes a model by a Trainer, or only uses one.

    Args:
        task, args, writes: as of Run.
        kind: the script's subclass of TrainingArguments.
        hidden: names of flags that the model card does not show.

    Attributes:
        training: the TrainingArguments.
    """

    def __init__(self, task, args, writes, kind, *, hidden=()):
        super().__init__(task, args, writes)
        precision = self.accelerator.mixed_precision
        self.training = make_training_arguments(kind, args, self.on_cpu, precision)
        self.settings = {flag: value for flag, value in shown_settings(args).items()
                         if flag not in hidden}

    def open(self, resume, overwrite):
        """Open the folder, as Run does. That of a run in rounds has its checkpoints in theirs."""
        if resume and getattr(self.args, "unlabeled_file", None):
            resume, overwrite = None, True
        super().open(resume, overwrite)

    def introduce(self, model, note):
        """Say what the run begins with, and quicken its dropout. note: as of load_model."""
        super().introduce(model, note)
        quicken_dropout(model, self.on_cpu)  # where nothing is dropped, it computes as in training

    def check_resume(self, model_type, data, flags):
        """Refuse to go on from a checkpoint of other data or settings, as Run does."""
        super().check_resume(model_type, data, (
            *flags, "optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2",
            "adam_epsilon", "lr_scheduler_kwargs", "label_smoothing_factor", "neftune_noise_alpha",
            "metric_for_best_model", "greater_is_better"))

    def fit(self, model, tokenizer, lengths, *, score, **how):
        """Train a model, from the checkpoint where there is one: (trainer, results).

        A signal ends the run.

        Args:
            tokenizer: is saved beside the model.
            lengths: tokens of each window.
            score: as for an ExactTrainer.
            how: collator and compute_loss_func, as for an ExactTrainer.
        """
        args, training = self.args, copy.copy(self.training)
        # Rotation is ours: Trainer's own would look for checkpoints that are gone.
        training.output_dir, training.save_total_limit = str(self.folder), None
        training.eval_on_start = score is not None and self.checkpoint is None
        if score is None:
            training.eval_strategy, training.load_best_model_at_end = "no", False
        self.settings["load_best_model_at_end"] = training.load_best_model_at_end
        if training.activation_checkpointing:
            checkpoint_gradients(model)
        sampler = SimilarLengthSampler(lengths, args.per_device_train_batch_size,
                                       args.gradient_accumulation_steps, self.num_processes,
                                       self.rank, args.seed)
        patience = args.early_stopping_patience
        trainer = ExactTrainer(model=model, args=training, run=self, sampler=sampler, score=score,
                               tokenizer=tokenizer,
                               callbacks=[EarlyStoppingCallback(patience)] if patience else None,
                               **how)
        self.say(f"Updates     {trainer.max_steps:,}, {sampler.updates_in(0):,} an epoch, with "
                 f"{sampler.global_batch} windows each (processes {self.num_processes} x batch "
                 f"{sampler.batch_size} x accumulation {sampler.accumulation_steps}); "
                 f"{sampler.padding():.1%} of the tokens are padding")
        self.start_trackers()
        if self.is_main:  # only now that nothing is left to go wrong
            clear_output(self.folder, self.step, args.overwrite_output_dir)
        return trainer, run_trainer(trainer)


def vocabulary_of(tokenizer):
    """Tell a vocabulary apart from others, in words."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return f"{len(tokenizer):,} tokens ({hashlib.sha256(words.encode()).hexdigest()[:12]})"


def add_up(processes, *arrays):
    """Add up arrays of numbers over all processes, each in its place."""
    for numbers in arrays if processes.group is not None else ():
        torch.distributed.all_reduce(torch.from_numpy(numbers), group=processes.group)


def renew_head(model, note):
    """Start the head of a model at random, as its weights are for other labels: the note on it.

    Args:
        note: as load_model gives it; what it says of the vocabulary stays.
    """
    parts = {name: module for name, module in model.named_modules()
             if isinstance(module, torch.nn.Linear) and module.out_features
             == model.config.num_labels and not name.startswith(model.base_model_prefix)}
    for part in parts.values():  # those of the same shape as the weights of other labels, too
        torch.nn.init.normal_(part.weight, std=getattr(model.config, "initializer_range", 0.02))
        if part.bias is not None:
            torch.nn.init.zeros_(part.bias)
    _, *growth = note.split("; ")
    fate = f"these parts start at random, as its own are for other labels: {', '.join(parts)}"
    return "; ".join([fate, *growth])


class QuickDropout(torch.nn.Dropout):
    """Dropout that takes four decisions out of each random number.

    On a CPU, to draw them takes a tenth of an update. The share that is dropped is a multiple of
    1/65536. On other devices it is what it is in torch.
    """

    def forward(self, inputs):
        level = round(self.p * 65536)
        if not self.training or inputs.device.type != "cpu" or not 0 < level < 65536:
            return super().forward(inputs)
        numbers = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.int16)[: inputs.numel()].view(inputs.shape) >= level - 32768
        return inputs * kept.to(inputs.dtype).mul_(65536 / (65536 - level))


def quicken_dropout(model, on_cpu):
    """Have all modules of a model that drop out do so quickly, and its attention fit that."""
    if on_cpu:  # with dropout, torch's fused attention falls back to what the plain one does
        model.set_attn_implementation("eager")
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = QuickDropout


# ==== run_ner.py ====


if __name__ == "__main__":
    run_main(main)
