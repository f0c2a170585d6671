"""Arguments: the same flags in all scripts, bounds that hold, a hint for each that is none, and flags out of a file.

The flags of the scripts are read off the parsers that they make.
"""

import argparse
import importlib
import importlib.util
import math
import random
import sys
from argparse import Namespace

import pytest

from utils import arguments, loop_arguments
from utils.arguments import (
    ABOVE_0,
    AMOUNT,
    COUNT,
    HINTS,
    ArgumentParser,
    add_flags,
    check_output_flags,
    choose_tasks,
    number,
    parse_with_config,
    read_config,
)
from utils.errors import InputError
from utils.loop_arguments import check_loop_flags

LOOPS = ["run_mlm", "run_nsp", "run_pretraining"]
SCRIPTS = [*LOOPS, "run_ner", "run_qa"]


# ---------------------------------------------------------------- the same flags in all scripts


class ParserMadeError(Exception):
    """Ends a script where it has made its parser."""


@pytest.fixture
def made_by(monkeypatch):
    """Function that lets a script make its parser: (parser, dict of function to the words that it passed in)."""

    def make(script):
        module, words, parsers = importlib.import_module(script), {}, []

        def stop(parser, argv=None):
            parsers.append(parser)
            raise ParserMadeError

        with monkeypatch.context() as patch:
            for name in ("add_model_and_data_flags", "add_loop_flags"):
                add = getattr(module, name, None)
                if add:
                    def note(parser, *args, add=add, name=name, **kwargs):
                        words[name] = (args, kwargs)
                        return add(parser, *args, **kwargs)

                    patch.setattr(module, name, note)
            patch.setattr(module, "parse_with_config", stop)
            with pytest.raises(ParserMadeError):
                module.parse_args([])
        return parsers[0], words

    return make


def flags_of(parser):
    """What a user sees and gives of each flag of a parser: dict of flag to its settings."""
    shown = {}
    for action in parser._actions:
        settings = {name: getattr(action, name) for name in ("default", "help", "nargs", "const", "choices", "metavar")}
        settings["type"] = getattr(action.type, "__name__", None)
        for flag in action.option_strings:
            shown[flag] = settings
    return shown


def shared_flags(module, name, *args, **kwargs):
    """The flags that a function of a section adds, called with these words."""
    parser = argparse.ArgumentParser(add_help=False)
    getattr(module, name)(parser, *args, **kwargs)
    return flags_of(parser)


SOME_WORDS = {
    "add_model_and_data_flags": (("SET", "ROWS", "EXAMPLES"), {}),
    "add_loop_flags": (("TASK", "EXAMPLES"), {}),
}
ORIGINALS = {"add_model_and_data_flags": arguments, "add_loop_flags": loop_arguments}
SECTIONS = [(script, "add_model_and_data_flags") for script
            in SCRIPTS] + [(script, "add_loop_flags") for script in LOOPS]


@pytest.mark.parametrize(("script", "name"), SECTIONS)
def test_a_flag_of_a_shared_section_is_the_same_in_all_scripts_but_for_what_a_script_passes_in(script, name, made_by):
    parser, words = made_by(script)
    # With the same words, it is the same flag ...
    args, kwargs = SOME_WORDS[name]
    expected = shared_flags(ORIGINALS[name], name, *args, **kwargs)
    assert len(expected) > 15
    assert shared_flags(importlib.import_module(script), name, *args, **kwargs) == expected
    # ... and nothing that the script does later changes it.
    args, kwargs = words[name]
    with_own_words, found = shared_flags(ORIGINALS[name], name, *args, **kwargs), flags_of(parser)
    assert {flag: found.get(flag) for flag in with_own_words} == with_own_words
    for flag in expected:  # what a script passes in: the default of a folder, and words of help
        if flag != "--output_dir":
            assert found[flag]["default"] == expected[flag]["default"]


