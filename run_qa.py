# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "transformers>=5.23", "accelerate>=1.15", "datasets>=5.2",
#                 "multiprocess>=0.70.19", "evaluate>=0.4.6", "numpy>=2.4", "pyarrow>=26.0",
#                 "huggingface-hub>=2.4", "PyYAML>=6.0", "tqdm>=4.67", "matplotlib>=3.11",
#                 "wandb>=0.31"]
# ///
"""Train a model to answer questions with a span of a text (extractive question answering), and report its F1.

    accelerate launch run_qa.py --model bert-base-uncased --train_file train.json --validation_file dev.json
    accelerate launch run_qa.py --model outputs/qa --test_file questions.json
    accelerate launch run_qa.py --model outputs/qa --question "Who met Babbage?" --context "Ada met Babbage in London."

Reads questions in SQuAD's layout (.json), rows of id, question, context and answers (.json, .jsonl), each also packed,
or a data set of the Hub; some may have no answer, as in SQuAD 2.0. Writes to --output_dir: the model and tokenizer,
all_results.json (eval_exact_match or eval_exact, eval_f1), predictions.json, nbest_predictions.json and null_odds.json
of the test data, or else of the validation data, log.jsonl, checkpoints and a model card.

Source: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, and 2018, https://arxiv.org/abs/1806.03822, with their
scoring scripts; Devlin et al. 2018, sections 4.2 and 4.3, https://arxiv.org/abs/1810.04805
"""

