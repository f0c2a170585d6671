"""The folder of a run: what may lie there, and what a run goes on from."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from utils.checkpoints import checkpoint_fault, list_checkpoints, step_of
from utils.errors import InputError, blame
from utils.writing import written_aside


def open_output(output_dir, training, resume, overwrite, say):
    """Make the output folder, and find the checkpoint to go on from: (checkpoint, state).

    Args:
        output_dir: folder of the run; None where it leaves nothing behind.
        training: it does not only evaluate.
        resume: "latest", a folder, or None.
        overwrite: replace what lies there.
        say: called with lines for the user.

    Returns:
        state is a dict: `step`, the updates done; `totals`, sums and counts of losses since the
        start, and `logged`, those at the last line of the log; the `initial`, `latest` and `best`
        scores; and what else a resume takes up.

    Raises:
        InputError: the folder is in use or cannot be written, or the checkpoint is not whole.
    """
    state = {"step": 0, "totals": 0, "logged": 0, "initial": {}, "latest": {}, "best": {},
             "fills": {}, "note": "", "made_with": {}, "ended_by_patience": None,
             "run_id": os.urandom(8).hex()}
    if output_dir is None:
        return None, state
    if not output_dir:  # as of a variable of the shell that is not set
        raise InputError("--output_dir is empty; name a folder")
    with blame(f"--output_dir {output_dir}: cannot be written, or is a file", "Name another "
               "folder."):
        os.makedirs(output_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    output_dir, checkpoint = Path(output_dir), None
    folders = list_checkpoints(output_dir)
    candidates = [Path(resume)] if resume else []
    if resume == "latest":
        candidates = reversed(folders)
    for folder in candidates:
        fault = checkpoint_fault(folder)
        if fault is None:
            checkpoint = folder
            break
        if resume != "latest":
            raise InputError(f"--resume_from_checkpoint {resume}: not a whole checkpoint: {fault}. "
                             "Give another, or latest.")
        say(f"Warning     {folder} is passed over: {fault}")
    if resume and not checkpoint:
        say(f"Resume      there is no whole checkpoint in {output_dir}: starting anew")
        folders = []  # those that are damaged may be replaced
    goes_on = overwrite or (checkpoint and checkpoint.resolve().parent == output_dir.resolve())
    for path in [*folders, output_dir / "model.safetensors"]:
        if training and path.exists() and not goes_on:
            go_on = "" if resume else ("To go on with that run, give --resume_from_checkpoint "
                                       "latest. ")
            raise InputError(f"--output_dir {output_dir} is in use: {path} lies there. {go_on}To "
                             "replace it, give --overwrite_output_dir; or name another folder.")
    if checkpoint:
        state |= json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if state["best"] and not (output_dir / f"checkpoint-{state['best']['step']}").exists():
            state["best"] = {}  # it lies in another folder, from which this run goes on
    return checkpoint, state


def clear_output(output_dir, step, overwrite):
    """Remove checkpoints and log lines after this update, and what a kill has left half done."""
    folders = [*output_dir.glob("tmp-checkpoint-*"), output_dir / "tmp-model"]  # a kill leaves halves
    files = [*output_dir.glob("*.????????.tmp")]
    if overwrite or step:
        folders += [path for path in list_checkpoints(output_dir) if step_of(path) > step]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if overwrite:
        names = ["model.safetensors", "all_results.json", "nbest_predictions.json", "null_odds.json"]
        files += [*map(output_dir.joinpath, names), *output_dir.glob("predictions.*")]
    for file in files:
        file.unlink(missing_ok=True)
    cut_log(output_dir / "log.jsonl", step or -1)


def cut_log(path, step):
    """Cut a log.jsonl back to the lines up to an update; a missing file is fine."""
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    kept = []
    for line in lines:  # a kill can leave the last one half written, without its end
        entry = re.fullmatch(r'\{"step": (\d+)(, .*)?\}\n', line)
        if entry and int(entry[1]) <= step:
            kept.append(line)
    with written_aside(path) as aside:
        aside.write_text("".join(kept), encoding="utf-8")