@pytest.mark.parametrize("script", ["run_ner", "run_qa"])
def test_training_and_output_have_the_defaults_of_the_loops_where_a_trainer_does_them_too(script, made_by):
    args, kwargs = SOME_WORDS["add_loop_flags"]
    expected, found = shared_flags(loop_arguments, "add_loop_flags", *args, **kwargs), flags_of(made_by(script)[0])
    assert expected.keys() - found.keys() == {"--prepare_only"}
    others = {flag for flag in expected.keys() & found.keys() if found[flag]["default"] != expected[flag]["default"]}
    # None: the best model is kept wherever there are scores of each that is saved; memory is saved where asked for.
    assert others == {"--output_dir", "--load_best_model_at_end", "--gradient_checkpointing"}
    assert found["--load_best_model_at_end"]["default"] is found["--gradient_checkpointing"]["default"] is None


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_flag_has_a_help_text_and_the_parser_can_show_it(script, made_by):
    parser, _ = made_by(script)
    text = parser.format_help()
    for flag, settings in flags_of(parser).items():
        assert flag in text or "-" in flag.lstrip("-")  # a Trainer's flags have a second spelling, with hyphens
        if settings["help"] is not argparse.SUPPRESS:
            assert settings["help"]
    words = " ".join(text.split())  # what a default is stands where there is one, and once
    assert "Hub name or folder (default: bert-base-uncased)" in words
    assert "default: None" not in words and "default: %" not in words and ") (default: " not in words


def test_no_flag_is_named_like_another_but_for_its_hyphens(made_by):
    for script in SCRIPTS:
        names = [action.dest for action in made_by(script)[0]._actions]
        assert len({*names}) == len({*(name.replace("-", "_") for name in names)})


# ---------------------------------------------------------------- flags that are none

OWN = {  # flags with a hint that are flags of a script after all
    "run_mlm": set(),
    "run_nsp": set(),
    "run_pretraining": {"--pair_unit", "--short_seq_prob"},
    "run_ner": {"--fp16", "--bf16"},  # of TrainingArguments
    "run_qa": {"--fp16", "--bf16"},
}


def refused(script, *words):
    """The message with which a script refuses a command line; its exit status is 2, as for each InputError."""
    module = importlib.import_module(script)  # which has a class of its own, as it stands alone
    with pytest.raises(module.InputError) as refusal:
        module.parse_args([*words])
    return str(refusal.value)


@pytest.mark.parametrize("script", SCRIPTS)
def test_which_flags_with_a_hint_a_script_has_itself(script, made_by):
    assert HINTS.keys() & made_by(script)[0]._option_string_actions.keys() == OWN[script]


@pytest.mark.parametrize(("script", "flag"), [(s, flag) for s in SCRIPTS for flag in HINTS if flag not in OWN[s]])
def test_a_flag_that_users_of_other_scripts_type_gets_its_hint(script, flag, tmp_path):
    (tmp_path / "run.yaml").write_text(f"{flag[2:]}: 1\n")
    for words in ([flag], [flag, "1"], [f"{flag}=1"], ["--seed", "1", flag], ["--config", str(tmp_path / "run.yaml")]):
        message = refused(script, *words)
        assert message.startswith(f"{flag} is not a flag of this script") and message.endswith(f": {HINTS[flag]}")
        assert ("run.yaml" in message) == ("--config" in words)


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("--lerning_rate", "--learning_rate"), ("--learning_rates", "--learning_rate"), ("--train_fil", "--train_file"),
     ("--trainfile", "--train_file"), ("--modle", "--model"), ("--max_seq_len", "--max_seq_length"),
     ("--ouput_dir", "--output_dir"), ("--num_epochs", "--num_train_epochs"), ("--do_trian", "--do_train"),
     ("--gradient_accumulation_step", "--gradient_accumulation_steps"), ("-seed", "--seed")],
)  # fmt: skip
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_misspelt_flag_gets_the_nearest(script, typed, nearest):
    for words in ([typed, "1"], [f"{typed}=1"]):
        assert refused(script, *words) == f"{typed} is not a flag of this script: did you mean {nearest}?"


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_like_no_flag_is_sent_to_the_help(script):
    for word in ("--zzzzzzzz", "corpus.txt"):
        assert refused(script, word) == f"{word} is not a flag of this script: see --help"