import argparse
import bz2
import codecs
import copy
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
import string
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
    import torch
    import torch.distributed
    import torch.nn.functional as F
    import transformers
    import yaml
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import parse_flag_from_env, send_to_device, set_seed
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave
    from torch.utils.data import DataLoader, Sampler
    from tqdm import tqdm
    from transformers import (
        AutoConfig,
        AutoModelForQuestionAnswering,
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
    print(f"run_qa.py: error: {error}. Install what it needs: pip install torch transformers "
          "accelerate datasets multiprocess evaluate numpy pyarrow huggingface-hub PyYAML tqdm "
          "matplotlib wandb", file=sys.stderr)
    sys.exit(2)

DEFAULT_DATASET = "rajpurkar/squad"  # taken where no data are named and nothing is asked
ASKING = ("question", "context", "context_file", "questions_file", "plot_scores")  # flags


# ---------------------------------------------------------------- arguments


@dataclass
class QaArguments(TrainingArguments):
    _argument_group_name = "training and output: all of transformers.TrainingArguments, and"
    output_dir: str | None = HfArg(default="outputs/qa", help="folder for all that a run leaves "
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
    parser = Parser(QaArguments, description=__doc__.partition("\n")[0], allow_abbrev=False,
                    formatter_class=HelpFormatter)
    group = add_model_and_data_flags(parser, DEFAULT_DATASET, "paragraphs, with their questions,",
                                     "questions")
    add_flags(
        group,
        ("max_seq_length", number(int, 5), 384,
         "tokens per window: the question, whole, a part of the context, and [CLS] and [SEP]s; a "
         "longer context is cut into several windows"),
    )
    add_flags(
        parser.add_argument_group("answers"),
        ("version_2_with_negative", bool,
         "some questions have no answer, as in SQuAD 2.0; taken so anyway where the data hold such "
         "questions"),
        ("on_bad_row", ["error", "skip"], "error",
         "a faulty question ends the run, or goes to skipped_rows.jsonl"),
        ("doc_stride", number(int, 0),
         "tokens of the context that two windows share (default: 128, or a third of "
         "--max_seq_length where that is less)"),
        ("n_best_size", number(int, 1, 1000), 20,
         "starts and ends that are tried with each other in each window, and answers in "
         "nbest_predictions.json"),
        ("max_answer_length", COUNT, 30, "tokens of an answer, at most"),
        ("null_score_diff_threshold", number(float, -sys.float_info.max),
         "a question gets no answer where the score of none exceeds that of the best by more than "
         "this (default: 0 in evaluation; after it, the best_f1_thresh kept with the model)"),
    )
    add_flags(
        parser.add_argument_group("asking, at the end; without data, that is all"),
        ("question", str, "question to answer out of --context or --context_file"),
        ("context", str, "text that holds the answer"),
        ("context_file", str, "file of that text, UTF-8"),
        ("questions_file", str,
         "rows of question and context, as .jsonl; the answers go to answers.jsonl in --output_dir"),
        ("plot_scores", str,
         "picture to draw, as scores.png: the scores of each token to begin and to end the answer "
         "to --question"),
    )
    settle_flags(parser)
    args = parse_with_config(parser, argv)
    check_args(args, parser)
    check_question(args, parser)
    return args


def check_args(args, parser):
    """Find settings that cannot work, and fill in those that depend on others."""
    check_trainer_flags(args, parser)
    most = args.max_seq_length - 5
    if args.doc_stride is None:
        args.doc_stride = max(0, min(128, args.max_seq_length // 3, most))
    if args.doc_stride > most:
        parser.error(f"--doc_stride is {args.doc_stride}; expected 0 to {most}, less than a window "
                     "holds of a context")
    files = args.train_file or args.validation_file or args.test_file
    chosen = args.do_train or args.do_eval or args.do_predict
    asks = args.question is not None or args.questions_file
    choose_tasks(args, parser, DEFAULT_DATASET, files, chosen or not asks)
    if args.dataset_name and not chosen:
        args.do_predict = None  # if the data set has a test split


def check_question(args, parser):
    """Find flags to ask with that do not fit each other."""
    contexts = [name for name in ("context", "context_file") if getattr(args, name) is not None]
    if (args.question is None) != (not contexts) or len(contexts) > 1:
        parser.error("--question and one of --context and --context_file belong together; found "
                     + (", ".join(f"--{name}" for name in ["question"] * (args.question is not None)
                                  + contexts)))
    for name in ("question", "context"):
        value = getattr(args, name)
        if value is not None and not value.strip():
            parser.error(f"--{name} is empty; give a text")
        if re.search("[\ud800-\udfff]", value or ""):
            parser.error(f"--{name} is not UTF-8; give it in the encoding of the terminal")
    if args.plot_scores and args.question is None:
        parser.error("--plot_scores draws the scores of one question; give --question")
    if args.plot_scores and not args.plot_scores.lower().endswith((".png", ".svg", ".pdf")):
        parser.error(f"--plot_scores {args.plot_scores}: expected a file name that ends in .png, "
                     ".svg or .pdf")
    if args.plot_scores:  # found now, not after the training
        folder = next(path for path in Path(args.plot_scores).absolute().parents if path.exists())
        if Path(args.plot_scores).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            parser.error(f"--plot_scores {args.plot_scores}: cannot be written there; name another "
                         "file")


# ---------------------------------------------------------------- reading questions


def read_answers(row, context, place):
    """Read the reference answers of a question.

    Under `answers` stands a list of objects of text and answer_start, or one object with a list of
    each, as in the data sets of the Hub. The list is empty where the question has no answer, and
    None where nothing is said of any.

    Returns:
        A list of (text, start), start counted in characters of the context.

    Raises:
        InputError: it is none of these, or an answer does not stand in the context where it is said
        to.
    """
    found, impossible = row.get("answers"), row.get("is_impossible")
    if impossible not in (None, True, False):
        raise InputError(f"{place}: expected true or false under 'is_impossible', found "
                         f"{str(impossible)[:40]!r}")
    if found is None:
        return [] if impossible else None
    shown = str(found)[:60]
    if isinstance(found, dict) and isinstance(texts := found.get("text"), list):
        starts = found.get("answer_start")
        found = [{"text": text, "answer_start": start} for text, start
                 in zip(texts, starts,
                        strict=True)] if (isinstance(starts, list) and len(starts)
                                          == len(texts)) else None
    elif isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(answer, dict)
                                              and isinstance(answer.get("text"), str)
                                              and type(answer.get("answer_start")) is int for answer
                                              in found):
        raise InputError(f"{place}: expected answers as [{{\"text\": …, \"answer_start\": 12}}], "
                         f"or as {{\"text\": [], \"answer_start\": []}} with as many numbers as "
                         f"texts, found {shown}")
    answers = [(answer["text"], answer["answer_start"]) for answer in found]
    if impossible and answers:
        raise InputError(f"{place}: is_impossible is true, but there is an answer, "
                         f"{answers[0][0][:40]!r}. Take one of the two out.")
    for text, start in answers:
        if not text.strip():
            raise InputError(f"{place}: an answer is empty. Expected text; a question that has no "
                             "answer has the empty list.")
        if not 0 <= start < len(context):
            raise InputError(f"{place}: the answer {text[:40]!r} is said to begin at character "
                             f"{start}, but its context has {len(context)}. Expected an "
                             f"answer_start from 0 to {len(context) - 1}.")
        there = context[start : start + len(text)]
        if there != text:
            at = context.find(text)
            where = f"It stands at {at}" if at >= 0 else "It does not stand anywhere in it"
            raise InputError(f"{place}: the answer {text[:40]!r} is said to begin at character "
                             f"{start} of its context, where {there[:40]!r} stands. {where}; "
                             "correct answer_start, which counts characters, not bytes, or the "
                             "text.")
    return answers


def read_question(row, context, place):
    """Read a question.

    Args:
        row: dict of id, question and answers.
        context: its text.

    Returns:
        Dict of place, id (str; None where it has none), question, context, and answers as
        read_answers.

    Raises:
        InputError: something is missing, empty or of another kind, or an answer is at fault.
    """
    name = row.get("id")
    if name is not None and type(name) not in (str, int):
        raise InputError(f"{place}: expected an id that is text or a whole number, found "
                         f"{str(name)[:40]!r}")
    place += f" (id {name})" if name is not None else ""
    if re.search("[\ud800-\udfff]", str(name)):
        raise InputError(f"{place}: the id {name!r} holds half a character (a lone surrogate). "
                         "Expected Unicode text.")
    for what, text in (("question", row.get("question")), ("context", context)):
        if not isinstance(text, str):
            names = ", ".join(row) or "nothing"
            found = f"found {str(text)[:40]!r}" if text is not None or what in row else f"there is none beside {names}"
            raise InputError(f"{place}: expected text under {what!r}, {found}. A question needs "
                             "question and context, which in SQuAD's layout its paragraph has.")
        if not text.strip():
            raise InputError(f"{place}: the {what} is empty. Expected text; take the question out "
                             "of the data.")
        if re.search("[\ud800-\udfff]", text):
            raise InputError(f"{place}: the {what} holds half a character (a lone surrogate, such "
                             "as a cut-off emoji leaves). Expected Unicode text; take it out of "
                             "the file.")
    return {"place": place, "id": None if name is None else str(name), "question": row["question"],
            "context": context, "answers": read_answers(row, context, place)}


def list_objects(owner, name, place):
    """Take a list of objects out of one. InputError where something else stands there."""
    found = owner.get(name)
    if not isinstance(found, list) or not all(isinstance(part, dict) for part in found):
        raise InputError(f"{place}: expected a list of objects under {name!r}, found "
                         f"{json.dumps(found, ensure_ascii=False)[:40]}. SQuAD has data, "
                         "paragraphs, qas.")
    return found


def list_questions(entry, place):
    """List the questions of an entry of a file, (place, row, context).

    InputError where paragraphs or qas are not lists of objects.

    Returns:
        Those of an article, or a row that is one.
    """
    if "paragraphs" not in entry:
        return [(place, entry, entry.get("context"))]
    found = []
    for n, paragraph in enumerate(list_objects(entry, "paragraphs", place), 1):
        where = f"{place}, paragraph {n}"
        found += [(f"{where}, question {m}", row, paragraph.get("context")) for m, row
                  in enumerate(list_objects(paragraph, "qas", where), 1)]
    return found


def read_entries(entries, stem, on_fault, counts=None):
    """Read questions out of (place, entry), as of read_json: yields dicts as read_question makes.

    A question without an id is named by stem and its number. on_fault is called with place and
    InputError of each question that is at fault. counts: how many were read under each stem, which
    several files can have; counted on.
    """
    counts = {} if counts is None else counts
    for place, entry in entries:
        try:
            if isinstance(entry, InputError):
                raise entry
            questions = list_questions(entry, place)
        except InputError as fault:
            on_fault(place, fault)
            continue
        for where, row, context in questions:
            counts[stem] = counts.get(stem, 0) + 1
            try:
                question = read_question(row, context, where)
            except InputError as fault:
                on_fault(where, fault)
            else:
                yield question | {"id": f"{stem}-{counts[stem]}" if question["id"] is None
                                  else question["id"]}


def read_questions(path, on_fault, counts=None, encoding="utf-8"):
    """Read the questions of a file, with answers or without, as read_entries yields them.

    The file is JSON in SQuAD's layout (data, paragraphs, qas), or has rows of id, question, context
    and answers, as a list or a row a line, under any name.
    """
    return read_entries(read_json(path, encoding), os.path.basename(path).split(".")[0], on_fault, counts)


# ---------------------------------------------------------------- data


def find_rows(args, on_fault):
    """Find the questions of each split.

    on_fault is called with place and InputError of each question that is at fault, or has the id of
    one before it.

    Returns:
        Dict of split to (list of dicts as read_question makes, name of the source).

    Raises:
        InputError: a file or the data set is not there, or has no question in it.
    """
    found = {}

    def keep(split, rows, places, name):
        found[split] = list(drop_repeated_ids(rows, on_fault)), name
        if not found[split][0]:
            raise InputError(f"{', '.join(places[:3])}: there is no question in it. Expected "
                             "SQuAD's layout (data, paragraphs, qas), or rows of id, question, "
                             "context and answers.")

    loaded = load_splits(args.dataset_name, args.dataset_config_name) if args.dataset_name else {}
    # Where there are no validation data, a part of the training data is what is evaluated on.
    lacks = args.do_eval and not args.validation_file and "validation" not in loaded
    splits = {"train": args.do_train or lacks, "validation": args.do_train or args.do_eval,
              "test": args.do_predict is not False}
    splits = [split for split, wanted in splits.items() if wanted]
    if args.dataset_name:
        for split in (split for split in splits if split in loaded):
            place = f"{args.dataset_name}, split {split}"
            rows = ((f"{place}, row {n}", row) for n, row in enumerate(loaded[split]))
            keep(split, read_entries(rows, split, on_fault), [place], args.dataset_name)
    files, counts = {split: getattr(args, f"{split}_file") for split in splits}, {}
    for split, patterns in (files | {"questions": args.questions_file
                                     and [args.questions_file]}).items():
        if patterns:
            paths = find_files(patterns, f"--{split}_file")
            name = os.path.basename(paths[0]) + (f" and {len(paths) - 1} more files" if paths[1:]
                                                 else "")
            keep(split, (row for path in paths
                         for row in read_questions(path, on_fault, counts, args.file_encoding)),
                 paths, name)
    return found


def drop_repeated_ids(rows, on_fault):
    """Yield the questions but for those with the id of one before them.

    For those, on_fault is called.
    """
    places = {}
    for row in rows:
        if row["id"] in places:
            on_fault(row["place"], InputError(f"{row['place']}: the id {row['id']} stands at "
                                              f"{places[row['id']]} already. Predictions are named "
                                              "by ids: give each question its own."))
        else:
            places[row["id"]] = row["place"]
            yield row


def drop_long_questions(rows, tokenizer, max_seq_length, doc_stride, on_fault):
    """List the questions that leave room for a context beside them.

    For the others, on_fault is called.
    """
    edges = sum(map(len, special_frame(tokenizer)))
    ids = tokenizer([row["question"].strip() for row in rows], add_special_tokens=False,
                    verbose=False)["input_ids"]
    kept = []
    for row, question in zip(rows, ids, strict=True):
        room = max_seq_length - edges - len(question)
        said = f"{row['place']}: the question has {len(question)} tokens, of {max_seq_length} (--max_seq_length)"
        if room < 1:
            on_fault(row["place"], InputError(f"{said}, which leaves none for its context: "
                                              f"{row['question'][:60]!r}. Give a larger "
                                              "--max_seq_length, or shorten it."))
        elif room <= doc_stride and room < len(tokenizer(row["context"],
                                                         add_special_tokens=False)["input_ids"]):
            on_fault(row["place"], InputError(f"{said}, which leaves {room} for its context; "
                                              "--doc_stride, what two windows share, is "
                                              f"{doc_stride}. Give --doc_stride {room // 2} or "
                                              "less, or a larger --max_seq_length."))
        else:
            kept.append(row)
    return kept


def prepare_rows(args, tokenizer, folder, say):
    """Read what the run needs: dict of split to (questions, name).

    Questions that are at fault end the run, or go to skipped_rows.jsonl (--on_bad_row skip).
    """
    skipped = []

    def on_fault(place, fault):
        if args.on_bad_row == "error":
            raise fault
        skipped.append({"place": place, "reason": str(fault)})

    try:
        found = find_rows(args, on_fault)
    except InputError as error:
        left_out = f" Left out as faulty: {len(skipped):,}, the first {skipped[0]['reason']}" if skipped else ""
        raise InputError(f"{error}{left_out}") from None
    for split in [split for split in ("train", "validation") if split in found]:
        rows, name = found[split]
        for row in rows:
            if row["answers"] is None:
                on_fault(row["place"], InputError(f"{row['place']}: there are no answers to "
                                                  f"{row['question'][:60]!r}. Data to train on or "
                                                  "to evaluate on need them, or the empty list; "
                                                  "--test_file may have none."))
        found[split] = [row for row in rows if row["answers"] is not None], name
    asked, name_of_asked = found.pop("questions", ([], ""))
    parts = choose_parts(found, args) if has_tasks(args) else {}
    if asked:
        parts["questions"] = ([row | {"answers": None} for row in asked], name_of_asked), ("all", 0)
    data, samples = {}, {"train": args.max_train_samples, "validation": args.max_eval_samples,
                         "test": args.max_predict_samples}
    for split, ((rows, name), part) in parts.items():
        rows = take_part(rows, name, *part) if rows else []
        if samples.get(split):
            seed = args.seed if split == "train" else 0
            order = np.random.default_rng((seed, 1)).permutation(len(rows))[: samples[split]]
            rows = [rows[n] for n in np.sort(order)]
        rows = drop_long_questions(rows, tokenizer, args.max_seq_length, args.doc_stride, on_fault)
        if not rows:
            raise InputError(f"{name}: no question is left for {split}; {len(skipped):,} are at "
                             f"fault, the first {skipped[0]['reason']}")
        data[split] = rows, name
    write_list(folder, "skipped_rows.jsonl", skipped, "faulty questions are left out", say)
    return data


def take_part(rows, name, which, percent):
    """Take the questions of a part.

    That is "all", those of the paragraphs "drawn" for evaluation, percent of them, or the "rest".

    Whole paragraphs are drawn, by number alone, so that no text of the evaluation is trained on,
    and every seed has the same; of one paragraph, questions are drawn.
    """
    if which == "all":
        return rows
    numbers = {}
    groups = np.array([numbers.setdefault(row["context"], len(numbers)) for row in rows])
    groups = groups if len(numbers) > 1 else np.arange(len(rows))
    total = len({*groups.tolist()})
    drawn = max(1, round(total * percent / 100))
    if drawn >= total:
        what = f"{total} paragraphs" if len(numbers) > 1 else f"{len(rows)} question{'s' * (len(rows) > 1)}"
        raise InputError(f"{name}: {percent}% of its {what}, set apart for evaluation, leave none "
                         "to train on. Give --validation_file, or another "
                         "--validation_split_percentage (0: none).")
    is_drawn = np.isin(groups, np.random.default_rng(0).permutation(total)[:drawn])
    return [row for row, taken in zip(rows, is_drawn, strict=True) if taken == (which == "drawn")]


def find_version(data, wanted, kept, say):
    """Tell whether questions may have no answer, as in SQuAD 2.0.

    Test data of which no question has an answer are taken for data whose answers are not known.

    Args:
        data: dict of split to (questions, name).
        wanted: the flag.
        kept: a model that is only used was trained so.

    Returns:
        --version_2_with_negative, or because some have none.
    """
    rows = data.get("test", ([], ""))[0]
    if rows and not any(row["answers"] for row in rows):
        for row in rows:
            row["answers"] = None
    unknown = sum(row["answers"] is None for row in rows)
    if unknown:
        say(f"  Careful:  {unknown:,} of {len(rows):,} test questions have no answers in "
            f"{data['test'][1]}, which are therefore answered, and not scored")
    counts = {split: sum(row["answers"] == [] for row in rows) for split, (rows, _) in data.items()}
    if any(counts.values()) and not (wanted or kept):
        split = next(split for split, count in counts.items() if count)
        place = next(row["place"] for row in data[split][0] if row["answers"] == [])
        say(f"  Careful:  {counts[split]:,} questions of the {split} data have no answer, first "
            f"{place}: taken as SQuAD 2.0, as with --version_2_with_negative")
    return wanted or kept or any(counts.values())


# ---------------------------------------------------------------- windows


def special_frame(tokenizer):
    """Ids around a question and a context.

    Returns:
        Lists of those before, between and after, as [CLS], [SEP] and [SEP].
    """
    pair = tokenizer("a", "b")
    ids, parts = pair["input_ids"], pair.sequence_ids()
    question, context = [n for n, part in enumerate(parts) if part
                         == 0], [n for n, part in enumerate(parts) if part]
    return ids[: question[0]], ids[question[-1] + 1 : context[0]], ids[context[-1] + 1 :]


def trim_offsets(text, offsets):
    """Find the characters of tokens, whole and without white space.

    Some vocabularies count the blank before a word to its first token, or have tokens of white
    space alone, which become empty, where they end. Some lose accents and vowel signs, which belong
    to the character before them.

    Args:
        text: that was tokenized.
        offsets: (start, end) of each token, in characters.

    Returns:
        Int32 arrays (tokens,) of the first and of the end.
    """
    offsets = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    solid = np.array([not character.isspace() for character in text], dtype=bool)
    mark = np.array([unicodedata.category(character)[0] == "M" for character in text], dtype=bool)
    solid, bounds = (np.concatenate([[-1], np.flatnonzero(part), [len(text)]]) for part
                     in (solid, ~mark))
    starts = solid[np.searchsorted(solid, offsets[:, 0])]
    ends = solid[np.searchsorted(solid, offsets[:, 1]) - 1] + 1
    empty, ends = ends <= starts, bounds[np.searchsorted(bounds, ends)]  # the next that is no mark
    return tuple(np.where(empty, offsets[:, 1], found).astype(np.int32) for found in (starts, ends))


def find_tokens(starts, ends, start, end):
    """Find the tokens that hold the characters from start to end.

    starts, ends: of the tokens, as trim_offsets returns them.

    Returns:
        (first, last), first > last where there are none.
    """
    return int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(starts, end)) - 1


def align(batch, numbers, tokenizer, frame, max_seq_length, doc_stride):
    """Make windows of questions, for `Dataset.map`.

    Args:
        batch: lists of `question`, `context` and `span`: first character and end of the answer, []
            where there is none, None where it is not known.
        numbers: that of each question.
        frame: as special_frame returns.

    Returns:
        dict of lists, an entry for each window: input_ids; begin, the position of the first token
        of the context; starts and ends, characters of the context's tokens; answer, positions of
        its first and last token, of [CLS] where it is not whole in this window, or -100 where it is
        not known; span, the characters of the tokens that hold the answer, [] where none do;
        question, its number.
    """
    rows = {name: [] for name in ("input_ids", "begin", "starts", "ends", "answer", "span",
                                  "question")}
    texts = list(dict.fromkeys(batch["context"]))
    tokenized = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True,
                          verbose=False)
    contexts = {text: (np.array(ids, dtype=np.int32), *trim_offsets(text, offsets)) for text, ids,
                offsets in zip(texts, tokenized["input_ids"], tokenized["offset_mapping"],
                               strict=True)}
    questions = tokenizer([text.strip() for text in batch["question"]], add_special_tokens=False,
                          verbose=False)
    for number, question, text, span in zip(numbers, questions["input_ids"], batch["context"],
                                            batch["span"], strict=True):
        ids, starts, ends = contexts[text]
        prefix = np.array([*frame[0], *question, *frame[1]], dtype=np.int32)
        room = max_seq_length - len(prefix) - len(frame[2])
        first, last = find_tokens(starts, ends, *span) if span else (0, -1)
        held = [starts[first], ends[last]] if first <= last else []
        # The last is that behind which no more is left than it shares with the one before. One that
        # fits is one window.
        for at in range(0, max(1, len(ids) - doc_stride), max(1, room - doc_stride)):
            here, behind = slice(at, at + room), min(at + room, len(ids))
            position = [len(prefix) - at + n for n
                        in (first, last)] if at <= first <= last < behind else [0, 0]
            rows["input_ids"].append(np.concatenate([prefix, ids[here],
                                                     np.array(frame[2], dtype=np.int32)]))
            rows["begin"].append(len(prefix))
            rows["starts"].append(starts[here])
            rows["ends"].append(ends[here])
            rows["answer"].append([-100, -100] if span is None else position)
            rows["span"].append(held)
            rows["question"].append(number)
    return rows


def answer_span(row):
    """Characters of a question's first reference answer.

    Without white space around it; [] or None where there is none.
    """
    if not row["answers"]:
        return row["answers"]
    text, start = row["answers"][0]
    start += len(text) - len(text.lstrip())
    return [start, start + len(text.strip())]


def make_windows(rows, tokenizer, max_seq_length, doc_stride, *, num_proc=None, overwrite=False,
                 in_memory=False):
    """Make the windows of questions, or find them in the cache: a Dataset as align makes them.

    Args:
        rows: dicts as read_question makes them.
        num_proc: processes that tokenize, or None.
        overwrite: do not look into the cache.
        in_memory: nothing is written, as for what is asked.
    """
    settings = {"frame": special_frame(tokenizer), "max_seq_length": max_seq_length,
                "doc_stride": doc_stride}
    columns = {name: [row[name] for row in rows] for name in ("question", "context")}
    columns["span"], numbers = [answer_span(row) for row
                                in rows], datasets.List(datasets.Value("int32"))
    made_kinds = datasets.Features({"input_ids": numbers, "begin": datasets.Value("int32"),
                                    "starts": numbers, "ends": numbers, "answer": numbers,
                                    "span": numbers, "question": datasets.Value("int64")})
    if in_memory:
        return datasets.Dataset.from_dict(align(columns, range(len(rows)), tokenizer, **settings),
                                          made_kinds)
    digest, context = hashlib.sha256(f"1 {settings} {tokenizer.backend_tokenizer.to_str()}".encode()), None
    for question, text, span in zip(*columns.values(), strict=True):
        digest.update(json.dumps([question, span, None if text is context else text]).encode())
        context = text  # those of a paragraph stand together
    cache = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / f"windows-{digest.hexdigest()[:32]}.arrow"
    if made.exists() and not overwrite:
        with suppress(pyarrow.ArrowInvalid):  # a damaged one is made anew
            return datasets.Dataset.from_file(str(made))
    kinds = datasets.Features({name: datasets.Value("large_string") for name
                               in ("question", "context")}
                              | {"span": datasets.List(datasets.Value("int32"))})
    # about 2 MB of text
    at_once = max(1, min(1000, int(2e6 * len(rows) / sum(map(len, columns["context"])))))
    with InterruptEnds():
        return datasets.Dataset.from_dict(columns,
                                          kinds).map(align, batched=True, batch_size=at_once,
                                                     with_indices=True,
                                                     remove_columns=list(columns),
                                                     num_proc=num_proc,
                                                     fn_kwargs={"tokenizer": tokenizer, **settings},
                                                     desc="Tokenizing",
                                                     new_fingerprint=made.stem[-32:],
                                                     cache_file_name=str(made),
                                                     load_from_cache_file=False,
                                                     features=made_kinds)


def list_inexact(rows, windows):
    """List the questions whose reference answer tokens cannot give back, or no window holds whole:
    dicts to be written.

    An answer may begin or end inside a token, or be of characters that the tokenizer drops.
    """
    held = dict(zip(windows["question"], windows["span"], strict=True))
    whole = {number for number, answer in zip(windows["question"], windows["answer"], strict=True)
             if answer[1] > 0}
    found = []
    for number, row in enumerate(rows):
        if row["answers"]:
            start, end = held[number] or (0, 0)
            given, text = row["context"][start:end], row["answers"][0][0].strip()
            if given != text or number not in whole:
                found.append({"place": row["place"], "id": row["id"], "answer": text,
                              "tokens_give": given, "whole_in_a_window": number in whole})
    return found


def lengths_of(windows):
    """Count the tokens of each window, without Python lists of them: int64, (windows,)."""
    return pyarrow.compute.list_value_length(windows.data["input_ids"]).to_numpy().astype(np.int64)


class SpanCollator:
    """Makes batches of windows, given their numbers, padded to the longest.

    Args:
        windows: Dataset as align makes them.
        pad_id: id of the padding.
        frame: as special_frame returns; a batch consists of it alone where there are no windows for
            a process.
        with_types: the model tells the question from the context by token types 0 and 1.
    """

    def __init__(self, windows, pad_id, frame, with_types):
        self.windows, self.pad_id, self.with_types = windows.select_columns(["input_ids", "begin", "answer"]), pad_id, (
            with_types)
        self.nothing = {"input_ids": [[*frame[0], *frame[1], *frame[2]]],
                        "begin": [len(frame[0]) + len(frame[1])], "answer": [[-100, -100]]}

    def __call__(self, numbers):
        """Make a batch of the windows of these numbers.

        Without numbers, as the last global batch can leave a process, it is one row in which
        nothing is predicted.

        Returns:
            As of batch, and labels, positions of start and end (batch, 2).
        """
        rows = self.windows[numbers] if numbers else self.nothing
        return self.batch(rows) | {"labels": torch.tensor(rows["answer"])}

    def batch(self, rows):
        """Make what the model takes of rows of windows.

        Returns:
            input_ids, attention_mask, token_type_ids, (batch, seq).
        """
        ids = [np.array(row, dtype=np.int64) for row in rows["input_ids"]]
        batch = {"input_ids": pad(ids, self.pad_id),
                 "attention_mask": pad([np.ones_like(row) for row in ids], 0)}
        if self.with_types:
            types = [np.arange(len(row)) >= begin for row, begin
                     in zip(ids, rows["begin"], strict=True)]
            batch["token_type_ids"] = pad(types, 0)
        return batch


# ---------------------------------------------------------------- answers


def hide_padding(_model, _args, inputs, outputs):
    """Take padding out of what a model may choose (a forward hook).

    Else the loss of a window would depend on its batch.
    """
    for name in ("start_logits", "end_logits"):
        # (batch, seq)
        outputs[name] = outputs[name].float().masked_fill(inputs["attention_mask"] == 0, -torch.inf)
    return outputs


def span_nll(logits, targets, smoothing=0.0):
    """Sum the negative log-likelihood of positions, in nats.

    Args:
        logits: (batch, seq), -inf for padding.
        targets: (batch,), -100 where nothing is predicted.
        smoothing: share of the probability that is spread over all tokens.
    """
    scores = logits.log_softmax(dim=-1)
    nll = -scores.gather(1, targets.clamp(min=0)[:, None])[:, 0]  # (batch,)
    if smoothing:
        is_token = scores > -torch.inf
        spread = -scores.masked_fill(~is_token, 0.0).sum(dim=-1) / is_token.sum(dim=-1)
        nll = (1 - smoothing) * nll + smoothing * spread
    return nll.masked_fill(targets < 0, 0.0).sum()


@torch.no_grad()
def score_windows(model, windows, numbers, collator, batch_size, device):
    """Score the tokens of windows.

    Logits are float32 (batch, seq), on the device.

    Args:
        model: not wrapped.
        windows: Dataset as align makes it.
        numbers: int array of those to score, in this order.

    Returns:
        Yields, batch by batch, (their numbers, rows, logits of starts, logits of ends).
    """
    model.eval()
    for at in range(0, len(numbers), batch_size):
        rows = windows[numbers[at : at + batch_size]]
        outputs = model(**send_to_device(collator.batch(rows), device))
        yield numbers[at : at + batch_size], rows, outputs.start_logits, outputs.end_logits


def allowed_tokens(rows, width):
    """Tell which tokens may begin or end an answer, those of the context that are not empty.

    Returns:
        Bool (batch, width).
    """
    allowed = np.zeros((len(rows["begin"]), width), dtype=bool)
    for row, begin, starts, ends in zip(allowed, rows["begin"], rows["starts"], rows["ends"],
                                        strict=True):
        row[begin : begin + len(starts)] = np.array(starts) < np.array(ends)
    return allowed


def find_highest(values, count):
    """Find the highest values of each row.

    Rows with fewer than count give fewer.

    Returns:
        (values, places), (rows, count) each, the highest first; of equal ones those that stand
        first.
    """
    best, places = values.topk(min(count + 1, values.shape[1]))
    # topk takes whichever it likes of equal values. One more than is wanted shows whether a row has
    # any that matter.
    tied = ((best[:, 1:] == best[:, :-1]) & (best[:, 1:] > -torch.inf)).any(dim=1).nonzero()[:, 0]
    if len(tied):
        order = values[tied].sort(dim=1, descending=True, stable=True)
        best[tied], places[tied] = (part[:, : best.shape[1]] for part in order)
    return best[:, :count], places[:, :count]


def keep_best(logits, allowed, count):
    """Find the best tokens of each window.

    Of equal ones, those that stand first. Where fewer are allowed, logits are -inf. Only this
    leaves the device.

    Returns:
        (logits float32, positions int32), (batch, count), the best first.
    """
    values, places = find_highest(logits.masked_fill(~allowed, -torch.inf), count)
    fill = count - values.shape[1]
    values, places = F.pad(values, (0, fill), value=-torch.inf), F.pad(places, (0, fill))
    return values.cpu().numpy(), places.cpu().numpy().astype(np.int32)


def predict_spans(model, windows, collator, *, n_best, batch_size, device, processes):
    """Score all windows, and keep what answers need.

    Windows are shared out over the processes. What is kept of one is a few hundred bytes, however
    long it is.

    Returns:
        The dict has, for "start" and "end", NAME_logit (float32), NAME, positions in the window,
        and NAME_char, the character of the context where the token starts or ends (int32), all
        (windows, n_best), the best first; and "null", the logits of [CLS], (windows, 2). The same
        on all processes.

    Returns:
        (dict of arrays, summed nll, number of positions it is a sum of).
    """
    top = {"null": np.zeros((len(windows), 2), dtype=np.float32)}
    for name in ("start", "end"):
        top[f"{name}_logit"] = np.zeros((len(windows), n_best), dtype=np.float32)
        top |= {key: np.zeros((len(windows), n_best), dtype=np.int32) for key
                in (name, f"{name}_char")}
    lengths = lengths_of(windows)
    mine = np.argsort(-lengths, kind="stable")[processes.rank :: processes.num_processes]
    nll, counted = [], 0
    bar = tqdm(total=len(mine), desc="Predicting", unit=" windows", leave=False,
               disable=processes.rank > 0 or None)
    for numbers, rows, *logits in score_windows(model, windows, mine, collator, batch_size, device):
        width, targets = logits[0].shape[1], torch.tensor(rows["answer"], device=device)
        allowed = torch.from_numpy(allowed_tokens(rows, width)).to(device)
        for n, name in enumerate(("start", "end")):
            top["null"][numbers, n] = logits[n][:, 0].cpu().numpy()
            values, places = keep_best(logits[n], allowed, n_best)
            top[f"{name}_logit"][numbers], top[name][numbers] = values, places
            places = places - np.array(rows["begin"])[:, None]  # among the tokens of the context
            # even of no token
            characters = pad([np.array([*row, 0]) for row in rows[f"{name}s"]], 0).numpy()
            top[f"{name}_char"][numbers] = np.take_along_axis(
                characters, np.clip(places, 0, characters.shape[1] - 1), axis=1)
            nll.append(span_nll(logits[n], targets[:, n]).item())
        counted += int((targets >= 0).sum())
        bar.update(len(numbers))
    bar.close()
    loss, counted = processes.sum(math.fsum(nll), counted)
    add_up(processes, *top.values())  # each window was scored on one process
    return top, loss, counted


def choose_spans(top, questions, n_best, max_answer_length):
    """Find the best spans of each question over all of its windows.

    As search_spans does, for many windows at once.

    Args:
        top: dict of arrays as predict_spans returns.
        questions: number of each window's question, ascending.

    Returns:
        dict of arrays (spans,), sorted by question, and within one from the best on: question,
        start and end in characters of its context, start_logit, end_logit, score (their sum,
        float64).
    """
    kept, wide = [], top["start"].shape[1]
    tensors = {name: torch.from_numpy(values) for name, values in top.items()}
    at_once = max(1, 400_000 // wide**2)  # (windows, starts, ends) of all windows would be too much
    for at in range(0, len(questions), at_once):
        first, last, start_logit, end_logit = (tensors[name][at : at + at_once] for name
                                               in ("start", "end", "start_logit", "end_logit"))
        further = last[:, None, :] - first[:, :, None]  # tokens
        scores = start_logit[:, :, None].double() + end_logit[:, None, :]
        scores.masked_fill_((further < 0) | (further >= max_answer_length), -torch.inf)
        kept.append([values.numpy() for values in find_highest(scores.flatten(1), n_best)])
    scores, pairs = (np.concatenate(parts) for parts in zip(*kept, strict=True))  # (windows, pairs)
    i, j = np.divmod(pairs, wide)
    starts, ends = np.take_along_axis(top["start_char"], i,
                                      1), np.take_along_axis(top["end_char"], j, 1)
    window, rank = merge_windows(scores, starts.astype(np.int64) << 32 | ends, questions, n_best)
    i, j = i[window, rank], j[window, rank]
    return {"question": questions[window], "start": starts[window, rank], "end": ends[window, rank],
            "start_logit": top["start_logit"][window, i], "end_logit": top["end_logit"][window, j],
            "score": scores[window, rank]}


def merge_windows(scores, spans, questions, n_best):
    """Find the best spans of each question among those of its windows, each span once.

    Args:
        scores: of the spans of each window, the best first, -inf where there are no more, (windows,
            ranks).
        spans: a number that tells each span of a question from the others, (windows, ranks).
        questions: as choose_spans.

    Returns:
        (windows, ranks), by question.
    """
    found, wide = [], scores.shape[1]
    begins = np.flatnonzero(np.diff(questions, prepend=-1))
    counts = np.diff(np.append(begins, len(questions)))
    # the questions with so many windows: small sorts, row by row, are fast
    for count in np.unique(counts):
        windows = begins[counts == count][:, None] + np.arange(count)
        mine, numbers = (values[windows].reshape(len(windows), -1) for values in (scores, spans))
        # of equal ones those of the first window come first
        order = np.argsort(-mine, axis=1, kind="stable")
        numbers = np.take_along_axis(numbers, order, 1)
        # windows that overlap find the same spans
        alike = np.argsort(numbers, axis=1, kind="stable")
        numbers = np.take_along_axis(numbers, alike, 1)
        is_best = np.take_along_axis(mine, order, 1) > -np.inf
        np.put_along_axis(is_best, alike[:, 1:], np.take_along_axis(is_best, alike[:, 1:], 1)
                          & (numbers[:, 1:] != numbers[:, :-1]), 1)
        row, place = np.nonzero(is_best & (is_best.cumsum(axis=1) <= n_best))
        window, rank = np.divmod(order[row, place], wide)
        found.append((windows[row, window], rank))
    window, rank = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(questions[window], kind="stable")
    return window[order], rank[order]


def search_spans(windows, n_best, max_answer_length):
    """Find the best spans of a question, one by one.

    In each window the n_best tokens with the highest scores to begin an answer are tried with the
    n_best to end it, and the n_best pairs kept, of equal ones the first that were tried; then the
    best over all windows, each span once.

    Args:
        windows: for each a list, in the order of its context's tokens, of (logit of the start,
            logit of the end, first character, end); a token without characters is not tried.

    Returns:
        Dicts of start, end, start_logit, end_logit, score and window.
    """
    found = []
    for window, tokens in enumerate(windows):
        allowed = [n for n, (_, _, start, end) in enumerate(tokens) if start < end]
        firsts = sorted(allowed, key=lambda n: -tokens[n][0])[:n_best]
        lasts = sorted(allowed, key=lambda n: -tokens[n][1])[:n_best]
        pairs = [{"window": window, "start": tokens[first][2], "end": tokens[last][3],
                  "start_logit": tokens[first][0], "end_logit": tokens[last][1],
                  "score": tokens[first][0] + tokens[last][1]} for first in firsts for last in lasts
                 if 0 <= last - first < max_answer_length]
        found += sorted(pairs, key=lambda pair: -pair["score"])[:n_best]
    best = {}
    for pair in sorted(found, key=lambda pair: -pair["score"]):
        best.setdefault((pair["start"], pair["end"]), pair)
    return list(best.values())[:n_best]


def rank_answers(context, spans, null):
    """Make a question's entry for nbest_predictions.json.

    Args:
        context: its text.
        spans: dicts as search_spans returns.
        null: logits of [CLS], which stand for no answer, the empty text, to be ranked among them;
            or None where there is always an answer.

    Returns:
        List of dicts of text, probability, logits, start and end.
    """
    names = ("start_logit", "end_logit", "start", "end")
    found = [(context[span["start"] : span["end"]], *(span[name] for name in names)) for span
             in spans]
    if null is not None or not found:
        found.append(("", *(null or (0.0, 0.0)), 0, 0))
    found.sort(key=lambda entry: -(entry[1] + entry[2]))
    shares = np.exp(np.array([entry[1] + entry[2] - found[0][1] - found[0][2] for entry in found]))
    return [{"text": text, "probability": float(share), **dict(zip(names, values, strict=True))}
            for (text, *values), share in zip(found, shares / shares.sum(), strict=True)]


def normalize_answer(text):
    """Write an answer as the official scripts compare it.

    Returns:
        Lower case, no punctuation, no articles, single blanks.
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction, reference, version_2):
    """F1 of the words of two answers, 0 to 1.

    Of an empty one, SQuAD 2.0 says 1 where both are; SQuAD 1.1 says 0.
    """
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if version_2 and not (predicted and expected):
        return float(predicted == expected)
    same = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * same / (len(predicted) + len(expected)) if same else 0.0


class SquadScores(evaluate.Metric):
    """Exact match and F1 by the rules of SQuAD 1.1, in percent.

    Returns:
        The best over a question's references.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__, citation="Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250",
            inputs_description="predictions: texts; references: lists of texts",
            features=datasets.Features({"predictions": datasets.Value("string"),
                                        "references": datasets.Sequence(datasets.Value("string"))}))

    def _compute(self, predictions, references):
        """Score texts: dict of exact_match and f1."""
        exact = [max(normalize_answer(text) == normalize_answer(answer) for answer in answers)
                 for text, answers in zip(predictions, references, strict=True)]
        f1 = [max(token_f1(text, answer, False) for answer in answers) for text, answers
              in zip(predictions, references, strict=True)]
        return {"exact_match": 100 * sum(exact) / len(exact), "f1": 100 * math.fsum(f1) / len(f1)}


class Squad2Scores(evaluate.Metric):
    """Exact match and F1 by the rules of SQuAD 2.0, in percent, where questions may have no answer."""

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__, citation="Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822",
            inputs_description="predictions: the text if there is an answer, and a score of no_answer, higher where "
                               "there is none; references: lists of texts, empty where there is none; threshold",
            features=datasets.Features({
                "predictions": {"text": datasets.Value("string"), "no_answer": datasets.Value("float64")},
                "references": datasets.Sequence(datasets.Value("string"))}))

    def _compute(self, predictions, references, threshold=0.0):
        """Score answers, none where no_answer exceeds the threshold.

        Returns:
            Dict of exact, f1, total, the same of questions with an answer (HasAns_) and without
            (NoAns_), and the best that another threshold would give (best_).
        """
        texts, no_answer = [row["text"] for row
                            in predictions], np.array([row["no_answer"] for row in predictions])
        has_answer = np.array([len(answers) > 0 for answers in references])
        # A reference that is nothing but articles and punctuation is none; a question without any
        # has the empty one.
        golds = [[answer for answer in answers if normalize_answer(answer)] or [""] for answers
                 in references]
        raw = {"exact": [max(normalize_answer(text) == normalize_answer(gold) for gold in answers)
                         for text, answers in zip(texts, golds, strict=True)],
               "f1": [max(token_f1(text, gold, True) for gold in answers) for text, answers
                      in zip(texts, golds, strict=True)]}
        raw = {name: np.array(scores, dtype=np.float64) for name, scores in raw.items()}
        scores = {name: np.where(no_answer > threshold, ~has_answer, values) for name, values
                  in raw.items()}
        found = {}
        for prefix, which in (("", np.ones_like(has_answer)), ("HasAns_", has_answer),
                              ("NoAns_", ~has_answer)):
            if which.any():
                found |= {prefix + name: 100 * math.fsum(values[which]) / int(which.sum()) for name,
                          values in scores.items()} | {f"{prefix}total": int(which.sum())}
        for name, values in raw.items():
            found |= dict(zip((f"best_{name}", f"best_{name}_thresh"),
                              find_threshold(values, no_answer, has_answer), strict=True))
        return found


