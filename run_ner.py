# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "transformers>=5.23", "accelerate>=1.15", "datasets>=5.2", "evaluate>=0.4.6",
#                 "seqeval>=1.2.2", "numpy>=2.4", "pyarrow>=26.0", "huggingface-hub>=2.4", "PyYAML>=6.0", "tqdm>=4.67",
#                 "matplotlib>=3.11", "wandb>=0.31"]
# ///
"""Train a model to find names in text (named entity recognition), and report precision, recall and F1.

    accelerate launch run_ner.py --model bert-base-cased --train_file train.conll --validation_file dev.conll
    accelerate launch run_ner.py --model outputs/ner --test_file test.conll
    accelerate launch run_ner.py --model outputs/ner --text "Ada Lovelace was born in London."

Reads tagged sentences: CoNLL (a word a line, its tag last), .jsonl (tokens and ner_tags, or text and character spans),
.csv with the columns Sentence and Tag, each also as .gz, or a data set of the Hub; tags in IOB1, IOB2 or BIOES. Writes
to --output_dir: the model and tokenizer, all_results.json (eval_f1 and the like by conlleval's rules, eval_strict_f1
by the scheme's), predictions.conll and predictions.jsonl, log.jsonl, a picture of what was taken for what, checkpoints
and a model card. Every word gets one prediction and counts, however long its sentence is.

Source: Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419/; Devlin et al. 2018, section 5.3,
https://arxiv.org/abs/1810.04805
"""

import argparse
import ast
import copy
import csv
import ctypes
import dataclasses
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
import unicodedata
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

try:
    import datasets
    import evaluate
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
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration, send_to_device, set_seed
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
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
    from transformers.hf_argparser import HfArg
    from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback, TrainerState
except ImportError as error:
    print(f"run_ner.py: error: {error}. Install what it needs: pip install torch transformers accelerate datasets "
          "evaluate seqeval numpy pyarrow huggingface-hub PyYAML tqdm matplotlib wandb", file=sys.stderr)
    sys.exit(2)

DEFAULT_DATASET = "lhoestq/conll2003"  # taken where no data are named, so that a bare call runs


# ---------------------------------------------------------------- arguments


@dataclass
class ModelArguments:
    _argument_group_name = "model"
    model: str = HfArg(default="bert-base-uncased", aliases=["--model_name_or_path"], help="Hub name or folder")
    tokenizer_name: str | None = HfArg(default=None, help="Hub name or folder of the tokenizer (default: the model's)")
    model_revision: str = HfArg(default="main", help="branch, tag or commit on the Hub")
    from_scratch: bool = HfArg(default=False, help="the model's config alone, with random weights")
    config_overrides: str | None = HfArg(default=None, help="config settings to change, as hidden_dropout_prob=0; for "
                                                            "pretrained models too")
    trust_remote_code: bool = HfArg(default=False, help="run code that comes with the model")
    freeze_embeddings: bool = HfArg(default=False, help="leave the embeddings as they are")
    freeze_layers: int = HfArg(default=0, help="leave so many layers as they are, counted from the embeddings on")


@dataclass
class DataArguments:
    _argument_group_name = "data"
    dataset_name: str | None = HfArg(default=None, help=f"Hub name or folder (default: {DEFAULT_DATASET} where no file "
                                                        "is given)")
    dataset_config_name: str | None = HfArg(default=None, help="configuration of that data set")
    train_file: list[str] | None = HfArg(default=None, help="files or globs to train on")
    validation_file: list[str] | None = HfArg(default=None, help="files or globs to evaluate on")
    test_file: list[str] | None = HfArg(default=None, help="files or globs to label at the end, with tags or without")
    text: str | None = HfArg(default=None, help="label this text, at the end; without data, that is all")
    text_column_name: str | None = HfArg(default=None, help="column of the words (default: tokens, Sentence or text)")
    label_column_name: str | None = HfArg(default=None, help="column of the tags (default: ner_tags, tags or Tag)")
    label_list: list[str] | None = HfArg(default=None, help="all tags, in order, as O B-PER I-PER (default: those of "
                                                            "the data, or of a model that is not trained)")
    on_bad_row: str = HfArg(default="error", metadata={"choices": ["error", "skip"]}, help="a faulty sentence ends the "
                            "run, or goes to skipped_rows.jsonl")
    validation_split_percentage: float = HfArg(default=10, help="percent of the training sentences to evaluate on "
                                               "where there are no validation data, the same for every seed; 0 is none")
    max_seq_length: int = HfArg(default=128, help="tokens per window, [CLS] and [SEP] too; a longer sentence is cut "
                                                  "into overlapping windows, of which none of its words is lost")
    stride: int | None = HfArg(default=None, help="tokens that two windows of a sentence share (default: a quarter of "
                                                  "--max_seq_length)")
    label_all_tokens: bool = HfArg(default=False, help="train on all tokens of a word, and not on its first alone")
    max_train_samples: int | None = HfArg(default=None, help="train on a random sample of so many sentences")
    max_eval_samples: int | None = HfArg(default=None, help="the same for evaluation")
    max_predict_samples: int | None = HfArg(default=None, help="the same for test data")
    preprocessing_num_workers: int | None = HfArg(default=None, help="processes that tokenize (default: 1)")
    overwrite_cache: bool = HfArg(default=False, help="prepare the data anew even where the cache holds them")
    constrained_decoding: bool = HfArg(default=True, help="choose the best sequence of tags that the scheme allows")
    class_weights: str | None = HfArg(default=None, help="weights of types in the loss, as PER=2,LOC=1,O=0.5, 1 for "
                                      "those not named; or balanced: each label as if all were equally frequent")
    unlabeled_file: list[str] | None = HfArg(default=None, help="files or globs for pseudo-labelling: a text a line in "
                                             ".txt; any other layout as above, whose tags are not read")
    pseudo_label_rounds: int = HfArg(default=1, help="times to label --unlabeled_file and train anew with it")
    pseudo_label_threshold: float = HfArg(default=0.9, help="keep a sentence if all words have this probability")


@dataclass
class NerArguments(TrainingArguments):
    _argument_group_name = "training and output: all of transformers.TrainingArguments, and"
    output_dir: str | None = HfArg(default="outputs/ner", help="folder for all that a run leaves behind")
    overwrite_output_dir: bool = HfArg(default=False, help="train although a model or checkpoints lie there, and "
                                                           "replace them")
    per_device_train_batch_size: int = HfArg(default=16, help="windows per process and pass")
    per_device_eval_batch_size: int = HfArg(default=16, help="the same in evaluation")
    mixed_precision: str = HfArg(default="auto", metadata={"choices": ["auto", "no", "bf16", "fp16"]}, help="auto: as "
                                 "the launcher says, else bf16 where the hardware computes it natively; no: float32")
    cpu_threads: int | None = HfArg(default=None, help="torch threads per process (default: physical cores / "
                                                       "processes)")
    eval_strategy: str = HfArg(default="epoch", help="when to evaluate: no, steps or epoch")
    save_strategy: str = HfArg(default="epoch", help="when to save: no, steps or epoch")
    save_total_limit: int | None = HfArg(default=2, help="checkpoints that are kept")
    load_best_model_at_end: bool | None = HfArg(default=None, metadata={"nargs": "?", "const": True}, help="keep the "
                                                "model with the best --metric_for_best_model (default: where it can be "
                                                "told)")
    metric_for_best_model: str | None = HfArg(default="f1", help="what tells the best model")
    early_stopping_patience: int | None = HfArg(default=None, help="stop after so many evaluations without a better "
                                                                   "model")
    logging_steps: float = HfArg(default=10, help="updates between two lines of the log, or below 1 a share of all")
    logging_nan_inf_filter: bool = HfArg(default=False, help="leave losses that are no number out of the log")
    restore_callback_states_from_checkpoint: bool = HfArg(default=True, help="go on counting for early stopping")
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="look for weights without a gradient")
    report_to: list[str] | None = HfArg(default_factory=lambda: ["none"], help="trackers: wandb, trackio, tensorboard")
    run_name: str | None = HfArg(default=None, help="name in the trackers (default: --output_dir)")
    resume_from_checkpoint: str | None = HfArg(default=None, metadata={"nargs": "?", "const": "latest"}, help="go on "
                                               "from a checkpoint: latest, the newest whole one in --output_dir, or a "
                                               "folder")


class Parser(HfArgumentParser):
    def error(self, message):  # argparse would print its usage, once for each process
        ArgumentParser.error(self, message)


def parse_args(argv=None):
    """Parse the command line: a Namespace with the flags of all three groups, checked."""
    parser = Parser((ModelArguments, DataArguments, NerArguments), description=__doc__.partition("\n")[0],
                    allow_abbrev=False, formatter_class=HelpFormatter)
    parser.add_argument("--config", metavar="RUN.yaml", help="YAML file of flags; flags typed beside it win")
    args = parse_with_config(parser, argv)
    check_args(args, parser)
    return args


