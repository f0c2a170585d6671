"""Flags that are on or off."""

import argparse


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