@pytest.mark.parametrize("flag", ["--learn", "--per_device_train", "--max_seq"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_shortened_flag_is_not_taken_for_the_whole_one(script, flag):
    assert refused(script, flag, "3").startswith(f"{flag} is not a flag of this script")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_value_out_of_bounds_is_named_with_its_flag_and_its_bounds(script):
    for words, message in {
        ("--learning_rate", "-1"): "--learning_rate is -1; expected at least 0; see --help",
        ("--learning_rate=nan",): "--learning_rate is nan; expected at least 0; see --help",
        ("--num_train_epochs", "0"): "--num_train_epochs is 0; expected more than 0; see --help",
        ("--validation_split_percentage", "100"):
            "--validation_split_percentage is 100; expected at least 0 and at most 99; see --help",
        ("--seed", "4294967296"): "--seed is 4294967296; expected at least 0 and at most 4294967295; see --help",
        ("--per_device_train_batch_size", "two"): "--per_device_train_batch_size: invalid int value: 'two'; see --help",
    }.items():
        assert refused(script, *words) == message


# ---------------------------------------------------------------- numbers


def draw_bounds(draw, kind):
    """Bounds of a number, at random: (low, high, above)."""
    low = kind(draw.choice([0, 1, 3, -5, draw.randint(-1000, 1000)]))
    high = draw.choice([math.inf, low + kind(draw.randint(1, 100)), low + kind(draw.randint(1, 10**9))])
    return low, high, draw.random() < 0.5


def draw_text(draw, kind, low, high):
    """The text of a number that lies in the bounds, at one of them, or beside them."""
    end = low + 1000 if high == math.inf else high
    if kind is int:
        value = draw.choice([low, end, low - 1, end + 1, draw.randint(low, end),
                             draw.randint(low - 10**6, end + 10**6)])
        return draw.choice([f"{value}", f" {value}", f"{value:+}"])
    value = draw.choice([low, end, math.nextafter(low, -math.inf), math.nextafter(low, math.inf),
                         math.nextafter(end, math.inf), draw.uniform(low, end), draw.uniform(low - 1e6, end + 1e6),
                         math.nan, math.inf, -math.inf])  # fmt: skip
    return draw.choice([repr(value), f"{value:+.17g}", f"{value:.17e}"])


@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("seed", range(20))
def test_a_number_is_taken_if_it_is_finite_and_within_its_bounds(kind, seed):
    draw = random.Random(seed)
    for _ in range(200):
        low, high, above = draw_bounds(draw, kind)
        parse, text = number(kind, low, high, above), draw_text(draw, kind, low, high)
        value = kind(text)
        if math.isfinite(value) and (low < value or (low == value and not above)) and value <= high:
            assert parse(text) == value and type(parse(text)) is kind
        else:
            with pytest.raises(argparse.ArgumentTypeError) as refusal:
                parse(text)
            expected = f"is {text}; expected {'more than' if above else 'at least'} {low}"
            assert str(refusal.value) == expected + (f" and at most {high}" if high < math.inf else "")


WORDS = ["", " ", "two", "1,5", "1 000", "0x10", "--1", "1e", "٣a", "None", "true", "½", "1.5.2"]


@pytest.mark.parametrize("text", WORDS)
@pytest.mark.parametrize("kind", [int, float])
def test_a_word_is_no_number(kind, text):
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--x", type=number(kind, 0))
    with pytest.raises(InputError) as refusal:
        parser.parse_args([f"--x={text}"])
    assert str(refusal.value) == f"--x: invalid {kind.__name__} value: {text!r}; see --help"


@pytest.mark.parametrize("text", ["1.0", "1e3", "inf", "nan"])
def test_a_count_is_a_whole_number_as_it_is_written(text):
    with pytest.raises(ValueError):
        COUNT(text)


def test_the_three_bounds_that_most_flags_have():
    assert [COUNT("1"), AMOUNT("0"), AMOUNT("1e-300"), ABOVE_0("1e-300")] == [1, 0.0, 1e-300, 1e-300]
    for parse, text in ((COUNT, "0"), (AMOUNT, "-1e-300"), (ABOVE_0, "0"), (AMOUNT, "1e400"), (ABOVE_0, "nan")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"is {text}; expected"):
            parse(text)


# ---------------------------------------------------------------- kinds of flags


@pytest.fixture
def parser():
    """A parser with a flag of each kind."""
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config")
    add_flags(
        parser,
        ("switch", bool, False, "a switch"),
        ("on", bool, True, "one that is on"),
        ("choice", ["no", "steps"], "no", "a choice"),
        ("several", [str], "several words"),
        ("rate", AMOUNT, 0.5, "a rate"),
        ("name", str, "a name"),
        ("off", bool, "a switch without one"),
    )
    return parser


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {"switch": False, "on": True, "choice": "no", "several": None, "rate": 0.5, "name": None,
              "off": False}),
        (["--switch"], {"switch": True}),
        (["--switch", "true", "--on", "false"], {"switch": True, "on": False}),
        (["--switch", "no", "--on=0"], {"switch": False, "on": False}),
        (["--choice", "steps", "--several", "a", "b c"], {"choice": "steps", "several": ["a", "b c"]}),
        (["--several", "a", "--several", "b"], {"several": ["b"]}),
        (["--rate", "1e-3", "--name=-x"], {"rate": 1e-3, "name": "-x"}),
    ],
)
def test_flags_of_each_kind_are_read(parser, words, values):
    found = vars(parse_with_config(parser, words))
    assert {name: found[name] for name in values} == values


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--switch", "maybe"], ["--switch", "maybe"]),
        (["--choice", "never"], ["--choice", "'never'", "no", "steps"]),
        (["--several"], ["--several", "expected at least one argument"]),
        (["--name"], ["--name", "expected one argument"]),
        (["--rate", "-1"], ["--rate is -1; expected at least 0"]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_flag(parser, words, parts, capsys):
    with pytest.raises(InputError) as refusal:
        parse_with_config(parser, words)
    assert all(part in str(refusal.value) for part in [*parts, "see --help"])
    assert capsys.readouterr() == ("", "")  # argparse would print its usage, in each process


def test_the_arguments_of_the_process_are_taken_where_none_are_given(parser, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_x.py", "--name", "mine"])
    assert parse_with_config(parser).name == "mine" and parse_with_config(parser, []).name is None


def test_help_says_what_a_default_is_where_there_is_one(parser):
    text = " ".join(parser.format_help().split())
    assert "a rate (default: 0.5)" in text and "a choice (default: no)" in text
    assert "a switch (default: False)" in text and "a switch without one (default: False)" in text
    assert all(f"{words} (default" not in text for words in ("a name", "several words"))


# ---------------------------------------------------------------- read_config


@pytest.fixture
def config(tmp_path):
    """Function that writes a config file and reads it as arguments."""

    def read(content):
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return read_config(path)

    return read


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("learning_rate: 5e-5", ["--learning_rate=5e-5"]),
        ("save_strategy: no", ["--save_strategy=no"]),  # a word, where YAML says False
        ("line_by_line: true", ["--line_by_line=true"]),
        ("seed: 007", ["--seed=007"]),
        ("seed: -1", ["--seed=-1"]),
        ("run_name: 2026-01-02", ["--run_name=2026-01-02"]),
        ("model: org/name  # a comment", ["--model=org/name"]),
        ('text: "The [MASK] is: happy."', ["--text=The [MASK] is: happy."]),
        ("text: über 中文", ["--text=über 中文"]),
        ("train_file: [a.txt, 'b c.txt']", ["--train_file", "a.txt", "b c.txt"]),
        ("train_file:\n  - a.txt\n  - 7", ["--train_file", "a.txt", "7"]),
        ("config_overrides: dropout=0,dim=8", ["--config_overrides=dropout=0,dim=8"]),
        ("config_overrides:\n  dropout: 0\n  dim: 8", ["--config_overrides=dropout=0,dim=8"]),
        ("report_to: null\nhub_model_id: ~\nrun_name:\nseed: 1", ["--seed=1"]),  # as if they were not there
        ("seed: 1\nlearning_rate: 2\nmodel: b", ["--seed=1", "--learning_rate=2", "--model=b"]),
        ("\ufeffseed: 1\r\nmodel: b\r\n", ["--seed=1", "--model=b"]),
        ("", []),
        ("# only a comment\n", []),
    ],
)  # fmt: skip
def test_a_config_becomes_the_arguments_as_one_would_type_them(config, content, words):
    assert config(content) == words


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("seed: 1\nmodel: [a\nrun_name: b: c\n", ["line 3"]),
        ("seed: 1\n\tmodel: b\n", ["line 2"]),
        ('seed: 1\nmodel: "b\n', ["line 3"]),
        ("- seed\n- 1\n", ["one `flag: value` a line", "['seed', '1']"]),
        ("config: other.yaml\n", ["none for config"]),
        ("seed 1\n", ["one `flag: value` a line", "'seed 1'"]),
        (b"text: caf\xe9\n", ["cannot be read"]),
        ("train_file:\n  - path: a.txt\n", ["train_file"]),
    ],
)
def test_what_cannot_be_arguments_is_refused_with_its_place(config, tmp_path, content, parts):
    with pytest.raises(InputError) as refusal:
        config(content)
    message = str(refusal.value)
    assert message.startswith(f"--config {tmp_path / 'run.yaml'}: ") and "\n" not in message
    for part in parts:
        assert part in message


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(InputError, match="--config never.yaml: cannot be read"):
        read_config("never.yaml")


