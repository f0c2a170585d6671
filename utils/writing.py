"""Files that no reader, and no kill, ever meets half of."""

import json
import os
from contextlib import contextmanager
from pathlib import Path


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
