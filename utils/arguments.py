"""Command lines: what argparse does not do by itself."""

import argparse
import difflib
import sys
from pathlib import Path

import yaml

from utils.errors import InputError


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
