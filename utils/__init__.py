"""Originals of the sections that the scripts share. Programs are in tools/."""

import itertools
import sys

for name in ("check_copies", "demo", "offline_model", "python_reference", "report"):  # they stood here once
    if ("-m", f"utils.{name}") in itertools.pairwise(sys.orig_argv):
        print(f"utils.{name} is now tools.{name}: python -m tools.{name}", file=sys.stderr)
        sys.exit(2)