def check_args(args, parser):
    """Find settings that cannot work before anything is loaded, and fill in those that depend on others."""
    args.stride = args.max_seq_length // 4 if args.stride is None else args.stride
    bounds = {"max_seq_length": (3, math.inf, "3 or more: [CLS], one token and [SEP]"),
              "stride": (0, args.max_seq_length - 3, f"0 to {args.max_seq_length - 3}, less than a window holds"),
              "validation_split_percentage": (0, 99, "0 to 99"), "pseudo_label_threshold": (0, 1, "0 to 1"),
              "freeze_layers learning_rate weight_decay max_grad_norm warmup_steps dataloader_num_workers": (
                  0, math.inf, "0 or more"), "seed": (0, 2**32 - 1, "0 to 4294967295"),
              "num_train_epochs logging_steps": (1e-9, math.inf, "more than 0"),
              "label_smoothing_factor": (0, math.nextafter(1, 0), "0 or more, and less than 1"),
              "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps save_total_limit "
              "cpu_threads max_train_samples max_eval_samples max_predict_samples preprocessing_num_workers "
              "pseudo_label_rounds early_stopping_patience": (1, math.inf, "1 or more")}
    for names, (low, high, expected) in bounds.items():
        for name in names.split():
            value = getattr(args, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                parser.error(f"--{name} is {value}; expected {expected}")
    refuse_flags(args, parser)
    if args.resume_from_checkpoint and args.overwrite_output_dir:
        parser.error("--overwrite_output_dir would remove what --resume_from_checkpoint goes on with; give one of them")
    args.report_to = sorted({*args.report_to} - {"none"})
    for package in args.report_to:
        if package not in ("wandb", "trackio", "tensorboard"):
            parser.error(f"--report_to {package}: expected none, wandb, trackio or tensorboard")
        if not importlib.util.find_spec(package):  # nothing would be logged, and nothing said
            parser.error(f"--report_to {package}: the package is not installed; pip install {package}")
    given = [name for name in ("bf16", "fp16") if getattr(args, name)]
    if (given and args.mixed_precision != "auto") or len(given) > 1:
        parser.error(f"--mixed_precision {args.mixed_precision} and --{' and --'.join(given)} were given; expected one "
                     "of them")
    args.mixed_precision = given[0] if given else args.mixed_precision
    files, todo = args.train_file or args.validation_file or args.test_file, args.do_train or args.do_eval
    if args.text is not None and not args.text.strip():
        parser.error("--text is empty; give a text")
    if re.search("[\ud800-\udfff]", args.text or ""):
        parser.error("--text is not UTF-8; give it in the encoding of the terminal")
    if files and args.dataset_name:
        parser.error("--dataset_name and files were given; expected one of the two")
    if not files and not args.dataset_name and (todo or args.do_predict or args.text is None):
        args.dataset_name = DEFAULT_DATASET
    if not (todo or args.do_predict):
        args.do_train = bool(args.train_file or args.dataset_name)
        args.do_eval = bool(args.train_file or args.validation_file or args.dataset_name)
        args.do_predict = None if args.dataset_name else bool(args.test_file)  # None: if the data set has a test split
    elif args.do_predict and args.test_file is None and not args.dataset_name:
        parser.error("--do_predict has no sentences to label: give --test_file")
    if args.do_train and not (args.train_file or args.dataset_name):
        parser.error("--do_train has nothing to train on: give --train_file or --dataset_name")
    if args.unlabeled_file and not args.do_train:
        parser.error("--unlabeled_file is for training: give --train_file, too")
    scores = ("f1", "strict_f1", "precision", "recall", "accuracy", "loss")
    if str(args.metric_for_best_model).removeprefix("eval_") not in scores:
        parser.error(f"--metric_for_best_model {args.metric_for_best_model}: expected one of {', '.join(scores)}")
    if args.early_stopping_patience and args.eval_strategy == "no":
        parser.error("--early_stopping_patience needs scores: give --eval_strategy epoch or steps")
    if args.unlabeled_file and args.resume_from_checkpoint not in (None, "latest"):
        parser.error("--resume_from_checkpoint takes latest where there is --unlabeled_file, as each round has its own")
    args.run_name = args.run_name or args.output_dir


# ---------------------------------------------------------------- reading tagged sentences


def find_words(text):
    """Find the words of a text, by white space and punctuation: a list of (start, end), in characters.

    Each punctuation mark or symbol, such as an emoji, is a word of its own. What modifies a character (a combining
    mark, a variation selector, a skin tone) stays with the one before it, and a zero-width joiner joins two.
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
    """Tag the words of a text that spans lie on, in IOB2: (tags, list of those widened to whole words).

    Args:
        text: the text. words: (start, end) of each word. spans: list of (start, end, label), in characters, end not
            included. place: where it stands, for messages.

    Raises:
        InputError: a span lies outside the text, has no word in it, or overlaps another.
    """
    tags, widened = ["O"] * len(words), []
    for start, end, label in sorted(spans, key=lambda span: span[:2]):
        if not 0 <= start < end <= len(text):
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] lies outside the text of {len(text)} "
                             "characters, or is empty. Expected 0 <= start < end, the end not included.")
        inside = [n for n, (first, last) in enumerate(words) if first < end and last > start]
        if not inside:
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] holds white space alone. Take it out.")
        if any(tags[n] != "O" for n in inside):
            raise InputError(f"{place}: the span [{start}, {end}, {label!r}] ({text[start:end][:40]!r}) overlaps "
                             "another. A word has one tag: take one of the two out.")
        for n in inside:
            tags[n] = f"{'B' if n == inside[0] else 'I'}-{label}"
        found = (words[inside[0]][0], words[inside[-1]][1])
        if found[0] < start or found[1] > end:  # white space around a span does no harm
            widened.append({"place": place, "label": label, "span": [start, end], "text": text[start:end],
                            "widened_to": list(found), "widened_text": text[found[0] : found[1]]})
    return tags, widened


def read_spans(row, place):
    """Read the spans of a row of .jsonl, under `entities` or `label`: a list of (start, end, label).

    As [start, end, label], or as an object with start, end and label; doccano and Label Studio write start_offset,
    end_offset and labels. InputError for anything else.
    """
    spans, found = [], row["entities"] if row.get("entities") is not None else row.get("label") or []
    for span in found if isinstance(found, list | tuple) else [found]:
        if isinstance(span, dict):
            labels = span.get("labels")
            span = [span.get("start", span.get("start_offset")), span.get("end", span.get("end_offset")),
                    span.get("label", labels[0] if isinstance(labels, list) and len(labels) == 1 else labels or None)]
        if not (isinstance(span, list | tuple) and len(span) == 3 and all(type(x) is int for x in span[:2])
                and isinstance(span[2], str) and span[2].strip()):
            found = json.dumps(span, default=str)[:60]
            raise InputError(f"{place}: expected spans as [start, end, label], found {found}")
        spans.append(tuple(span))
    return spans


def read_conll(path, on_fault):
    """Read tagged words, one a line: yields (place, dict of tokens, tags and after_docstart) for each sentence.

    The first column is the word, the last its tag, by tabs or blanks; a blank line, or one of white space, ends a
    sentence. `-DOCSTART-` begins a document. A file of one column has no tags: they are None.

    on_fault is called with place and InputError of a sentence with a line of one column in a file that has tags, or of
    several in one that has none.
    """
    columns = fault = None
    tokens, tags, start, docstart = [], [], 1, False
    for first, lines in read_lines(path):
        for number, line in enumerate(lines, first):
            cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            is_break = not line.strip() or cells[0] == "-DOCSTART-"
            if is_break and tokens:
                if fault:
                    on_fault(f"{path}, line {start}", fault)
                else:
                    yield f"{path}, line {start}", {"tokens": tokens, "tags": tags if columns > 1 else None,
                                                    "after_docstart": docstart}
                    docstart = False
                tokens, tags, fault = [], [], None
            if is_break:
                docstart = docstart or bool(line.strip())
                continue
            columns = columns or len(cells)
            if len(cells) == 1 != columns or columns == 1 != len(cells):
                expected = "2 columns or more (word, …, tag)" if columns > 1 else "1 column, as in the lines before"
                fault = fault or InputError(
                    f"{path}, line {number}: expected {expected}, found {len(cells)} in {line[:40]!r}. Put one tab "
                    "between word and tag, and an empty line between sentences.")
            start = start if tokens else number
            tokens.append(cells[0])
            tags.append(cells[-1])
    if fault:
        on_fault(f"{path}, line {start}", fault)
    elif tokens:
        yield f"{path}, line {start}", {"tokens": tokens, "tags": tags if columns > 1 else None,
                                        "after_docstart": docstart}


def read_tagged_row(row, place, text_column, label_column, names):
    """Read a sentence out of a row of a table: dict of tokens and tags, with text and offsets where it has spans.

    Args:
        row: dict of column to value. text_column, label_column: names to use instead of `tokens` and `ner_tags` or
            `Sentence` and `Tag`. names: the tags by number, where the row has numbers; or None.

    Returns:
        dict of tokens, tags (None where it has none), and of text, offsets and widened where words were found in text.

    Raises:
        InputError: there is no such column, or tokens and tags do not fit each other.
    """
    for flag, name in (("--text_column_name", text_column), ("--label_column_name", label_column)):
        if name and name not in row:
            raise InputError(f"{place}: {flag} {name}: there is no such column; the columns are {', '.join(row)}")
    text_name = text_column or next((name for name in ("tokens", "Sentence", "text") if name in row), "tokens")
    if text_name not in row:
        raise InputError(f"{place}: there is no column of words; the columns are {', '.join(map(str, row))}. Expected "
                         "tokens and ner_tags, or Sentence and Tag, or text and entities; or name them with "
                         "--text_column_name and --label_column_name.")
    value = row[text_name]
    label_name = label_column or next((name for name in ("ner_tags", "tags", "Tag") if name in row), None)
    if isinstance(value, str) and text_name != "Sentence" and (label_name is None or label_name not in row):
        words = find_words(value)
        found = {"tokens": [value[start:end] for start, end in words], "tags": None, "text": value, "offsets": words,
                 "widened": []}
        if "entities" in row or "label" in row:
            found["tags"], found["widened"] = tag_spans(value, words, read_spans(row, place), place)
        return found
    tokens = value.split() if isinstance(value, str) else value
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{place}: expected a list of words in column {text_name!r}, found {str(value)[:40]!r}")
    tags = row.get(label_name) if label_name else None
    if isinstance(tags, str):
        try:
            tags = ast.literal_eval(tags)  # a literal: nothing in it can run
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise InputError(f"{place}: expected a list of tags such as ['O', 'B-PER'] in column {label_name!r}, found "
                             f"{row[label_name][:60]!r}") from None
    if tags is not None and not isinstance(tags, list):
        raise InputError(f"{place}: expected a list of tags in column {label_name!r}, found {str(tags)[:40]!r}")
    if tags is not None and len(tags) != len(tokens):
        raise InputError(f"{place}: {len(tokens)} words, but {len(tags)} tags, in {' '.join(tokens)[:60]!r}. Each word "
                         "needs one tag.")
    if any(type(tag) is int for tag in tags or ()):
        if names is None or not all(type(tag) is int and 0 <= tag < len(names) for tag in tags):
            raise InputError(f"{place}: tags are numbers ({str(tags)[:40]}), without the names for them. Name them all "
                             "in order with --label_list, as in --label_list O B-PER I-PER.")
        tags = [names[tag] for tag in tags]
    return {"tokens": tokens, "tags": tags}


def check_tagged(row, place):
    """Raise InputError where a sentence has a tag of no scheme, or half a character in it."""
    bad = next(([tag] for tag in row["tags"] or () if not is_tag(tag)), None)
    if bad:
        raise InputError(f"{place}: {str(bad[0])[:40]!r} is no tag of a scheme that is known (IOB1, IOB2, BIOES), in "
                         f"{' '.join(row['tokens'])[:60]!r}. Expected O, or B-, I-, E- or S- and a type, as B-PER; "
                         "where single words have U- and last ones L-, write S- and E-.")
    broken = next((token for token in row["tokens"] if re.search("[\t\n\r]", token)), None)
    if broken is not None:
        raise InputError(f"{place}: a word with a tab or a line break in it, {broken[:40]!r}, which a column cannot "
                         "hold. Split it, or take the white space out.")
    if any(re.search("[\ud800-\udfff]", token) for token in row["tokens"]):
        raise InputError(f"{place}: half a character (a lone surrogate, such as a cut-off emoji leaves). Expected "
                         "Unicode text; take it out of the file.")


def read_tagged(path, text_column, label_column, names, on_fault):
    """Read sentences, with tags or without: yields dicts of place, tokens, tags and what else the layout has.

    Tables (.jsonl, .json, .csv, .parquet; .tsv with a header of such columns) are read by read_tagged_row, any other
    file by read_conll; all also as .gz. A sentence without words is left out.

    on_fault is called with place and InputError of each row that is at fault.
    """
    readers = {".jsonl": read_json, ".json": read_json, ".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet}
    reader = readers.get(os.path.splitext(path.lower().removesuffix(".gz"))[1])
    if path.lower().removesuffix(".gz").endswith(".tsv"):
        header = next((lines[0].split("\t") for _, lines in read_lines(path)), [])
        of_words = {text_column, "tokens", "Sentence", "text"} & {*header}
        reader = reader if of_words and not any(map(is_tag, header)) else None
    if reader is None:
        rows = read_conll(path, on_fault)
    else:
        rows = reader(path) if reader is read_parquet else reader(path, on_fault)
    for place, row in rows:
        try:
            row = row if reader is None else read_tagged_row(row, place, text_column, label_column, names)
            check_tagged(row, place)
        except InputError as fault:
            on_fault(place, fault)
        else:
            if row["tokens"]:
                yield {"place": place, **row}


def is_tag(tag):
    return isinstance(tag, str) and (tag == "O" or re.fullmatch(r"[BIES]-\S[^\t\n\r]*", tag) is not None)


def find_scheme(sentences):
    """Recognise the scheme of tags: ("IOB1", "IOB2" or "BIOES"; how many tags do not follow it).

    Where no entity ends in E- or is an S-, entities that begin with I- are held against those that begin with B-, of
    entities that do not follow one of their own type, where both schemes write B-.

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
    faults = sum(a != b for tags in sentences for a, b in zip(tags, write_tags(tags, scheme), strict=True))
    return scheme, faults


def write_tags(tags, scheme):
    """Write the entities that conlleval reads from tags in a scheme, so that what was at fault no longer is.

    Args:
        tags: list of tags of a sentence, in any scheme. scheme: "IOB1", "IOB2" or "BIOES".

    Source: Tjong Kim Sang and Buchholz 2000, https://aclanthology.org/W00-0726/, whose conlleval decides where an
    entity begins and ends; Ratinov and Roth 2009, https://aclanthology.org/W09-1119/, for BIOES.
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


def find_rows(args, on_fault):
    """Find the sentences: (dict of split to (list of dicts as read_tagged yields, name), names of a data set's tags).

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
            class_names = class_names or names_of_tags(loaded[split].features, args.label_column_name)
            tag_names = names_of_tags(loaded[split].features, args.label_column_name) or args.label_list
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
            if split == "unlabeled" and path.lower().removesuffix(".gz").endswith(".txt"):
                lines = ((f"{path}, line {n}", line.strip()) for first, batch in read_lines(path)
                         for n, line in enumerate(batch, first))
                rows += [{"place": place, **read_tagged_row({"text": line}, place, None, None, None)}
                         for place, line in lines if line]
            else:
                rows += read_tagged(path, *columns, args.label_list, on_fault)
        name = os.path.basename(paths[0]) + (f" and {len(paths) - 1} more files" if paths[1:] else "")
        if not rows:
            raise InputError(f"{', '.join(paths[:3])}: there is no sentence in it. Expected a word a line with its "
                             "tag, or a table with a row for each sentence.")
        found[split] = rows, name
    return found, class_names


def names_of_tags(features, label_column):
    """Names of a data set's tags where it has numbers for them (ClassLabel), else None."""
    for name in (label_column,) if label_column else ("ner_tags", "tags"):
        names = getattr(getattr(features.get(name), "feature", None), "names", None)
        if names:
            return names
    return None


def prepare_rows(args, output_dir, say):
    """Read what the run needs: (dict of split to (sentences, name), names of a data set's tags, or None).

    Sentences that are at fault end the run, or go to skipped_rows.jsonl (--on_bad_row skip).
    """
    skipped = []

    def on_fault(place, fault):
        if args.on_bad_row == "error":
            raise fault
        skipped.append({"place": place, "reason": str(fault)})

    try:
        found, class_names = find_rows(args, on_fault)
    except InputError as error:
        left_out = f" Left out as faulty: {len(skipped):,}, the first {skipped[0]['reason']}" if skipped else ""
        raise InputError(f"{error}{left_out}") from None
    for split in ("train", "validation", "test"):
        rows = found.get(split, ([], ""))[0]
        for row in rows if split != "test" or any(row["tags"] is not None for row in rows) else ():
            if row["tags"] is None:
                raise InputError(f"{row['place']}: there are no tags, in {' '.join(row['tokens'])[:60]!r}. Data to "
                                 "train on or to evaluate on need a tag for each word; a --test_file may have none, "
                                 "but then in no sentence.")
    args.do_predict = "test" in found if args.do_predict is None else args.do_predict
    tasks = {"train": args.do_train, "validation": args.do_eval, "test": args.do_predict}
    parts, sources = {}, {split: rows for split, rows in found.items() if split != "unlabeled"}
    if any(tasks.values()):
        parts = choose_parts(sources, args.validation_split_percentage, tasks, args.load_best_model_at_end)
    if args.load_best_model_at_end is None:
        args.load_best_model_at_end = args.do_train and args.save_strategy == args.eval_strategy != "no"
    data, samples = {}, {"train": args.max_train_samples, "validation": args.max_eval_samples,
                         "test": args.max_predict_samples}
    for split, ((rows, name), (which, percent)) in parts.items():
        order = np.random.default_rng(0).permutation(len(rows))  # by row number alone: every seed has the same rows
        drawn = max(1, round(len(rows) * percent / 100)) if which != "all" else 0
        if drawn >= len(rows) > 0 and which != "all":
            raise InputError(f"{name}: it has {len(rows)} sentence, too few to set one apart for evaluation. Give "
                             "--validation_file, or --validation_split_percentage 0.")
        order = {"all": np.arange(len(rows)), "drawn": order[:drawn], "rest": order[drawn:]}[which]
        if samples[split]:
            seed = args.seed if split == "train" else 0
            order = order[np.random.default_rng((seed, 1)).permutation(len(order))[: samples[split]]]
        data[split] = [rows[n] for n in np.sort(order)], name
    if "unlabeled" in found:
        rows, name = found["unlabeled"]
        data["unlabeled"] = [row | {"tags": None} for row in rows], name
    if int(os.environ.get("RANK", 0)) == 0:
        widened = [place for rows, _ in data.values() for row in rows for place in row.get("widened", ())]
        for file, lines, words in (("skipped_rows.jsonl", skipped, "faulty sentences are left out"),
                                   ("widened_spans.jsonl", widened, "spans cut a word, and are read as whole words")):
            Path(output_dir, file).unlink(missing_ok=True)  # that of an earlier run
            if lines:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                Path(output_dir, file).write_text(text, encoding="utf-8", errors="backslashreplace")
                say(f"  Careful:  {len(lines):,} {words}; they are listed in {Path(output_dir, file)}")
    return data, class_names


def unify_tags(data, scheme, say):
    """Bring the tags of all splits into one scheme, that of the first split where it is None: that scheme.

    Where tags break the rules of their own scheme, as an I-PER after an O does in IOB2, their entities are read by
    conlleval's rules, which begins one there; how many is said.
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
            say(f"  Careful:  {faults:,} tags of the {split} data do not follow {own}, such as an I- that begins an "
                f"entity; read as conlleval reads them, B-, first in {first['place']}")
        for row in tagged:
            row["tags"] = write_tags(row["tags"], scheme)
        say(f"Tags        {split}: {said}")
    return scheme


def choose_labels(data, label_list, model_labels, class_names, trains, say):
    """Choose the labels, a list of tags: --label_list, those of a model that is only used, or those of the data.

    Those of the data are the names of a data set's tags where it has them, or else all that stand in the training and
    validation data, O first.

    Args:
        data: dict of split to (sentences, name). label_list: --label_list or None. model_labels: those that the model
            was trained with, in its order, or None. class_names: of a data set, or None. trains: it is to be trained.

    Raises:
        InputError: tags of the data are not among --label_list, or not among those of a model that is only used.
    """
    counts = {split: Counter(tag for row in rows for tag in row["tags"] or ()) for split, (rows, _) in data.items()}
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
            raise InputError(f"{place}: tags that are not among those of {whose}: {', '.join(unknown)}; these are "
                             f"{', '.join(labels)}. {advice}")
    elif class_names and {*labels} <= {*class_names}:
        labels = class_names
    if trains and not label_list and model_labels and {*model_labels} == {*labels}:
        labels = model_labels  # its head is trained already, in this order
    for split in ("validation", "test"):
        for tag in sorted({*counts.get(split, ())} - {*counts["train"]}) if trains else ():
            place = next(row["place"] for row in data[split][0] if tag in (row["tags"] or ()))
            say(f"  Careful:  {tag} is not in the training data, but {counts[split][tag]:,} times in the {split} data, "
                f"first in {place}")
    return labels


# ---------------------------------------------------------------- words, tokens and windows


def tokenize_words(sentences, spaced, tokenizer):
    """Tokenize words one by one: for each sentence a list of lists of ids, none of them empty.

    Args:
        sentences: lists of words. spaced: for each word, whether a blank stands before it, which matters to byte-level
            vocabularies. tokenizer: the model's own. A word of which it makes nothing becomes its unknown token.
    """
    texts = [[" " * blank + word for word, blank in zip(words, blanks, strict=True)]
             for words, blanks in zip(sentences, spaced, strict=True)]
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(texts)))
    ids = tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"] if distinct else []
    unknown = tokenizer.mask_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    table = {text: row or [unknown] for text, row in zip(distinct, ids, strict=True)}
    return [[table[text] for text in row] for row in texts]


def cut_windows(lengths, room, stride):
    """Cut a sentence into windows of whole words: list of (first word, end, first word of its own, end of its own).

    Each word is predicted in one window, its own: of those that hold it, the one in which the side with less context
    has most. The start and the end of the sentence cut off no context.

    Args:
        lengths: tokens of each word, int array of shape (words,); a word of more than `room` counts as `room`.
        room: tokens in a window, without special ones. stride: tokens that two windows share, less than room.
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
        start = max(start + 1, int(np.searchsorted(begins, ends[end - 1] - stride, side="right")) - 1)
        start = min(start, end)
    context = np.full((len(windows), len(lengths)), -1.0)
    for n, (first, last) in enumerate(windows):
        left = begins[first:last] - begins[first] if first else np.inf
        right = ends[last - 1] - ends[first:last] if last < len(lengths) else np.inf
        context[n, first:last] = np.minimum(left, right)
    own = context.argmax(axis=0) if windows else np.zeros(0, int)  # (words,)
    return [(first, last, *(int(n) for n in np.searchsorted(own, [n, n + 1]))) for n, (first, last) in
            enumerate(windows)]


def align(batch, numbers, tokenizer, edges, label_ids, max_seq_length, stride, label_all_tokens):
    """Make windows of sentences, for `Dataset.map`.

    Args:
        batch: lists of `tokens`, `spaced` and `tags` (None without). numbers: that of each sentence.
        edges: ids of [CLS] and [SEP]. label_ids: dict of tag to number; another tag is not predicted.
        label_all_tokens: the tokens after the first of a word get its label, too, I- instead of B-.

    Returns:
        dict of lists, an entry for each window: input_ids and labels (-100 where nothing is predicted), lists of equal
        length; positions, that of the first token of each word of its own; sentence, its number.
    """
    rows = {"input_ids": [], "labels": [], "positions": [], "sentence": []}
    tokenized = tokenize_words(batch["tokens"], batch["spaced"], tokenizer)
    for number, words, tags in zip(numbers, tokenized, batch["tags"], strict=True):
        room = max_seq_length - 2
        for first, last, own, own_end in cut_windows(np.array([len(ids) for ids in words]), room, stride):
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


def make_windows(sentences, tokenizer, labels, max_seq_length, stride, label_all_tokens, num_proc=None,
                 overwrite=False, in_memory=False):
    """Make the windows of sentences, or find them in the cache, by content: a Dataset with the columns of align.

    in_memory: nothing is written, as for what is only asked.
    """
    settings = {"edges": edge_ids(tokenizer), "label_ids": {tag: n for n, tag in enumerate(labels)},
                "max_seq_length": max_seq_length, "stride": stride, "label_all_tokens": label_all_tokens}
    rows = {"tokens": [], "spaced": [], "tags": []}
    for sentence in sentences:
        ends = [0, *(end for _, end in sentence.get("offsets", ()))]
        rows["tokens"].append(sentence["tokens"])
        rows["spaced"].append([start > end for (start, _), end in zip(sentence["offsets"], ends, strict=False)]
                              if "offsets" in sentence else [n > 0 for n in range(len(sentence["tokens"]))])
        rows["tags"].append(sentence["tags"])
    numbers = datasets.List(datasets.Value("int32"))
    made_kinds = datasets.Features({"input_ids": numbers, "labels": numbers, "positions": numbers,
                                    "sentence": datasets.Value("int64")})
    if in_memory:
        return datasets.Dataset.from_dict(align(rows, range(len(sentences)), tokenizer, **settings), made_kinds)
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
    return datasets.Dataset.from_dict(rows, kinds).map(
        align, batched=True, with_indices=True, remove_columns=list(rows), num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, **settings}, desc="Tokenizing", new_fingerprint=key,
        cache_file_name=str(made), load_from_cache_file=False, features=made_kinds)


def lengths_of(windows):
    """Count the tokens of each window, without Python lists of them: int64, (windows,)."""
    return pa.compute.list_value_length(windows.data["input_ids"]).to_numpy().astype(np.int64)


class TagCollator:
    """Makes batches of windows, given their numbers, padded to the longest.

    Args:
        windows: Dataset of input_ids and labels, as align makes them. pad_id: id of the padding.
        edges: ids of [CLS] and [SEP], of which the batch consists where there are no windows for a process.
    """

    def __init__(self, windows, pad_id, edges):
        self.windows, self.pad_id, self.edges = windows.select_columns(["input_ids", "labels"]), pad_id, edges

    def __call__(self, numbers):
        """Make a batch of the windows of these numbers: input_ids, attention_mask and labels, (batch, seq).

        Without numbers, as the last global batch can leave a process, it is one row in which nothing is predicted.
        """
        rows = self.windows[numbers] if numbers else {"input_ids": [self.edges], "labels": [[-100, -100]]}
        ids = [np.array(row, dtype=np.int64) for row in rows["input_ids"]]
        return {"input_ids": pad(ids, self.pad_id), "attention_mask": pad([np.ones_like(row) for row in ids], 0),
                "labels": pad([np.array(row, dtype=np.int64) for row in rows["labels"]], -100)}


# ---------------------------------------------------------------- predictions and scores


def allowed_moves(labels, scheme):
    """Which tags may stand where: bool arrays of those that may begin, (labels,), follow, (labels, labels), and end.

    Args:
        labels: the tags. scheme: "IOB1", "IOB2" or "BIOES"; None allows all.
    """
    prefixes, kinds = np.array([tag[0] for tag in labels]), np.array([tag[2:] for tag in labels])
    everywhere = np.ones(len(labels), dtype=bool)
    if scheme is None:
        return everywhere, np.ones((len(labels), len(labels)), dtype=bool), everywhere
    same, inside = kinds[:, None] == kinds[None, :], np.isin(prefixes, ["B", "I"])  # (labels, labels), (labels,)
    if scheme == "BIOES":  # B and I go on, with I or E of their own type; after all others something new begins
        goes_on = np.isin(prefixes, ["I", "E"])
        return ~goes_on, np.where(inside[:, None], same & goes_on[None, :], ~goes_on[None, :]), ~inside
    limited = prefixes == ("I" if scheme == "IOB2" else "B")  # what only stands behind one of its own type
    return ~limited, ~limited[None, :] | (same & inside[:, None]), everywhere


def best_paths(scores, lengths, moves):
    """Find the best sequence of labels that is allowed (Viterbi): int array of shape (sentences, words).

    Args:
        scores: log-probabilities, float array of shape (sentences, words, labels); of a sentence, the first
            `lengths` words count. lengths: int array of shape (sentences,). moves: as allowed_moves returns.

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
            label = np.where(lengths > n + 1, np.take_along_axis(back[n], label[:, None], axis=1)[:, 0], label)
        best[:, n] = np.where(lengths > n, label, 0)
    return best


@torch.no_grad()
def predict_words(model, windows, words, pad_id, *, batch_size, device, processes, moves):
    """Predict the label of each word: (labels, probabilities, summed nll of the true labels, number of these).

    Sentences are shared out over the processes; each is decoded as soon as the scores of its words are there, so that
    no scores pile up.

    Args:
        model: not wrapped. windows: Dataset as align makes it. words: number of words of each sentence, in order.
        moves: as allowed_moves returns.

    Returns:
        int64 and float32 arrays of shape (all words,), the same on all processes, and two floats.
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
            for n, path, row, size in zip(ready, best_paths(scores, sizes, moves), scores, sizes, strict=True):
                labels[starts[n] : starts[n] + size] = path[:size]
                chances[starts[n] : starts[n] + size] = np.exp(row[np.arange(size), path[:size]])

    bar = tqdm(total=len(order), desc="Predicting", unit=" windows", leave=False, disable=processes.rank > 0 or None)
    for at in range(0, len(order), batch_size):
        rows = windows[order[at : at + batch_size]]
        ids = [np.array(row, dtype=np.int64) for row in rows["input_ids"]]
        inputs = {"input_ids": pad(ids, pad_id), "attention_mask": pad([np.ones_like(row) for row in ids], 0)}
        logits = model(**send_to_device(inputs, device)).logits.float()  # (batch, seq, labels)
        places = [(n, position) for n, row in enumerate(rows["positions"]) for position in row]
        if places:
            batch, positions = torch.tensor(places, device=device).T
            found = logits[batch, positions].log_softmax(dim=-1)  # (words, labels)
            targets = torch.tensor([rows["labels"][n][position] for n, position in places], device=device)
            nll.append(F.nll_loss(found, targets, reduction="sum", ignore_index=-100).item())
            counted += int((targets != -100).sum())
            pieces = np.split(found.cpu().numpy(), np.cumsum([len(row) for row in rows["positions"]])[:-1])
            for sentence, piece in zip(rows["sentence"], pieces, strict=True):
                open_scores.setdefault(sentence, []).append(piece)
            decode()
        bar.update(len(ids))
    bar.close()
    loss, counted = processes.sum(math.fsum(nll), counted)
    processes.add(labels, chances)  # each word was predicted on one process
    return labels, chances, loss, counted


class EntityScores(evaluate.Metric):
    """Precision, recall and F1 of entities by conlleval's rules, and by those of the scheme, by seqeval."""

    def _info(self):
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=self.__doc__, citation="Nakayama 2018, https://github.com/chakki-works/seqeval",
            inputs_description="predictions, references: lists of tags for each sentence; scheme: IOB1, IOB2 or BIOES",
            features=datasets.Features({"predictions": tags, "references": tags}))

    def _compute(self, predictions, references, scheme):
        """Score sentences: dict of precision, recall, f1, accuracy (of words), strict_f1, and per_entity, a dict."""
        accuracy = accuracy_score(references, predictions)
        if all(tag == "O" for tags in [*predictions, *references] for tag in tags):  # seqeval has no rows then
            return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": accuracy, "strict_f1": 0.0,
                    "per_entity": {}}
        report = classification_report(references, predictions, output_dict=True, zero_division=0)
        strict = f1_score(references, predictions, mode="strict", zero_division=0,
                          scheme={"IOB1": IOB1, "IOB2": IOB2, "BIOES": IOBES}[scheme])
        total = report["micro avg"]
        per_entity = {kind: {"precision": float(row["precision"]), "recall": float(row["recall"]),
                             "f1": float(row["f1-score"]), "number": int(row["support"])}
                      for kind, row in report.items() if not kind.endswith(" avg")}
        return {"precision": float(total["precision"]), "recall": float(total["recall"]),
                "f1": float(total["f1-score"]), "accuracy": accuracy, "strict_f1": float(strict),
                "per_entity": per_entity}