def test_a_flag_that_is_typed_wins_over_the_file_wherever_it_stands(parser, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("rate: 2\nswitch: true\nseveral: [a, b]\nchoice: no\n")
    args = parse_with_config(parser, ["--config", str(path)])
    assert (args.rate, args.switch, args.several, args.choice) == (2.0, True, ["a", "b"], "no")
    for words in (["--rate", "3", "--config", str(path)], [f"--config={path}", "--rate=3"]):
        args = parse_with_config(parser, [*words, "--switch", "false", "--several", "c"])
        assert (args.rate, args.switch, args.several) == (3.0, False, ["c"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nme: x", "--nme is not a flag of this script, nor a key of {path}: did you mean --name?"),
        ("--name: x", "----name is not a flag of this script, nor a key of {path}: did you mean --name?"),
        ("rate: -1", "--rate is -1; expected at least 0; see --help"),
        ("zzzz: [a, b]", "--zzzz is not a flag of this script, nor a key of {path}: see --help"),
        ("block_size: 3", "--block_size is not a flag of this script, nor a key of {path}: give --max_seq_length"),
    ],
)
def test_a_key_that_is_no_flag_or_has_a_wrong_value_is_refused(parser, tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_text(content + "\n")
    with pytest.raises(InputError) as refusal:
        parse_with_config(parser, ["--config", str(path)])
    assert str(refusal.value) == message.format(path=path)


# ---------------------------------------------------------------- what there is to do


def chosen(parser, needs_data=True, **given):
    """What choose_tasks leaves of flags: (do_train, do_eval, do_predict, dataset_name)."""
    names = ("train_file", "validation_file", "test_file", "dataset_name", "do_train", "do_eval", "do_predict")
    args = Namespace(**{**dict.fromkeys(names[:4]), **dict.fromkeys(names[4:], False), **given})
    files = args.train_file or args.validation_file or args.test_file
    choose_tasks(args, parser, "SET", files, needs_data)
    return args.do_train, args.do_eval, args.do_predict, args.dataset_name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (True, True, False, "SET")),
        ({"needs_data": False}, (False, False, False, None)),
        ({"dataset_name": "x"}, (True, True, False, "x")),
        ({"train_file": ["a"]}, (True, True, False, None)),
        ({"validation_file": ["a"]}, (False, True, False, None)),
        ({"test_file": ["a"]}, (False, False, True, None)),
        ({"train_file": ["a"], "test_file": ["b"]}, (True, True, True, None)),
        ({"do_eval": True}, (False, True, False, "SET")),
        ({"do_eval": True, "train_file": ["a"], "test_file": ["b"]}, (False, True, False, None)),
        ({"do_predict": True, "test_file": ["b"]}, (False, False, True, None)),
    ],
)
def test_without_a_flag_that_says_so_all_that_the_data_allow_is_done(parser, given, expected):
    assert chosen(parser, **given) == expected