def find_threshold(scores, no_answer, has_answer):
    """Find the threshold with the best mean score: (that score in percent, threshold).

    Args:
        scores: of each question's answer, 0 to 1, (questions,).
        no_answer: what is held against the threshold; a question whose own exceeds it gets no
            answer.
        has_answer: bool, (questions,).

    Returns:
        The threshold is 0 where no answer at all is best and 0 gives none, as in the official
        script; else that of the questions, the lowest of equally good ones.
    """
    order = np.argsort(no_answer, kind="stable")
    gains = np.cumsum(np.where(has_answer, scores, scores - 1)[order])  # over no answer to any
    # a threshold answers all that have equal values
    is_last = np.append(np.diff(no_answer[order]) > 0, True)
    totals = np.where(is_last, gains, -np.inf)
    best, lowest = int(totals.argmax()), float(no_answer[order[0]])
    if totals[best] <= 0:
        return 100 * float((~has_answer).mean()), 0.0 if lowest > 0 else float(np.nextafter(lowest, -np.inf))
    return 100 * float((~has_answer).sum()
                       + totals[best]) / len(scores), float(no_answer[order[best]])


class Answerer:
    """Answers the questions of a split with a model, and scores it where they have references.

    Args:
        rows, windows: of the split. version_2: questions may have no answer.
        threshold: how much better than an answer none may be.
        n_best, max_answer_length: as for choose_spans.
        how: what else predict_spans takes.

    Attributes:
        ranked: function that makes the entry of a question's number for nbest_predictions.json, as
            of the last call.
        texts: the answers, empty where there is none; odds: how much better none is, (questions,);
            as of the last call.
    """

    def __init__(self, rows, windows, version_2, threshold, n_best, max_answer_length, **how):
        self.rows, self.windows, self.version_2, self.threshold = rows, windows, version_2, threshold
        self.n_best, self.max_answer_length, self.how = n_best, max_answer_length, how
        self.questions, self.ranked, self.texts, self.odds = windows.data["question"].to_numpy(), None, None, None

    def __call__(self, model, prefix="eval"):
        """Answer the questions.

        Returns:
            Dict of scores with a prefix, empty where there are no references to score by.
        """
        n_best = min(self.n_best, int(lengths_of(self.windows).max()))
        top, loss, counted = predict_spans(model, self.windows, n_best=n_best, **self.how)
        spans = choose_spans(top, self.questions, self.n_best, self.max_answer_length)
        starts = np.searchsorted(spans["question"], np.arange(len(self.rows) + 1))
        # No answer is as likely as in the window that has least to say for it: in all others [CLS]
        # is right anyway.
        sums = top["null"].astype(np.float64).sum(axis=1)
        order = np.lexsort((sums, self.questions))
        null = top["null"][order[np.searchsorted(self.questions[order],
                                                 np.arange(len(self.rows)))]].tolist()

        def ranked(number):
            part = slice(starts[number], starts[number + 1])
            values = {name: spans[name][part].tolist() for name in spans if name != "question"}
            listed = [dict(zip(values, row, strict=True)) for row
                      in zip(*values.values(), strict=True)]
            context = self.rows[number]["context"]
            return rank_answers(context, listed, null[number] if self.version_2 else None)

        found = starts[:-1] < starts[1:]
        first = np.minimum(starts[:-1], max(len(spans["question"]) - 1, 0))
        texts = [row["context"][spans["start"][at] : spans["end"][at]] if there else "" for row, at,
                 there in zip(self.rows, first, found, strict=True)]
        self.odds = np.array([sum(pair) - spans["score"][at] if there else 0.0 for pair, at, there
                              in zip(null, first, found, strict=True)])
        self.ranked = ranked
        self.texts = ["" if self.version_2 and odds > self.threshold else text for text, odds
                      in zip(texts, self.odds, strict=True)]
        references = [row["answers"] and [text for text, _ in row["answers"]] for row in self.rows]
        if any(answers is None for answers in references):
            return {}
        if self.version_2:
            scores = Squad2Scores(keep_in_memory=True).compute(
                predictions=[{"text": text, "no_answer": odds} for text, odds in zip(texts, self.odds, strict=True)],
                references=references, threshold=self.threshold)
        else:
            scores = SquadScores(keep_in_memory=True).compute(predictions=texts, references=references)
        return {f"{prefix}_{name}": score for name, score
                in {"loss": loss / max(counted, 1), **scores}.items()}