class Tagger:
    """Labels the sentences of a split with a model, and scores them where they have tags.

    Args:
        sentences, windows: of the split. labels: the model's tags, in its order. scheme: that of the tags.
        rewrite: write what is predicted in the scheme, by conlleval's reading, where the model follows another.
        how: what else predict_words takes.

    Attributes:
        tags, chances: tags and their probabilities of each sentence, as of the last call.
        per_entity: dict of type to a dict of its scores, as of the last call.
    """

    def __init__(self, sentences, windows, labels, scheme, rewrite, **how):
        self.sentences, self.windows, self.labels, self.scheme = sentences, windows, labels, scheme
        self.rewrite, self.how, self.tags, self.chances, self.per_entity = rewrite, how, None, None, {}

    def __call__(self, model, prefix="eval"):
        """Label the sentences: dict of scores with a prefix, empty where there are no tags to score by."""
        words = [len(sentence["tokens"]) for sentence in self.sentences]
        found, chances, loss, counted = predict_words(model, self.windows, words, **self.how)
        ends = np.cumsum(words)[:-1]
        self.tags = [[self.labels[n] for n in row] for row in np.split(found, ends)]
        self.tags = [write_tags(tags, self.scheme) for tags in self.tags] if self.rewrite else self.tags
        self.chances = np.split(chances, ends)
        if any(sentence["tags"] is None for sentence in self.sentences):
            return {}
        scores = EntityScores(keep_in_memory=True).compute(
            predictions=self.tags, references=[sentence["tags"] for sentence in self.sentences], scheme=self.scheme)
        self.per_entity = scores.pop("per_entity")
        scores = {"loss": loss / max(counted, 1), **scores}
        return {f"{prefix}_{name}": score for name, score in scores.items()}


