"""Checkpoints that are whole or do not count."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path


def write_manifest(folder):
    """Write manifest.json into a checkpoint: size in bytes and SHA-256 of each file. Written last, it vouches for all."""
    folder, files = Path(folder), {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def checkpoint_fault(folder):
    """Say in words why a checkpoint does not agree with its manifest.json, or return None if it does."""
    folder = Path(folder)
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "manifest.json is missing or damaged"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != expected["size"]:
            return f"{name} has {(folder / name).stat().st_size:,} bytes instead of {expected['size']:,}"
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    return None


def list_checkpoints(output_dir):
    """List the folders named checkpoint-N in output_dir, oldest first, whether they are whole or not."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def latest_checkpoint(output_dir, warn):
    """Find the newest whole checkpoint, or None. `warn` is called with one line for each damaged one passed over."""
    for folder in reversed(list_checkpoints(output_dir)):
        fault = checkpoint_fault(folder)
        if fault is None:
            return folder
        warn(f"{folder} is passed over: {fault}")
    return None


def remove_folder(folder):
    """Remove a folder so that a kill halfway leaves nothing under its name. A missing one is no error."""
    folder = Path(folder)
    if folder.exists():
        aside = folder.with_name(f"tmp-old-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def save_checkpoint(output_dir, step, write, *, limit=None, keep=None):
    """Save checkpoint-{step}: write aside, add the manifest, rename, and only then let older ones go.

    Args:
        output_dir: folder of the run.
        step: number of updates done.
        write: function that is given an empty folder and writes the checkpoint's files into it.
        limit: how many checkpoints stay, at least 1; None keeps all.
        keep: name of a checkpoint that stays whatever its age, such as the best one's, and counts; None for none.

    Returns:
        Path of the checkpoint.
    """
    aside = Path(output_dir, f"tmp-checkpoint-{step}")  # a name that no search for checkpoints finds
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    write_manifest(aside)
    folder = Path(output_dir, f"checkpoint-{step}")
    remove_folder(folder)  # a damaged one of this name stands in the way of the rename
    os.replace(aside, folder)
    if limit is not None:
        # Later ones than this are left over from a run that was resumed further back.
        others = [path for path in list_checkpoints(output_dir) if path != folder and path.name != keep]
        others.sort(key=lambda path: (int(path.name.split("-")[1]) < step, int(path.name.split("-")[1])))
        spare = limit - 1 - (keep not in (None, folder.name) and Path(output_dir, keep).exists())
        for old in others[: max(0, len(others) - max(0, spare))]:
            remove_folder(old)
    return folder
