"""Flags that all scripts have, and what argparse does not do by itself."""

import argparse
import difflib
import importlib.util
import math
import sys
from pathlib import Path

import yaml
from transformers.hf_argparser import string_to_bool

from utils.errors import InputError, blame

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