def test_what_cannot_be_done_is_refused(parser):
    with pytest.raises(InputError, match="--do_train has nothing to train on: give --train_file or --dataset_name"):
        chosen(parser, do_train=True, validation_file=["a"])
    with pytest.raises(InputError, match="--dataset_name and files were given; expected one of the two"):
        chosen(parser, dataset_name="x", test_file=["a"])


# ---------------------------------------------------------------- settings of the output


def output_flags(**given):
    """Flags of training and output, as the parser of a loop makes them."""
    parser = argparse.ArgumentParser()
    loop_arguments.add_loop_flags(parser, "task", "blocks")
    return Namespace(**vars(parser.parse_args([])) | given)


def test_names_that_are_not_given_are_those_of_the_folder(parser):
    args = output_flags()
    check_loop_flags(args, parser)
    assert (args.output_dir, args.run_name, args.report_to) == ("outputs/task", "outputs/task", [])
    assert args.eval_steps == args.logging_steps == 10
    args = output_flags(run_name="mine", eval_steps=3.0)
    check_loop_flags(args, parser)
    assert (args.run_name, args.eval_steps) == ("mine", 3.0)


def test_a_folder_that_a_resume_needs_is_not_overwritten(parser):
    args = output_flags(resume_from_checkpoint="latest", overwrite_output_dir=True)
    with pytest.raises(InputError, match="--overwrite_output_dir would remove what --resume_from_checkpoint goes on "
                       "with"):
        check_output_flags(args, parser)


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(parser, monkeypatch):
    with pytest.raises(InputError, match="--report_to mlflow: expected none, wandb, trackio or tensorboard"):
        check_output_flags(output_flags(report_to=["mlflow"]), parser)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match="--report_to trackio: the package is not installed; pip install trackio"):
        check_output_flags(output_flags(report_to=["trackio", "none"]), parser)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    args = output_flags(report_to=["wandb", "none", "trackio", "wandb"])
    check_output_flags(args, parser)
    assert args.report_to == ["trackio", "wandb"]


