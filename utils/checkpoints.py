"""Checkpoints that count only when they are whole."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path


def write_json(path, value):
    """Write a JSON file so that a reader, or a kill, never meets half of it."""
    aside = Path(f"{path}.{os.urandom(4).hex()}.tmp")
    aside.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
    os.replace(aside, path)


def write_manifest(folder):
    """Write manifest.json into a checkpoint: size in bytes and SHA-256 of each file. Written last."""
    files = {}
    for path in sorted(Path(folder).iterdir()):
        with open(path, "rb") as file:
            files[path.name] = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    Path(folder, "manifest.json").write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def checkpoint_fault(folder):
    """Say in words why a checkpoint does not agree with its manifest.json; None if it does."""
    try:
        files = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))["files"]
        files = {name: (expected["size"], expected["sha256"]) for name, expected in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json is missing or damaged ({error})"
    for name, expected in files.items():
        try:
            with open(Path(folder, name), "rb") as file:
                found = (os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            return f"{name} is missing or cannot be read ({error.strerror})"
        if found[0] != expected[0]:
            return f"{name} has {found[0]:,} bytes instead of {expected[0]:,}"
        if found != expected:
            return f"{name} is not what was written (its SHA-256 differs)"
    return None


def list_checkpoints(output_dir):
    """List the folders named checkpoint-N in output_dir, oldest first, whether they are whole or not."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def remove_folder(folder):
    """Remove a folder, if it is there, so that a kill halfway leaves nothing under its name."""
    aside = folder.with_name(f"tmp-old-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def save_checkpoint(output_dir, step, write, limit, keep=None):
    """Save checkpoint-{step}: write aside, add the manifest, rename, and only then let older ones go.

    Args:
        output_dir: folder of the run.
        step: number of updates done.
        write: function that writes the checkpoint's files into the empty folder that it is given.
        limit: how many checkpoints stay, at least 1.
        keep: name of one that stays whatever its age, such as the best, and counts; None for none.
    """
    folder, aside = Path(output_dir, f"checkpoint-{step}"), Path(output_dir, f"tmp-checkpoint-{step}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    write_manifest(aside)
    remove_folder(folder)  # a damaged one of this name stands in the way of the rename
    os.replace(aside, folder)
    old = [path for path in list_checkpoints(output_dir)  # those without a manifest are not of this kind
           if path != folder and path.name != keep and (path / "manifest.json").exists()]
    kept = limit - 1 - (keep not in (None, folder.name) and Path(output_dir, keep).exists())
    for path in old[: max(0, len(old) - max(0, kept))]:
        remove_folder(path)