def entities_of(sentence, tags, chances):
    """List the entities of a tagged sentence: (text, list of dicts of start, end, label, start_word, end_word, score
    and text).

    start and end are characters, end not included, as in what read_spans reads; the words of a sentence without a text
    of its own are joined by blanks. score is the mean probability of its words' tags.
    """
    text, offsets = sentence.get("text"), sentence.get("offsets")
    if text is None:
        text, ends = " ".join(sentence["tokens"]), np.cumsum([len(token) + 1 for token in sentence["tokens"]]) - 1
        offsets = [(int(end) - len(token), int(end)) for token, end in zip(sentence["tokens"], ends, strict=True)]
    found = []
    for kind, first, last in get_entities(list(tags)):
        start, end = offsets[first][0], offsets[last][1]
        found.append({"start": start, "end": end, "label": kind, "start_word": first, "end_word": last + 1,
                      "score": float(np.mean(chances[first : last + 1])), "text": text[start:end]})
    return text, found


def write_predictions(output_dir, tagger):
    """Write predictions.conll (word, tag if there are any, prediction) and predictions.jsonl (text and entities)."""
    lines, rows = [], []
    for sentence, tags, chances in zip(tagger.sentences, tagger.tags, tagger.chances, strict=True):
        gold = sentence["tags"] or [None] * len(tags)
        if sentence.get("after_docstart"):
            lines += ["\t".join(["-DOCSTART-"] + ["O"] * (1 + (sentence["tags"] is not None))), ""]
        lines += ["\t".join(part for part in row if part is not None)
                  for row in zip(sentence["tokens"], gold, tags, strict=True)]
        lines.append("")
        text, entities = entities_of(sentence, tags, chances)
        rows.append(json.dumps({"text": text, "entities": entities}, ensure_ascii=False))
    Path(output_dir, "predictions.conll").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    Path(output_dir, "predictions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")


