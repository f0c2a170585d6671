"""Command lines: what argparse does not do by itself."""

import argparse
import difflib
import sys

from utils.reading import InputError
from utils.running import read_config


class ArgumentParser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print its usage, once for each process
        raise InputError(f"{message}; see --help")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):  # says what the default is, where there is one
        return action.help if action.default is None else super()._get_help_string(action)


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