@pytest.mark.parametrize(
    ("evaluate", "save", "fits"),
    [
        (("epoch", None), ("epoch", 500.0), True),
        (("steps", 10.0), ("steps", 30.0), True),
        (("steps", None), ("steps", 30.0), True),  # as --logging_steps, 10
        (("steps", 0.1), ("steps", 0.2), True),
        (("steps", 0.1), ("steps", 0.3), True),
        (("steps", 10.0), ("steps", 25.0), False),
        (("steps", 20.0), ("steps", 10.0), False),
        (("epoch", None), ("steps", 30.0), False),
        (("no", None), ("epoch", 500.0), False),
        (("epoch", None), ("no", 500.0), False),
        (("no", None), ("no", 500.0), False),
    ],
)
def test_the_best_model_can_be_told_only_where_each_that_is_saved_is_scored(parser, evaluate, save, fits):
    (eval_strategy, eval_steps), (save_strategy, save_steps) = evaluate, save
    given = {"eval_strategy": eval_strategy, "eval_steps": eval_steps, "save_strategy": save_strategy,
             "save_steps": save_steps}  # fmt: skip
    check_loop_flags(output_flags(**given), parser)
    args = output_flags(**given, load_best_model_at_end=True)
    if fits:
        check_loop_flags(args, parser)
    else:
        with pytest.raises(InputError, match="--load_best_model_at_end needs scores of every model that is saved"):
            check_loop_flags(args, parser)