def draw_confusion(path, references, predictions):
    """Draw which types of words were taken for which, a share of each row and counts, as a picture."""
    kinds = [["O" if tag == "O" else tag[2:] for tags in part for tag in tags] for part in (references, predictions)]
    names = sorted({*kinds[0], *kinds[1]} - {"O"})
    names = [*names, "O"]
    number = {name: n for n, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, tuple([number[kind] for kind in part] for part in kinds), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.75 * len(names) + 2)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("Words by type")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=9,
                      color="white" if shares[row, column] > 0.5 else "#222222")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true type's words")
    figure.savefig(path, dpi=120)


# ---------------------------------------------------------------- train


def freeze(model, embeddings, layers):
    """Leave the embeddings, and the first so many layers, as they are. InputError where there are not as many."""
    if embeddings or layers:
        parts = [module for name, module in model.base_model.named_children() if "embed" in name]
        for parameter in itertools.chain.from_iterable(part.parameters() for part in parts):
            parameter.requires_grad = False
    if layers:
        total = getattr(model.config, "num_hidden_layers", None)
        stacks = [module for module in model.base_model.modules()
                  if isinstance(module, torch.nn.ModuleList) and len(module) == total]
        if not stacks or layers > total:
            raise InputError(f"--freeze_layers is {layers}; this model has {total if stacks else 'no'} layers that can "
                             "be frozen one by one")
        for layer in stacks[0][:layers]:
            layer.requires_grad_(False)


def weigh_classes(wanted, labels, windows):
    """Weights of the labels in the loss: float32 tensor of shape (labels,), or None.

    Args:
        wanted: --class_weights: "balanced", TYPE=WEIGHT,… or None. labels: the tags. windows: of the training data.

    Raises:
        InputError: no such type, or no number.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        found = [label for row in windows["labels"] for label in row if label != -100]
        counts = np.bincount(found, minlength=len(labels))
        weights = np.where(counts > 0, len(found) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 1.0)
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
    """Cross entropy in nats: a sum over this pass's labels, divided by the number of all labels of the update.

    Args:
        outputs: of the model, with logits (batch, seq, labels). labels: (batch, seq), -100 where nothing is predicted.
        num_items_in_batch: number of labels of the whole update, over all passes and processes. weights: (labels,).
        smoothing: share of the probability that is spread over all labels.
    """
    logits = outputs["logits"].float().flatten(0, 1)  # (batch * seq, labels)
    weights = None if weights is None else weights.to(logits.device)
    total = F.cross_entropy(logits, labels.flatten(), weight=weights, reduction="sum", label_smoothing=smoothing)
    return total / num_items_in_batch.clamp(min=1)


def load_tagger(args, checkpoint, config, labels, scheme, vocab_size):
    """Load --model with a head for these labels, or a checkpoint: (model, note), which says what starts at random."""
    load = partial(load_model, AutoModelForTokenClassification, vocab_size=vocab_size, head="token classification head",
                   revision=args.model_revision, trust_remote_code=args.trust_remote_code)
    if checkpoint:
        return load(str(checkpoint), None, False)
    known, config = labels_of(config), copy.deepcopy(config)
    config.id2label, config.label2id = dict(enumerate(labels)), {tag: n for n, tag in enumerate(labels)}
    config.tag_scheme = scheme
    return load(args.model, config, args.from_scratch, new_head=known is not None and known != labels)


def check_labels(args, labels, known, data):
    """Find labels that cannot work. InputError: the model has none and no data have, or they are of no scheme."""
    if not known and not args.label_list and not {"train", "validation"} & {*data}:
        raise InputError(f"--model {args.model}: it was not trained to find names: its labels are but numbered. Give "
                         "the --output_dir of a run of this script, or another model with such a head; or train it.")
    wrong = [label for label in labels if not is_tag(label)]
    if wrong or len({*labels}) < len(labels):
        whose = "--label_list" if args.label_list else f"--model {args.model}"
        fault = f"{wrong[0]!r} is no tag" if wrong else "a label stands there twice"
        raise InputError(f"{whose}: {fault}; expected O, or B-, I-, E- or S- and a type, as B-PER. The labels are "
                         f"{', '.join(labels)[:200]}")
    if args.early_stopping_patience and "validation" not in data:
        raise InputError("--early_stopping_patience needs scores: give --validation_file")


def labels_of(config):
    """Labels that a model was trained with, in its order; None where they are but numbered."""
    labels = [config.id2label[n] for n in sorted(config.id2label)]
    return None if all(re.fullmatch(r"LABEL_\d+", label) for label in labels) else labels


def made_with(args, data, labels, model_type, tokenizer, num_processes):
    """What a checkpoint is made with, and a resume may not change: dict of name to value."""
    made = {}
    for split, (rows, _) in data.items():
        digest = hashlib.sha256(json.dumps([(row["tokens"], row["tags"]) for row in rows]).encode()).hexdigest()
        made |= {split: f"{len(rows):,} sentences ({digest[:12]})"} if split != "test" else {}
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
    vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    made |= {"task": "ner", "kind of model": model_type, "labels": labels, "global batch": batch,
             "tokenizer": f"{len(tokenizer):,} tokens ({vocabulary[:12]})"}
    return made | {f"--{name}": getattr(args, name) for name in (
        "seed", "learning_rate", "weight_decay", "optim", "config_overrides", "max_seq_length", "stride",
        "label_all_tokens",
        "class_weights", "freeze_embeddings", "freeze_layers", "constrained_decoding", "metric_for_best_model")}


def shown_settings(args):
    """Settings for the model card and the trackers: those of this script, and what else was changed."""
    names = {field.name for kind in (ModelArguments, DataArguments) for field in dataclasses.fields(kind)}
    names |= {*NerArguments.__annotations__, "learning_rate", "num_train_epochs", "max_steps", "weight_decay", "seed",
              "warmup_steps", "lr_scheduler_type", "gradient_accumulation_steps", "max_grad_norm", "config"}
    changed = {field.name for field in dataclasses.fields(TrainingArguments) if field.init
               and getattr(args, field.name) != field.default and not callable(field.default_factory)}
    return {name: value for name, value in vars(args).items() if name in names | changed}


def make_training_arguments(args, on_cpu, precision, has_scores):
    """Make the TrainingArguments of the run. InputError for what they refuse, in their words."""
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(NerArguments) if field.init}
    fields |= {"bf16": precision == "bf16", "fp16": precision == "fp16", "use_cpu": on_cpu, "disable_tqdm": True,
               "log_level": "error", "log_level_replica": "error", "gradient_checkpointing": None,
               "report_to": "none", "push_to_hub": False, "resume_from_checkpoint": None,  # these are ours
               "activation_checkpointing": args.activation_checkpointing or args.gradient_checkpointing,
               "load_best_model_at_end": bool(args.load_best_model_at_end and has_scores),
               "eval_strategy": args.eval_strategy if has_scores else "no", "do_eval": has_scores}
    try:
        training = NerArguments(**fields)
    except (ValueError, ImportError, TypeError) as error:
        raise InputError(f"{' '.join(str(error).split())}; see --help") from None
    training._n_gpu = min(training.n_gpu, 1)  # several GPUs are for several processes, not for DataParallel
    return training


def fit(args, training, processes, tokenizer, config, labels, scheme, rows, score, output_dir, state, checkpoint, say):
    """Train on sentences, into a folder: (trainer, results, note), which says what of the model started at random."""
    set_seed(args.seed)
    windows = processes.main_first(partial(
        make_windows, rows, tokenizer, labels, args.max_seq_length, args.stride, args.label_all_tokens,
        args.preprocessing_num_workers, args.overwrite_cache and processes.rank == 0))
    weights = weigh_classes(args.class_weights, labels, windows)
    model, note = load_tagger(args, checkpoint, config, labels, scheme, len(tokenizer))
    say(f"Model       {checkpoint or args.model}, {model.num_parameters():,} weights; {note}")
    note = state.setdefault("note", note)  # of the model that the run began with
    freeze(model, args.freeze_embeddings, args.freeze_layers)
    quicken_dropout(model, training.use_cpu)
    if training.activation_checkpointing:
        checkpoint_gradients(model)
    sampler = SimilarLengthSampler(lengths_of(windows), args.per_device_train_batch_size,
                                   args.gradient_accumulation_steps, processes.num_processes, processes.rank, args.seed)
    max_steps = args.max_steps if args.max_steps > 0 else sampler.updates_until(args.num_train_epochs)
    say(f"Updates     {max_steps:,}, {sampler.updates_in(0):,} an epoch, with {sampler.global_batch} windows each "
        f"(processes {processes.num_processes} x batch {sampler.batch_size} x accumulation "
        f"{sampler.accumulation_steps}); {sampler.padding():.1%} of the tokens are padding")
    training = copy.copy(training)
    training.output_dir, training.eval_on_start = str(output_dir), score is not None and checkpoint is None
    patience = args.early_stopping_patience
    trainer = ExactTrainer(
        model=model, args=training, settings=vars(args), processes=processes, sampler=sampler,
        compute_loss_func=partial(tag_loss, weights=weights, smoothing=args.label_smoothing_factor),
        collator=TagCollator(windows, tokenizer.pad_token_id, edge_ids(tokenizer)), score=score, run_state=state,
        stop_signal=StopSignal(), tokenizer=tokenizer,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None)
    if processes.rank == 0:
        clear_output(output_dir, state["step"], args.overwrite_output_dir)
    start_trackers(trainer.accelerator, "ner", shown_settings(args), state)
    return trainer, run_trainer(trainer, checkpoint, say), note


def keep_certain(tagger, threshold):
    """Make training sentences of those of which each word's tag is as probable as the threshold, or more."""
    kept = [n for n, chances in enumerate(tagger.chances) if chances.min() >= threshold]
    return [tagger.sentences[n] | {"tags": tagger.tags[n]} for n in kept]


