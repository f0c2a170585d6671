"""Checkpoints that count only when they are whole."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path


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