def write_predictions(output_dir, answerer):
    """Write predictions.json and nbest_predictions.json.

    And null_odds.json, where questions may have no answer.
    """
    values = {"predictions": answerer.texts,
              "nbest_predictions": map(answerer.ranked, range(len(answerer.rows)))}
    Path(output_dir, "null_odds.json").unlink(missing_ok=True)  # that of an earlier run
    if answerer.version_2:
        values["null_odds"] = answerer.odds.tolist()
    for name, of_questions in values.items():
        with open(Path(output_dir, f"{name}.json"), "w", encoding="utf-8", newline="\n") as file:
            # one at a time in memory
            for n, (row, value) in enumerate(zip(answerer.rows, of_questions, strict=True)):
                entry = json.dumps({row["id"]: value}, indent=4, ensure_ascii=False)
                file.write(("{\n" if not n else ",\n") + entry[2:-2])
            file.write("\n}\n")


# ---------------------------------------------------------------- ask


def ask(model, row, windows, collator, *, version_2, threshold, n_best, max_answer_length,
        batch_size, device):
    """Answer one question.

    The last is a list of (text of the token, logit of the start, logit of the end), the tokens of
    the context in the window that holds the best span.

    Returns:
        (text, entry as of rank_answers, odds of no answer or None, scores of the best window).
    """
    scored, null = [], None
    for _, rows, starts, ends in score_windows(model, windows, np.arange(len(windows)), collator,
                                               batch_size, device):
        for n, begin in enumerate(rows["begin"]):
            logits = [part[n, begin : begin + len(rows["starts"][n])].tolist() for part
                      in (starts, ends)]
            scored.append(list(zip(*logits, rows["starts"][n], rows["ends"][n], strict=True)))
            pair = [starts[n, 0].item(), ends[n, 0].item()]
            null = pair if null is None or sum(pair) < sum(null) else null
    spans = search_spans(scored, n_best, max_answer_length)
    ranked = rank_answers(row["context"], spans, null if version_2 else None)
    best = spans[0] if spans else {"start": 0, "end": 0, "score": sum(null)}
    odds = sum(null) - best["score"] if version_2 else None
    text = "" if version_2 and odds > threshold else row["context"][best["start"] : best["end"]]
    shown = scored[best["window"]] if spans else scored[0]
    return text, ranked, odds, [(row["context"][first:last], start, end) for start, end, first, last
                                in shown]