def fit_rounds(args, fit_into, make_tagger, data, say):
    """Train, label the unlabelled sentences, and train anew with those that are certain, round after round.

    Args:
        fit_into: function that trains on sentences into a folder, as fit does. make_tagger: makes the Tagger of
            sentences. data: dict of split to (sentences, name), "train" and "unlabeled" among them.

    Returns:
        (trainer, results, note) of the best round, by eval_f1, or of the last one where there is none to tell by.

    Source: Lee 2013, http://deeplearning.net/wp-content/uploads/2013/03/pseudo_label_final.pdf
    """
    best, table, extra = None, [], []
    tagger = make_tagger(data["unlabeled"][0])
    if args.overwrite_output_dir and int(os.environ.get("RANK", 0)) == 0:
        clear_output(args.output_dir, 0, True)
    for number in range(args.pseudo_label_rounds + 1):
        folder = Path(args.output_dir, f"round-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        if extra and int(os.environ.get("RANK", 0)) == 0:
            lines = [f"{token}\t{tag}" if tag else "" for row in extra
                     for token, tag in [*zip(row["tokens"], row["tags"], strict=True), ("", "")]]
            (folder / "pseudo_labelled.conll").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        say(f"Round {number}     {len(data['train'][0]):,} sentences with tags of their own, {len(extra):,} of "
            f"{len(data['unlabeled'][0]):,} with pseudo-labels")
        trainer, results, note = fit_into(data["train"][0] + extra, folder)
        if trainer.stopped:
            return trainer, results, note
        table.append({"round": number, "pseudo_labelled": len(extra),
                      **{name: results[name] for name in ("eval_f1", "eval_strict_f1") if name in results}})
        for tracker in trainer.accelerator.trackers:
            tracker.finish()  # the next round is a run of its own
        trainer.accelerator.trackers = []
        if best is None or "eval_f1" not in results or not args.load_best_model_at_end or (
                results["eval_f1"] > best[1]["eval_f1"]):
            best = trainer, results, note
        if number < args.pseudo_label_rounds:
            tagger(trainer.model)
            extra = keep_certain(tagger, args.pseudo_label_threshold)
    say(f"{'Round':<8}{'pseudo-labelled':>16}{'eval_f1':>12}{'eval_strict_f1':>18}")
    for row in table:
        scores = "".join(f"{row[name]:>{width}.4f}" for name, width in (("eval_f1", 12), ("eval_strict_f1", 18))
                         if name in row)
        say(f"{row['round']:<8}{row['pseudo_labelled']:>16,}{scores}")
    if best[0] is not trainer:
        number = next(row["round"] for row in table if row["eval_f1"] == best[1]["eval_f1"])
        say(f"Best        the model of round {number} is kept, by eval_f1")
        best[0].scored_at = None  # what scored it has scored later models since
    return best[0], best[1] | {"pseudo_label_rounds": table}, best[2]


# ---------------------------------------------------------------- main


def describe_data(data, labels, scheme, say):
    """Say what the data are, and what looks wrong with them."""
    for split, (rows, name) in data.items():
        entities = sum(len(get_entities(row["tags"])) for row in rows if row["tags"] is not None)
        tagged = f"{entities:,} entities" if all(row["tags"] is not None for row in rows) else "no tags"
        repeated = len(rows) - len({tuple(row["tokens"]) for row in rows})
        say(f"{split.capitalize():<11} {len(rows):,} sentences, {sum(len(row['tokens']) for row in rows):,} words, "
            f"{tagged}, of {name}" + (f"; {repeated:,} sentences stand there more than once" if repeated else ""))
    kinds = list(dict.fromkeys(tag[2:] for tag in labels if tag != "O"))
    say(f"Labels      {len(labels)}, {scheme}: O and {', '.join(kinds)}")


def entity_table(per_entity):
    """Make rows of text of the scores of each type: a list of lists, the header first."""
    return [["type", "precision", "recall", "f1", "number"],
            *([kind, *(f"{row[name]:.4f}" for name in ("precision", "recall", "f1")), f"{row['number']:,}"]
              for kind, row in sorted(per_entity.items()))]


def show_entities(text, entities, note, say):
    """Print the entities of one text."""
    say(f"\n{text}")
    width = max([20, *(len(entity["text"]) + 2 for entity in entities)])
    for entity in entities:
        say(f"  {entity['text']:<{width}}{entity['label']:<12}{entity['score']:.3f}   characters {entity['start']} to "
            f"{entity['end']}")
    if not entities:
        say("  no entity in it")
    if "random" in note:
        say(f"  Careful: {note}; train it first, or this says nothing")


def label_at_end(args, model, note, taggers, text_tagger, results, say, is_main):
    """Label test data and --text with the model, and draw what was taken for what: results with the new scores."""
    if "test" in taggers:
        results = results | taggers["test"](model, "predict")
    if text_tagger:
        text_tagger(model)
    if not is_main:
        return results
    tables = {split: tagger.per_entity for split, tagger in taggers.items() if tagger.per_entity}
    if "test" in taggers:
        write_predictions(args.output_dir, taggers["test"])
    for split, per_entity in tables.items():
        prefix = {"validation": "eval", "test": "predict"}[split]
        results.setdefault("per_entity", {})[prefix] = per_entity
        draw_confusion(Path(args.output_dir, f"{prefix}_confusion.png"),
                       [row["tags"] for row in taggers[split].sentences], taggers[split].tags)
        rows = entity_table(per_entity)
        width = max(len(row[0]) for row in rows) + 2
        say(f"\n{split.capitalize()}, by type:\n" + "\n".join(
            f"{row[0]:<{width}}" + "".join(f"{value:>11}" for value in row[1:]) for row in rows) + "\n")
    if text_tagger:
        show_entities(*entities_of(text_tagger.sentences[0], text_tagger.tags[0], text_tagger.chances[0]),
                      "" if args.do_train else note, say)
    return results


def finish(args, model, tokenizer, data, results, note):
    """Leave behind what the run has made: results; of a training run the model and its card, on the Hub if asked."""
    if args.do_train:
        save_model(args.output_dir, model, tokenizer)
        sizes = {split: (len(rows), sum(len(row["tokens"]) for row in rows), name)
                 for split, (rows, name) in data.items()}
        tables = []
        for prefix, per_entity in results.get("per_entity", {}).items():
            header, *rows = entity_table(per_entity)
            tables += [f"| {prefix}: {' | '.join(header)} |", "| --- | ---: | ---: | ---: | ---: |",
                       *(f"| {' | '.join(row)} |" for row in rows), ""]
        write_model_card(args.output_dir, args.model, f"trained on {data['train'][1]} to find names; {note}.",
                         "token-classification", sizes, results, shown_settings(args), tables)
    same_model = args.resume_from_checkpoint or Path(args.model).resolve() == Path(args.output_dir).resolve()
    write_results(args.output_dir, results, same_model, args.do_train)
    if args.push_to_hub:
        upload(args.output_dir, args.hub_model_id)


def train_or_load(args, training, processes, tokenizer, config, labels, scheme, data, make_tagger, score, state,
                  checkpoint, say):
    """Train, in rounds where there are sentences to pseudo-label, or only load: (accelerator, model, results, note)."""
    def fit_into(rows, folder, state=state, checkpoint=checkpoint):
        if data.get("unlabeled"):  # each round is a run of its own
            checkpoint, state = open_output(folder, True, args.resume_from_checkpoint, args.overwrite_output_dir, say)
        made = made_with(args, {**data, "train": (rows, "")}, labels, config.model_type, tokenizer,
                         processes.num_processes)
        check_resume(made, processes, state, checkpoint, folder)
        return fit(args, training, processes, tokenizer, config, labels, scheme, rows, score, folder, state, checkpoint,
                   say)

    if args.do_train:
        in_rounds = bool(data.get("unlabeled"))
        trainer, results, note = (fit_rounds(args, fit_into, make_tagger, data, say) if in_rounds else
                                  fit_into(data["train"][0], args.output_dir))
        if trainer.stopped:
            end_stopped_run(trainer.accelerator, trainer.stop_signal.number or signal.SIGTERM,
                            trainer.state.global_step, say)
        if score and trainer.scored_at != trainer.kept_step():
            score(trainer.model)  # for the tables, of the model that is kept
        return trainer.accelerator, trainer.model, results, note
    set_seed(args.seed)
    model, note = load_tagger(args, None, config, labels, scheme, len(tokenizer))
    quicken_dropout(model, training.use_cpu)  # there is none, but what is computed is what a training computes
    say(f"Model       {args.model}, {model.num_parameters():,} weights; {note}")
    accelerator = Accelerator(
        cpu=training.use_cpu, mixed_precision=training.mixed_precision, log_with=args.report_to or None,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=f"{args.output_dir}/runs"))
    start_trackers(accelerator, "ner", shown_settings(args), state)
    model = accelerator.prepare_model(model, evaluation_mode=True)
    return accelerator, model, score(model) if args.do_eval and score else {}, note


