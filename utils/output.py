"""The folder of a run: what may lie there, and what a run goes on from."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from utils.checkpoints import checkpoint_fault, list_checkpoints, step_of
from utils.errors import InputError
from utils.writing import written_aside


def open_output(output_dir, training, resume, overwrite, say):
    """Make the output folder, and find the checkpoint to go on from: (folder, state).

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
    state = {"step": 0, "totals": None, "logged": None, "initial": {}, "latest": {}, "best": {},
             "fills": {}, "note": "", "made_with": {}, "run_id": os.urandom(8).hex(),
             "scheduler": {}, "scaler": None}
    if output_dir is None:
        return None, state
    if not output_dir:  # as of a variable of the shell that is not set
        raise InputError("--output_dir is empty; name a folder")
    output_dir, checkpoint = Path(output_dir), None
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: cannot be written, or is a file: "
                         f"{error.strerror}. Name another folder.") from None
    folders = list_checkpoints(output_dir)
    for folder in reversed(folders) if resume == "latest" else [Path(resume)] if resume else ():
        fault = checkpoint_fault(folder)
        if fault is None:
            checkpoint = folder
            break
        say(f"Warning     {folder} is passed over: {fault}")
    if resume and not checkpoint and resume != "latest":
        raise InputError(f"--resume_from_checkpoint {resume}: not a whole checkpoint: {fault}. "
                         "Give another, or latest.")
    if resume and not checkpoint:
        say(f"Resume      there is no whole checkpoint in {output_dir}: starting anew")
        folders = []  # those that are damaged may be replaced
    goes_on = overwrite or (checkpoint and checkpoint.resolve().parent == output_dir.resolve())
    for path in [*folders, output_dir / "model.safetensors"]:
        if training and path.exists() and not goes_on:
            raise InputError(f"--output_dir {output_dir} is in use: {path} lies there. To go on "
                             "with that run, give --resume_from_checkpoint latest; to replace it, "
                             "--overwrite_output_dir; or name another folder.")
    if checkpoint:
        state |= json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if state["best"] and not (output_dir / f"checkpoint-{state['best']['step']}").exists():
            state["best"] = {}  # it lies in another folder, from which this run goes on
    return checkpoint, state


def check_resume(made_with, processes, state, checkpoint):
    """Hold a checkpoint against the run that goes on from it, or note what it is made with.

    Args:
        made_with: dict of name to value of all that a resume would silently ignore or mix if it
            changed.
    """
    for name, value in made_with.items() if checkpoint else ():
        before = state["made_with"].get(name)
        if before != value:
            raise InputError(f"{checkpoint}: {name} was {before} and is now {value}. A run goes on "
                             "with the text, settings and global batch (processes x "
                             "--per_device_train_batch_size x --gradient_accumulation_steps, now "
                             f"with {processes.num_processes} processes) that it began with.")
    state["made_with"] = made_with
    if processes.sum(state["step"])[0] != state["step"] * processes.num_processes:
        raise InputError("the processes found different checkpoints. Expected a folder that all "
                         "machines see; put --output_dir on a shared disk.")


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


def clear_output(output_dir, step, overwrite):
    """Clear the folder of later checkpoints, halves, and the log from this update on."""
    output_dir = Path(output_dir)
    later = [folder for folder in list_checkpoints(output_dir) if step_of(folder) > step
             and (overwrite or step)]
    # A killed run leaves halves.
    for folder in [*output_dir.glob("tmp-checkpoint-*"), output_dir / "tmp-model", *later]:
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("model.safetensors", "all_results.json") if overwrite else ():
        (output_dir / name).unlink(missing_ok=True)
    cut_log(output_dir / "log.jsonl", step or -1)
