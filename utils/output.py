"""The folder of a run: what may lie there, and what a run goes on from."""

import json
import os
import re
from pathlib import Path

from utils.checkpoints import checkpoint_fault, list_checkpoints, remove_folder
from utils.errors import InputError


def open_output(output_dir, training, resume, overwrite, say):
    """Make the output folder, or refuse one in use; find the checkpoint to go on from: (folder or None, state).

    Args:
        output_dir: folder of the run. training: the run trains, and does not only evaluate.
        resume: "latest", a folder, or None. overwrite: replace what lies there. say: called with lines for the user.

    Raises:
        InputError: the folder is in use or cannot be made, or the checkpoint is not whole.
    """
    if not output_dir:
        raise InputError("--output_dir is empty; name a folder")
    output_dir, checkpoint = Path(output_dir), None
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir {output_dir}: cannot be made, or is a file: {error.strerror}. Name another "
                         "folder.") from None
    if training and resume == "latest":
        for folder in reversed(list_checkpoints(output_dir)):
            fault = checkpoint_fault(folder)
            if fault is None:
                checkpoint = folder
                break
            say(f"Warning     {folder} is passed over: {fault}")
        else:
            say(f"Resume      there is no whole checkpoint in {output_dir}: starting anew")
    elif training and resume:
        checkpoint = Path(resume)
        fault = checkpoint_fault(checkpoint)
        if fault:
            raise InputError(f"--resume_from_checkpoint {checkpoint}: not a whole checkpoint: {fault}. Give another, "
                             "or latest.")
    used = [output_dir / "model.safetensors"]
    if resume != "latest":  # which passes over damaged checkpoints, and may replace them
        used = [*list_checkpoints(output_dir), *used]
    goes_on = overwrite or (checkpoint and checkpoint.resolve().parent == output_dir.resolve())
    for path in used if training and not goes_on else ():
        if path.exists():
            raise InputError(f"--output_dir {output_dir} is in use: {path} lies there. To go on with that run, give "
                             "--resume_from_checkpoint latest; to replace it, --overwrite_output_dir; or name another "
                             "folder.")
    if not checkpoint:
        return None, {"step": 0, "window": None, "train": None, "latest": None, "best": None, "initial": {},
                      "fills": {}, "run_id": os.urandom(8).hex()}
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if state["best"] and not Path(output_dir, f"checkpoint-{state['best']['step']}").exists():
        state["best"] = None  # it lies in another folder, from which this run goes on
    return checkpoint, state


def check_resume(made_with, processes, state, checkpoint, output_dir):
    """Hold a checkpoint against the run that is to go on from it, or note in its state what the run is made with.

    Args:
        made_with: dict of name to value of all that a resume would silently ignore or mix if it changed.
    """
    for name, value in made_with.items() if checkpoint else ():
        if state["made_with"].get(name) != value:
            before = state["made_with"].get(name)
            batch = (f" Give --per_device_train_batch_size and --gradient_accumulation_steps that make {before} with "
                     f"{processes.num_processes} processes." if name == "global batch" else "")
            raise InputError(f"{checkpoint}: {name} was {before} and is now {value}. A run goes on with the text, "
                             "settings and global batch (processes x batch size x accumulation steps) that it began "
                             f"with.{batch}")
    state["made_with"] = made_with
    if processes.sum(state["step"])[0] != state["step"] * processes.num_processes:
        raise InputError(f"the processes found different checkpoints in {output_dir}. Expected a folder that all "
                         "machines see; put --output_dir on a shared disk.")


def cut_log(path, step):
    """Cut a log.jsonl back to the lines up to an update, when a run goes on from there; a missing file is fine."""
    kept = []
    for line in Path(path).read_text(encoding="utf-8").splitlines(True) if os.path.exists(path) else ():
        # A kill can leave the last line half written, without its end.
        found = re.fullmatch(r'\{"step": (\d+)(, .*)?\}\n', line)
        if found and int(found[1]) <= step:
            kept.append(line)
    Path(f"{path}.tmp").write_text("".join(kept), encoding="utf-8")
    os.replace(f"{path}.tmp", path)


def clear_output(output_dir, step, overwrite):
    """Clear the output folder of what the run replaces: later checkpoints, halves, the log from this update on."""
    output_dir = Path(output_dir)
    replaced = [folder for folder in list_checkpoints(output_dir) if int(folder.name.split("-")[1]) > step]
    left = [*output_dir.glob("tmp-checkpoint-*"), *output_dir.glob("tmp-old-*"), output_dir / "tmp-model"]
    for folder in left + (replaced if overwrite or step else []):
        remove_folder(folder)  # later than what is resumed, or left by a run that was killed while it saved
    for name in ("model.safetensors", "all_results.json") if overwrite else ():
        (output_dir / name).unlink(missing_ok=True)
    cut_log(output_dir / "log.jsonl", step if step else -1)