def main(argv=None):
    args = parse_args(argv)
    rank = int(os.environ.get("RANK", 0))
    say = partial(print, flush=True) if rank == 0 else lambda *_: None
    transformers.logging.set_verbosity_error()  # what it says of heads and lengths, the lines below say
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    if rank:
        datasets.disable_progress_bars()
    hub = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    config, tokenizer = load_config_and_tokenizer(args.model, args.tokenizer_name, args.config_overrides,
                                                  args.max_seq_length, **hub)
    in_rounds = args.unlabeled_file and args.resume_from_checkpoint  # each round has checkpoints of its own
    todo, data, class_names = args.do_train or args.do_eval or args.do_predict is not False, {}, None
    checkpoint, state = None, {"step": 0, "run_id": os.urandom(8).hex()}
    if todo:
        checkpoint, state = open_output(args.output_dir, args.do_train,
                                        None if in_rounds else args.resume_from_checkpoint,
                                        args.overwrite_output_dir or in_rounds, say)
        data, class_names = prepare_rows(args, args.output_dir, say)
    known, model_scheme = labels_of(config), getattr(config, "tag_scheme", None)
    scheme = unify_tags(data, None if args.do_train else model_scheme, say)
    labels = choose_labels(data, args.label_list, known, class_names, args.do_train, say)
    check_labels(args, labels, known, data)
    scheme = scheme or model_scheme or find_scheme([[tag] for tag in labels])[0]
    describe_data(data, labels, scheme, say)
    on_cpu, precision, threads = choose_device(args.mixed_precision, args.cpu_threads)
    training = make_training_arguments(args, on_cpu, precision, args.do_train and "validation" in data)
    processes = join_processes(training.world_size, training.process_index, training.local_process_index)
    if args.push_to_hub and args.do_train:
        args.hub_model_id = claim_repository(args.hub_model_id, args.output_dir) if rank == 0 else None
    # A model that was trained elsewhere may follow another scheme than these data: then its path is not constrained.
    follows = scheme if args.do_train or model_scheme == scheme or known is None else None
    moves = allowed_moves(labels, follows if args.constrained_decoding else None)

    def make_tagger(rows, in_memory=False):
        windows = processes.main_first(partial(make_windows, rows, tokenizer, labels, args.max_seq_length, args.stride,
                                               False, args.preprocessing_num_workers, in_memory=in_memory))
        return Tagger(rows, windows, labels, scheme, args.constrained_decoding, pad_id=tokenizer.pad_token_id,
                      batch_size=args.per_device_eval_batch_size, device=training.device, processes=processes,
                      moves=moves)

    taggers = {split: make_tagger(data[split][0]) for split in ("validation", "test") if split in data}
    text_tagger = None
    if args.text is not None:
        text_tagger = make_tagger([read_tagged_row({"text": args.text}, "--text", None, None, None)], in_memory=True)
    say(f"Running on  {training.device.type}, {processes.num_processes} process"
        f"{'es' * (processes.num_processes > 1)}, {threads} CPU threads each, {precision.replace('no', 'float32')}")
    try:
        accelerator, model, results, note = train_or_load(
            args, training, processes, tokenizer, config, labels, scheme, data, make_tagger,
            taggers.get("validation"), state, checkpoint, say)
        results = label_at_end(args, model, note, taggers, text_tagger, results, say, rank == 0)
    except torch.OutOfMemoryError:
        raise out_of_memory(*((args.per_device_train_batch_size, args.max_seq_length, args.gradient_accumulation_steps)
                              if args.do_train else (args.per_device_eval_batch_size, args.max_seq_length))) from None
    accelerator.log({name: value for name, value in results.items() if name.startswith(("eval_", "predict_"))},
                    step=results.get("step", 0))
    if rank == 0 and todo:
        model = accelerator.unwrap_model(model, keep_fp32_wrapper=False, keep_torch_compile=False)
        finish(args, model, tokenizer, data, results, note)
    show_results(results, note, args.output_dir, say)
    if "test" in taggers:
        say(f"\n{len(data['test'][0]):,} sentences are labelled in {Path(args.output_dir, 'predictions.conll')}, their "
            "entities listed in predictions.jsonl")
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


# ==== utils/dropout.py, whole (to change it, change it there; `make fix` copies it) ====
# Dropout that is quick on a CPU.

class QuickDropout(torch.nn.Dropout):
    """Dropout that takes four decisions out of each random number: on a CPU, to draw them takes a tenth of an update.

    The share that is dropped is a multiple of 1/65536. On other devices it is what it is in torch.
    """

    def forward(self, inputs):
        level = round(self.p * 65536)
        if not self.training or inputs.device.type != "cpu" or not 0 < level < 65536:
            return super().forward(inputs)
        numbers = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.int16)[: inputs.numel()].view(inputs.shape) >= level - 32768
        return inputs * kept.to(inputs.dtype).mul_(65536 / (65536 - level))


def quicken_dropout(model, on_cpu):
    """Have all modules of a model that drop out do so by QuickDropout, and its attention take the way that suits it."""
    if on_cpu:  # with dropout, torch's fused attention falls back to what the plain one does, and more
        model.set_attn_implementation("eager")
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = QuickDropout


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


# ==== utils/similar_lengths.py, whole (to change it, change it there; `make fix` copies it) ====
# Batches of similar length.