def draw_scores(path, tokens, title, per_row=40):
    """Draw the scores of tokens to begin and to end the answer, so many a row.

    Args:
        path: where to, or a file that takes the bytes of a PNG.
        tokens: list of (text, logit of the start, logit of the end).
        title: stands above.

    Returns:
        Uint8 array (height, width, 3).
    """
    rows = [tokens[at : at + per_row] for at in range(0, len(tokens),
                                                      per_row)] or [[("", 0.0, 0.0)]]
    values = [value for _, *pair in tokens for value in pair if math.isfinite(value)] or [0.0]
    width, low, high = len(rows[0]), min(values), max(values)
    low -= 0.05 * (high - low) + 1e-6  # so that the lowest has a bar, too
    figure = Figure(figsize=(max(5, 0.35 * width), 0.8 + 2.1 * len(rows)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, wrap=True, parse_math=False)  # a $ is a dollar
    for axes, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        for shift, part, color, name in ((-0.2, 1, "#1f6feb", "start"), (0.2, 2, "#e8590c", "end")):
            axes.bar(np.arange(len(row)) + shift, [token[part] - low for token in row], width=0.4,
                     color=color, bottom=low, label=name)
        # a link can be one token
        labels = [text if len(text) <= 16 else f"{text[:15]}…" for text, _, _ in row]
        axes.set_xticks(range(len(row)), labels, rotation=90, fontsize=9, parse_math=False)
        axes.set_xlim(-0.6, width - 0.4)
        axes.set_ylim(low, high + 0.05 * (high - low))
        axes.set_ylabel("score")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2,
                  frameon=False)
    if isinstance(path, str | Path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    if str(path).lower().endswith((".svg", ".pdf")):
        figure.savefig(path)
    else:  # what is drawn already
        imsave(path, pixels, format="png")
    return pixels


def send_picture(trackers, name, picture):
    """Send a picture, a uint8 array (height, width, 3), to the trackers."""
    for tracker in trackers:
        if tracker.name == "tensorboard":
            tracker.tracker.add_image(name, picture, dataformats="HWC")
        else:
            kind = importlib.import_module(tracker.name).Image  # of wandb, or of trackio
            tracker.log({name: kind(picture)})


def pick_shown(ranked, text, count=4):
    """Pick what is shown of the entries that rank_answers made.

    Returns:
        That of the answer, and the next best other texts.
    """
    best = {}
    for entry in ranked:
        best.setdefault(entry["text"], entry)
    return [best.pop(text), *best.values()][:count]


def show_answer(question, text, ranked, odds, threshold, note, say):
    """Print the answer to a question, the next best, and why there is none."""
    say(f"\n{question}")
    for n, entry in enumerate(pick_shown(ranked, text)):
        found = f"characters {entry['start']} to {entry['end']}" if entry["text"] else "no answer"
        say(f"  {'Answer' if not n else 'Next best':<11} {entry['probability']:.3f}   "
            f"{' '.join(entry['text'].split()) or '(none)'}   {found}")
    if odds is not None:
        say(f"  No answer   scores {odds:+.3f} against the best one, and is given above "
            f"{threshold:+.3f}")
    if note and "comes trained" not in note:
        say(f"  Careful: {note}; train it first, or this says nothing")


# ---------------------------------------------------------------- train


def span_loss(outputs, labels, num_items_in_batch, smoothing=0.0):
    """Mean of the cross entropies of start and end, in nats.

    Args:
        outputs: of the model, with start_logits and end_logits (batch, seq).
        labels: positions of start and end, (batch, 2), -100 where nothing is predicted.
        num_items_in_batch: number of labels, two a window, of the whole update, over all passes and
            processes.

    Returns:
        This pass's sum, over the number in the whole update.
    """
    total = sum(span_nll(outputs[f"{name}_logits"], labels[:, n], smoothing) for n, name
                in enumerate(("start", "end")))
    return total / num_items_in_batch.clamp(min=1)


def content_of(data, tokenizer, version_2):
    """Tell apart the data of a run, which a resume may not change: dict of name to value."""
    content = {"SQuAD 2.0": version_2, "tokenizer": vocabulary_of(tokenizer)}
    for split in [split for split in ("train", "validation") if split in data]:
        digest = hashlib.sha256()
        for row in data[split][0]:
            digest.update(json.dumps([row[name] for name
                                      in ("id", "question", "context", "answers")]).encode())
        content[split] = f"{len(data[split][0]):,} questions ({digest.hexdigest()[:12]})"
    return content


def load_answerer(run, config, tokenizer):
    """Load --model to answer questions, or a checkpoint."""
    # A head for something else, which may have the same names and shapes.
    others = [name for name in config.architectures or [] if name.endswith("Classification")]
    is_other = config.num_labels != 2 or bool(others)
    is_other = is_other and not (run.args.from_scratch or run.checkpoint)
    config = copy.deepcopy(config)
    config.num_labels = 2
    model, note = run.load_model(AutoModelForQuestionAnswering, config, tokenizer,
                                 "question answering head", ignore_mismatched_sizes=True)
    run.introduce(model, renew_head(model, note) if is_other else note)
    model.register_forward_hook(hide_padding, with_kwargs=True)
    return model


def make_collator(windows, tokenizer, config):
    """Make the SpanCollator of windows, with token types for a model that has more than one."""
    return SpanCollator(windows, tokenizer.pad_token_id, special_frame(tokenizer),
                        (getattr(config, "type_vocab_size", None) or 0) > 1)


def train_or_load(run, tokenizer, config, windows, score):
    """Train, or only load: (model, results).

    Args:
        windows: to train on, or None.
        score: function that scores a model, or None.
    """
    args, model = run.args, load_answerer(run, config, tokenizer)
    if not args.do_train:
        model = run.prepare_for_evaluation(model)
        return model, score(model) if args.do_eval and score else {}
    loss = partial(span_loss, smoothing=args.label_smoothing_factor)
    trainer, results = run.fit(model, tokenizer, lengths_of(windows), score=score,
                               collator=make_collator(windows, tokenizer, config),
                               compute_loss_func=loss)
    if score and trainer.scored_at != trainer.kept_step():
        score(trainer.model)  # for the predictions, of the model that is kept
    return trainer.model, results


# ---------------------------------------------------------------- main


def check_run(args, data, version_2):
    """Find what cannot work once the data are known. InputError for it."""
    if args.early_stopping_patience and "validation" not in data:
        raise InputError("--early_stopping_patience needs scores: give --validation_file")
    names = ["f1", "exact", "loss", "HasAns_f1", "HasAns_exact", "NoAns_f1", "NoAns_exact",
             "best_f1", "best_exact"]
    names = names if version_2 else ["f1", "exact_match", "loss"]
    if str(args.metric_for_best_model).removeprefix("eval_") not in names:
        raise InputError(f"--metric_for_best_model {args.metric_for_best_model}: expected one of "
                         f"{', '.join(names)} for SQuAD {'2.0' if version_2 else '1.1'}")


def describe_data(data, windows, version_2, folder, say):
    """Say what the data are, and what looks wrong with them.

    What tokens cannot give back is listed in a file.
    """
    inexact = []
    for split, (rows, name) in data.items():
        none = sum(row["answers"] == [] for row in rows)
        texts, repeated = {row["context"] for row
                           in rows}, len(rows) - len({(row["question"], row["context"]) for row
                                                      in rows})
        say(f"{split.capitalize():<11} {len(rows):,} questions" + (f", {none:,} without an answer," if none else "")
            + f" on {len(texts):,} paragraphs, {len(windows[split]):,} windows, of {name}"
            + (f"; {repeated:,} questions stand there more than once" if repeated else ""))
        inexact += list_inexact(rows, windows[split]) if split in ("train", "validation") else []
    if "train" in data or "validation" in data:
        write_list(folder, "inexact_answers.jsonl", inexact, "answers begin or end inside a "
                   "token, or fit in no window whole", say)
    if data:
        say(f"Scores      by the rules of SQuAD {'2.0' if version_2 else '1.1'}")


def read_asked(args, tokenizer):
    """Make the row of --question, as read_question does.

    InputError where it does not fit a window, or is no text.
    """
    text = args.context
    if args.context_file is not None:
        path, *more = find_files([args.context_file], "--context_file")
        if more:
            raise InputError(f"--context_file {args.context_file}: {len(more) + 1} files; expected "
                             "one")
        text = "\n".join(line for _, lines
                         in read_lines(path, args.file_encoding) for line in lines)
    row = read_question({"id": None, "question": args.question}, text, args.context_file
                        or "--question")
    fault = []
    if not drop_long_questions([row], tokenizer, args.max_seq_length, args.doc_stride, lambda _,
                               found: fault.append(found)):
        raise fault[0]
    return row


def answer_question(run, model, tokenizer, row, version_2, threshold):
    """Answer --question, print it, and draw its scores. row: of read_asked. Others: as for ask."""
    args = run.args
    windows = make_windows([row], tokenizer, args.max_seq_length, args.doc_stride, in_memory=True)
    text, ranked, odds, tokens = ask(model, row, windows,
                                     make_collator(windows, tokenizer, model.config),
                                     version_2=version_2, threshold=threshold,
                                     n_best=args.n_best_size,
                                     max_answer_length=args.max_answer_length,
                                     batch_size=args.per_device_eval_batch_size, device=run.device)
    note = "" if args.do_train else run.note
    show_answer(args.question, text, ranked, odds, threshold, note, run.say)
    if args.plot_scores and run.rank == 0:
        title = f"{args.question}  –  {' '.join(text.split()) or 'no answer'}"
        picture = draw_scores(args.plot_scores, tokens, title)
        run.say(f"  Scores of {len(tokens)} tokens are drawn in {args.plot_scores}")
        send_picture(run.accelerator.trackers, "answer_scores", picture)


def write_answers(run, answerer):
    """Write the answers to --questions_file to answers.jsonl, a row each, with the three next best."""
    lines = []
    for n, (row, text) in enumerate(zip(answerer.rows, answerer.texts, strict=True)):
        best, *others = pick_shown(answerer.ranked(n), text)
        line = {"id": row["id"], "question": row["question"], "answer": text,
                "score": best["probability"], "start": best["start"], "end": best["end"]}
        if answerer.version_2:
            line |= {"no_answer_odds": float(answerer.odds[n]), "threshold": answerer.threshold}
        line["next_best"] = [{"answer": entry["text"], "score": entry["probability"]} for entry
                             in others]
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    path = run.folder / "answers.jsonl"
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    run.say(f"\n{len(lines):,} answers to {run.args.questions_file} are in {path}")


def choose_threshold(args, config, version_2, results):
    """Choose the threshold of no answer for what is asked, and keep it with a trained model.

    args: --null_score_diff_threshold wins. config: of the model, which may bring one along.
    """
    kept = getattr(config, "no_answer_threshold", None)
    threshold = args.null_score_diff_threshold
    if threshold is None:
        threshold = (results.get("eval_best_f1_thresh") if args.do_train else kept) or 0.0
    if args.do_train and (version_2 or kept is not None):
        config.no_answer_threshold = threshold if version_2 else None
    return threshold


def answer_at_end(run, model, answerers, threshold, results):
    """Answer test data and --questions_file, and write what was predicted: results with new scores.

    answerers: dict of split to its Answerer. threshold: of no answer, for what is asked.
    """
    for split in [split for split in ("test", "questions") if split in answerers]:
        answerers[split].threshold = threshold
        results = results | answerers[split](model, "predict")
    written = answerers.get("test") or answerers.get("validation")
    if run.rank == 0 and written:
        write_predictions(run.folder, written)
    if run.rank == 0 and "questions" in answerers:
        write_answers(run, answerers["questions"])
    return results


def describe_for_card(run, data, windows):
    """Put into the model card what the data are."""
    for split, (rows, name) in data.items():
        tokens = int(lengths_of(windows[split]).sum())
        run.card["data"][split] = f"{len(rows):,} questions, {tokens:,} tokens of {name}"
    source = data["train"][1] if "train" in data else ""
    run.card |= {"task": f"trained on {source} to answer questions with a span of a text; "
                 f"{run.note}", "tag": "question-answering"}


def has_tasks(args):
    """Whether a run is to do more than to answer what it is asked."""
    return args.do_train or args.do_eval or args.do_predict is not False


def begin(args, config, tokenizer):
    """Open the folder and read the data: (run, dict as of prepare_rows, whether as SQuAD 2.0)."""
    writes = has_tasks(args) or args.questions_file
    run = TrainerRun("qa", args, writes, QaArguments, hidden=ASKING)
    data = prepare_rows(args, tokenizer, run.folder, run.say) if writes else {}
    kept = None if args.do_train else getattr(config, "no_answer_threshold", None)
    version_2 = find_version(data, args.version_2_with_negative, kept is not None, run.say)
    check_run(args, data, version_2)
    if args.do_train:
        run.check_resume(config.model_type, content_of(data, tokenizer, version_2), (
            "max_seq_length", "doc_stride", "n_best_size", "max_answer_length",
            "null_score_diff_threshold"))
    return run, data, version_2


def cut(run, rows, tokenizer):
    """Make the windows of questions, on the first process first."""
    args = run.args
    with run.main_first():
        return make_windows(rows, tokenizer, args.max_seq_length, args.doc_stride,
                            num_proc=args.preprocessing_num_workers, overwrite=args.overwrite_cache
                            and run.rank == 0)


def make_answerer(run, rows, windows, tokenizer, config, version_2):
    """Make the Answerer of questions."""
    args = run.args
    return Answerer(rows, windows, version_2, args.null_score_diff_threshold or 0.0,
                    args.n_best_size, args.max_answer_length,
                    collator=make_collator(windows, tokenizer, config),
                    batch_size=args.per_device_eval_batch_size, device=run.device, processes=run)


def main(argv=None):
    args = parse_args(argv)
    config, tokenizer = load_config_and_tokenizer(args, args.max_seq_length)
    if not tokenizer.is_fast:
        raise InputError(f"--model {args.model}: its tokenizer does not tell where in the text a "
                         "token stands. Expected a fast one, from a tokenizer.json; give one with "
                         "--tokenizer_name.")
    asked = read_asked(args, tokenizer) if args.question is not None else None
    run, data, version_2 = begin(args, config, tokenizer)
    if args.do_train and version_2:
        config.no_answer_threshold = args.null_score_diff_threshold or 0.0  # in checkpoints
    windows = {split: cut(run, rows, tokenizer) for split, (rows, _) in data.items()}
    describe_data(data, windows, version_2, run.folder, run.say)
    answerers = {}
    for split in [split for split in data if split != "train"]:
        rows, _ = data[split]
        answerers[split] = make_answerer(run, rows, windows[split], tokenizer, config, version_2)
    with explain_out_of_memory(args.max_seq_length):
        model, results = train_or_load(run, tokenizer, config, windows.get("train"),
                                       answerers.get("validation"))
        threshold = choose_threshold(args, model.config, version_2, results)
        describe_for_card(run, data, windows)
        if has_tasks(args):
            plain = run.accelerator.unwrap_model(model, keep_torch_compile=False)
            run.save_model_and_results(plain, tokenizer, results)
        results = answer_at_end(run, model, answerers, threshold, results)
        if has_tasks(args):
            run.write_results(results)
        run.report_results(results)
        if asked:
            answer_question(run, model, tokenizer, asked, version_2, threshold)


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


# ==== run_qa.py ====


if __name__ == "__main__":
    run_main(main)