class SimilarLengthSampler(GlobalBatchSampler):
    """A GlobalBatchSampler that puts examples of similar length into a global batch, so that little of it is padding.

    The order of the epoch is cut into pools. The examples of a pool are sorted by length and cut into global batches,
    which then come in random order. Within one, examples are sorted by length too, so those of a micro-batch are close.

    Args:
        lengths: tokens of each example, int array of shape (examples,).
        pool: global batches that are sorted together. Fewer mix lengths more, and pad more.
    """

    def __init__(self, lengths, batch_size, accumulation_steps, num_processes, rank, seed, pool=50):
        super().__init__(len(lengths), batch_size, accumulation_steps, num_processes, rank, seed)
        self.lengths, self.pool = np.asarray(lengths), pool

    def order(self):
        order, size = super().order(), self.global_batch
        whole = self.n - self.n % size  # the rest, a smaller batch, stays at the end
        step = self.pool * size
        pools = [order[at : min(at + step, whole)] for at in range(0, whole, step)] + [order[whole:]]
        order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in pools])
        shuffled = np.random.default_rng((self.seed, self.epoch, 1)).permutation(whole // size)
        return np.concatenate([order[:whole].reshape(-1, size)[shuffled].ravel(), order[whole:]])

    def padding(self):
        """Share of padding among the tokens of the epoch, from 0 to 1, on all processes."""
        pieces, full = self.accumulation_steps * self.num_processes, self.n - self.n % self.global_batch
        order = self.order()
        batches = [*order[:full].reshape(-1, self.batch_size), *np.array_split(order[full:], pieces)]
        padded = sum(int(self.lengths[batch].max()) * len(batch) for batch in batches if len(batch))
        return 1 - int(self.lengths.sum()) / padded


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


# ==== utils/trainer.py, whole (to change it, change it there; `make fix` copies it) ====
# What Trainer leaves open: batches, scores and checkpoints that do not depend on how a run is split.

def refuse_flags(args, parser):
    """End the run where a flag of TrainingArguments is given that an ExactTrainer has no use for. Better than silence.

    args: Namespace of all flags. parser: made them, and knows their defaults.
    """
    for names, reason in (
            ("auto_find_batch_size", "another batch size gives another result; to save memory, halve "
             "--per_device_train_batch_size and double --gradient_accumulation_steps"),
            ("dataloader_drop_last train_sampling_strategy data_seed", "the order of examples is a function of --seed, "
             "and none is left out"),
            ("ignore_data_skip save_only_model", "a resumed run ends as one that was left alone"),
            ("average_tokens_across_devices", "each label weighs the same on any number of devices"),
            ("fsdp fsdp_config deepspeed", "encoders of this size train fastest with plain data parallelism, by "
             "accelerate launch --multi_gpu"),
            ("eval_accumulation_steps batch_eval_metrics prediction_loss_only eval_use_gather_object", "evaluation "
             "keeps no more than it needs already")):
        for name in names.split():
            if getattr(args, name, None) != parser.get_default(name):
                parser.error(f"--{name} is not for this script: {reason}")


class RunCallback(TrainerCallback):
    """Around each update of an ExactTrainer: order and dropout before it, signals, the log and the bar after it."""

    def __init__(self, trainer):
        self.trainer, self.bar = trainer, None

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, losses = self.trainer, self.trainer.run_state.get("losses")
        if losses:  # since the last line of the log, and in all, when the checkpoint was saved
            trainer._tr_loss += losses["window"]
            trainer._total_loss_scalar, trainer._globalstep_last_logged = losses["total"], losses["last_logged"]
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="Training", unit=" updates",
                        disable=trainer.processes.rank > 0 or None)
        if (state.global_step and args.eval_strategy == "epoch" and trainer.lacks_scores()
                and trainer.sampler.place(state.global_step)[1] == 0):
            # The run ended between the last update of an epoch and what follows it.
            trainer._determine_best_metric(trainer.evaluate(), None)

    def on_epoch_begin(self, args, state, control, **kwargs):
        sampler = self.trainer.sampler
        sampler.epoch = sampler.place(state.global_step)[0]

    def on_step_begin(self, args, state, control, **kwargs):
        # Dropout is a function of (seed, update, rank), so a checkpoint need not carry the state of any generator.
        numbers = (args.seed, state.global_step, self.trainer.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        trainer, is_last = self.trainer, state.global_step >= state.max_steps
        trainer.run_state["step"] = state.global_step
        if is_last:
            control.should_log = True
            # The end of an epoch, which follows, evaluates by itself where each one does.
            control.should_evaluate = trainer.score is not None and args.eval_strategy != "epoch"
        elif trainer.processes.sum(trainer.stop_signal.number > 0)[0]:
            trainer.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.stopped:  # this is no end of an epoch: what is due at one is done after the resume
            control.should_evaluate = control.should_save = False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.global_step == 0:
            self.trainer.run_state["initial"] = {f"initial_{name}": value for name, value in metrics.items()}

    def on_log(self, args, state, control, logs=None, **kwargs):
        trainer = self.trainer
        values = {name: value for name, value in logs.items() if name != "epoch"}
        if not state.is_world_process_zero or "train_runtime" in values or not trainer.is_in_train:
            return
        if state.global_step == 0:
            values = {f"initial_{name}": value for name, value in values.items()}
        line = {"step": state.global_step, "epoch": round(trainer.sampler.epochs_until(state.global_step), 4), **values}
        path, text = Path(args.output_dir, "log.jsonl"), json.dumps(line) + "\n"
        if "eval_loss" in values and path.exists() and text in path.read_text(encoding="utf-8"):
            return  # a run that was killed between these scores and the next checkpoint had them already
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
        trainer.accelerator.log(values, step=state.global_step)
        shown = {name: value for name, value in values.items() if name not in ("learning_rate", "grad_norm")}
        if "loss" in values:
            self.bar.set_postfix(loss=f"{values['loss']:.3f}")
        if "loss" not in values or self.bar.disable:  # no terminal to show a bar on
            tqdm.write(f"Update {state.global_step:>6}  " + "  ".join(
                f"{name} {value:.6g}" for name, value in shown.items()))

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class ExactTrainer(Trainer):
    """A Trainer that trains, scores and saves alike on any number of processes, and resumes where it was.

    Batches come from a sampler over whole global batches; a score is computed by a function that adds up over all
    processes; a checkpoint counts only when it is whole (see utils.checkpoints), and needs no generator's state.

    Args:
        settings: the flags, a dict. processes: as join_processes made them. sampler: a GlobalBatchSampler of numbers of
            examples, of which the collator makes batches.
        score: function that scores a model, a dict of results with eval_ in front; None where there are no such data.
        run_state: what a checkpoint carries besides, a dict with "step". stop_signal: a StopSignal.
        tokenizer: is saved beside the model. rest: what else a Trainer takes.

    Attributes:
        stopped: whether a signal ended the training. paused: seconds spent on scoring and saving. scored_at: the update
            after which the model was last scored, or None. last_update: how many there are to be.

    Raises:
        InputError: the flags do not go together, or a package that they need is missing.
    """

    def __init__(self, *, settings, processes, sampler, collator, score, run_state, stop_signal, tokenizer, **rest):
        self.settings, self.processes, self.sampler, self.score = settings, processes, sampler, score
        self.run_state, self.stop_signal, self.tokenizer = run_state, stop_signal, tokenizer
        self.stopped, self.paused, self.scored_at = False, 0.0, None
        try:  # now, when nothing that lies in the output folder is cleared yet
            super().__init__(data_collator=collator, train_dataset=range(sampler.n),
                             eval_dataset=range(1) if score else None, **rest)
            given = self.args.max_steps
            self.last_update = given if given > 0 else sampler.updates_until(self.args.num_train_epochs)
            self.create_optimizer_and_scheduler(self.last_update)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"these flags cannot be trained with: {' '.join(str(error).split())}. See --optim, "
                             "--adam_beta1, --lr_scheduler_type and what is like them in --help.") from None
        self.add_callback(RunCallback(self))
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else ProgressCallback)

    def _build_accelerator_args(self, **kwargs):
        output_dir = self.args.output_dir
        return super()._build_accelerator_args(**kwargs) | {
            "log_with": self.settings["report_to"] or None,
            "project_config": ProjectConfiguration(output_dir, logging_dir=f"{output_dir}/runs")}

    def get_train_dataloader(self):
        """Make the loader of this process's batches. It is not prepared by accelerate, which would share them out."""
        # The generator keeps iter() from drawing its seed out of the global one.
        return DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator,
                          num_workers=self.args.dataloader_num_workers, generator=torch.Generator(),
                          pin_memory=self.args.device.type == "cuda", worker_init_fn=ignore_interrupts)

    def evaluate(self, *args, **kwargs):
        """Score the model, log the scores, and tell the callbacks."""
        begun = time.perf_counter()
        scores, self.scored_at = self.score(self.model), self.state.global_step
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        self.paused += time.perf_counter() - begun
        return scores

    def lacks_scores(self):
        """Whether the model was not scored after its last update, although there are data for it."""
        step = self.state.global_step
        return self.score and not any(line["step"] == step and "eval_loss" in line for line in self.state.log_history)

    def kept_step(self):
        """The update whose model is kept at the end: the best one's where that is asked for, or the last."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return best if best and self.state.best_model_checkpoint else self.state.global_step

    def _save_checkpoint(self, model, trial):
        begun, output_dir, step = time.perf_counter(), Path(self.args.output_dir), self.state.global_step
        best = f"checkpoint-{self.state.best_global_step}" if self.state.best_global_step else None
        if best and (step == self.state.best_global_step or (output_dir / best).exists()):
            self.state.best_model_checkpoint = str(output_dir / best)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        window = self.processes.sum(self._tr_loss.item())[0] / self.processes.num_processes
        self.run_state["losses"] = {"window": window, "total": self._total_loss_scalar,
                                    "last_logged": self._globalstep_last_logged}
        ends_early = self.control.should_training_stop and not self.stopped and step < self.state.max_steps
        self.run_state["ended_by_patience"] = self.settings["early_stopping_patience"] if ends_early else None
        if self.processes.rank == 0:
            kept = best if self.settings["load_best_model_at_end"] else None
            save_checkpoint(output_dir, step, self.write_checkpoint, self.args.save_total_limit or 10**9, keep=kept)
        self.processes.sum(0)  # the others wait: none trains on if this one fails
        self.paused += time.perf_counter() - begun

    def finish(self, checkpoint):
        """Take up the state of a run that had come to its end, and the model that it kept."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.accelerator.prepare_model(self.model, evaluation_mode=True)
        if self.lacks_scores():  # it ended between its last update and what follows it
            self.is_in_train = True  # so that they are logged
            self._determine_best_metric(self.evaluate(), None)
            self.is_in_train = False
        best = Path(self.args.output_dir, f"checkpoint-{self.state.best_global_step}")
        self.state.best_model_checkpoint = str(best) if best.exists() else None
        if self.args.load_best_model_at_end and best.exists():
            self._load_best_model()

    def write_checkpoint(self, folder):
        self.accelerator.unwrap_model(self.model, keep_torch_compile=False).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
        if self.accelerator.scaler:
            torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
        self.state.save_to_json(folder / "trainer_state.json")
        (folder / "state.json").write_text(json.dumps(self.run_state, indent=1), encoding="utf-8")

    def _load_rng_state(self, checkpoint):
        pass  # see on_step_begin


def run_trainer(trainer, checkpoint, say):
    """Train, from a checkpoint where there is one: dict of results, those of the best model where it is kept.

    Empty where a signal ended the training; then trainer.stopped is True and a checkpoint saved.
    """
    sampler, run_state, args = trainer.sampler, trainer.run_state, trainer.args
    before, patience = run_state["step"], trainer.settings["early_stopping_patience"]
    ended = checkpoint and (before >= trainer.last_update or (patience and run_state["ended_by_patience"] == patience))
    begun = time.perf_counter()
    if ended:
        trainer.finish(checkpoint)  # there is nothing left to do; train() would do one update more
    else:
        with trainer.stop_signal:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stopped:
        return {}
    if trainer.kept_step() != trainer.state.global_step:
        say(f"Best        the model of update {trainer.kept_step()} is kept, by {args.metric_for_best_model}")
    seconds, state = time.perf_counter() - begun - trainer.paused, trainer.state
    results = {"step": state.global_step, "epoch": sampler.epochs_until(state.global_step), **run_state["initial"]}
    seen = sampler.examples_until(state.global_step) - sampler.examples_until(before)
    total = run_state["losses"]["total"] if ended else trainer._total_loss_scalar
    results["train_loss"] = total / state.global_step
    if not ended:  # otherwise it was a finished run that was resumed, whose time is known already, if at all
        results |= {"train_runtime": seconds, "train_samples_per_second": seen / seconds}
    scored = {entry["step"]: entry for entry in state.log_history if "eval_loss" in entry}
    scores = scored.get(trainer.kept_step(), {})
    names = [name.removeprefix("initial_") for name in run_state["initial"]]  # in their order
    return results | {name: scores[name] for name in names if name in scores}


# ==== run_ner.py ====


if __name__ == "__main__":
    run_main(main)
