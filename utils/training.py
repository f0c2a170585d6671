"""What surrounds a training loop: where it begins, what it logs and saves, what it leaves behind."""

import html
import json
import math
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import huggingface_hub
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration
from tqdm import tqdm

from utils.checkpoints import checkpoint_fault, list_checkpoints, remove_folder, save_checkpoint
from utils.reading import InputError
from utils.running import Processes, cut_log, keep_freed_memory, pick_precision, set_cpu_threads
from utils.sources import write_json


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


def choose_device(mixed_precision, cpu_threads):
    """Choose what to run on, and set torch's threads: (whether on the CPU, precision, threads).

    Raises:
        InputError: the launcher asks for what these scripts do not support, or for fp16 on a CPU.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise InputError(f"accelerate is set to {name}, which this script does not support: encoders of this size "
                             "train fastest with plain data parallelism, accelerate launch --multi_gpu")
    on_cpu = (not torch.accelerator.is_available()
              or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"))
    device_type = "cpu" if on_cpu else torch.accelerator.current_accelerator().type
    precision = pick_precision(mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), device_type)
    if precision == "fp16" and on_cpu:
        raise InputError("--mixed_precision fp16 needs a GPU; give bf16, no or auto")
    threads = set_cpu_threads(cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if on_cpu:
        keep_freed_memory()
    return on_cpu, precision, threads


def join_processes(num_processes, rank, local_rank):
    """Make the Processes of a run. InputError where the launcher started more than train together."""
    if int(os.environ.get("WORLD_SIZE", 1)) != num_processes:
        raise InputError(f"{os.environ['WORLD_SIZE']} processes were started, but each would train alone. On a CPU: "
                         "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N run_….py …")
    return Processes(num_processes, rank, local_rank)


def start_processes(mixed_precision, cpu_threads, report_to, output_dir, unused_weights):
    """Start accelerate as the launcher asks: (accelerator, processes, threads). InputError for what cannot work.

    unused_weights: the model leaves some of its weights without a gradient. To look for them takes time.
    """
    on_cpu, precision, threads = choose_device(mixed_precision, cpu_threads)
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=precision, log_with=report_to or None,
        project_config=ProjectConfiguration(output_dir, logging_dir=f"{output_dir}/runs"),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_weights)])
    processes = join_processes(accelerator.num_processes, accelerator.process_index, accelerator.local_process_index)
    return accelerator, processes, threads


def describe_processes(accelerator, processes, threads, say):
    """Say what the run runs on."""
    plural = "es" if processes.num_processes > 1 else ""
    say(f"Running on  {accelerator.device.type}, {processes.num_processes} process{plural}, {threads} CPU threads "
        f"each, {accelerator.mixed_precision.replace('no', 'float32')}")


def end_stopped_run(accelerator, number, step, say):
    """End a run that a signal has stopped, whose checkpoint is saved, and say how to go on. Status: 128 + number."""
    say(f"Stopped by {signal.Signals(number).name} after update {step}, which is saved. To go on, give the same "
        "command with --resume_from_checkpoint latest")
    accelerator.end_training()
    sys.exit(128 + number)


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


def start_trackers(accelerator, project, settings, state):
    """Start the trackers of --report_to; where a run is resumed, go on with its own. settings: dict of all flags."""
    shown = {k: value if isinstance(value, int | float | str) else str(value) for k, value in settings.items()}
    name = settings["run_name"]
    try:
        accelerator.init_trackers(os.environ.get("WANDB_PROJECT", project), shown, {
            "wandb": {"name": name, "id": state["run_id"], "resume": "allow", "dir": settings["output_dir"]},
            "trackio": {"name": name, "resume": "allow" if state["step"] else "never"},
            "tensorboard": {"purge_step": state["step"] + (state["step"] > 0)}})  # hides what stood there from here on
    except Exception as error:  # no account, no network, a server that refuses
        fault = " ".join(str(error).split())[:200]
        raise InputError(f"--report_to {' '.join(settings['report_to'])}: cannot start: {fault}. For wandb, 'wandb "
                         "login' or WANDB_MODE=offline.") from None


def claim_repository(hub_model_id, output_dir):
    """Make the repository that the model is to be pushed to: its full name. Before the training, in case it fails."""
    try:
        return huggingface_hub.create_repo(hub_model_id or Path(output_dir).resolve().name, exist_ok=True).repo_id
    except Exception as error:  # no account, no network, a name that is not allowed
        raise InputError(f"--push_to_hub: cannot start: {' '.join(str(error).split())[:200]}. Log in with 'hf auth "
                         "login', and give --hub_model_id NAME/MODEL.") from None


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


def build_optimizer(model, learning_rate, weight_decay):
    """Fused AdamW that decays matrices alone: biases and the weights of normalisation have one dimension."""
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


class TrainingRun:
    """What stands around the updates: losses are logged, the model scored and saved, and all of it can be resumed.

    Args:
        settings: the flags, a dict: output_dir, when to log, evaluate and save, and what to keep.
        accelerator, processes: as start_processes made them.
        model, tokenizer, optimizer, scheduler: what a checkpoint holds.
        sampler: the GlobalBatchSampler, which knows where epochs end.
        score: function that scores the model, a dict of results; None where there are no validation data.
        means: function that makes what is logged, a dict, of sums of losses (nats) and of counts, a list of each.
        state: what a checkpoint carries besides: `step`, the updates done; sums of losses and counts since they were
            last logged (`window`) and since the start (`train`); the latest and the best scores, with their step.
        max_steps: updates of the run.
    """

    def __init__(self, settings, accelerator, processes, model, tokenizer, optimizer, scheduler, sampler, score, means,
                 state, max_steps):
        self.settings, self.accelerator, self.processes = settings, accelerator, processes
        self.model, self.tokenizer, self.optimizer, self.scheduler = model, tokenizer, optimizer, scheduler
        self.sampler, self.score, self.means, self.state, self.max_steps = sampler, score, means, state, max_steps
        self.pending, self.paused = [], 0.0  # losses that are still on the device; seconds spent on scoring and saving
        self.bar = tqdm(total=max_steps, initial=state["step"], desc="Training", unit=" updates",
                        disable=processes.rank > 0 or None)

    def is_due(self, strategy, every):
        step, every = self.state["step"], math.ceil(every * self.max_steps) if every < 1 else int(every)
        if strategy == "epoch":
            return self.sampler.place(step)[1] == 0 or step == self.max_steps
        return strategy == "steps" and step % every == 0

    def log(self, values):
        if self.processes.rank == 0:
            with open(Path(self.settings["output_dir"], "log.jsonl"), "a", encoding="utf-8") as file:
                epoch = round(self.sampler.epochs_until(self.state["step"]), 4)
                file.write(json.dumps({"step": self.state["step"], "epoch": epoch, **values}) + "\n")
        self.accelerator.log(values, step=self.state["step"])

    def settle(self):
        """Read the losses that are still on the device, and add them up over all processes."""
        if self.pending:
            sums = self.processes.sum(*torch.stack(self.pending).cpu().double().sum(dim=0).tolist())
            before = self.state["window"]["sums"]
            self.state["window"]["sums"] = [a + b for a, b in zip(before, sums, strict=True)]
        self.pending.clear()

    def evaluate(self, scores=None, prefix=""):
        self.settle()
        begun, scores = time.perf_counter(), scores or self.score(self.model)
        self.log({prefix + name: value for name, value in scores.items()})
        self.state["latest"] = {"step": self.state["step"], **scores}
        if self.processes.rank == 0:
            shown = "  ".join(f"{name} {value:.6g}" for name, value in islice(scores.items(), 6))
            tqdm.write(f"Update {self.state['step']:>6}  {shown}")
        self.paused += time.perf_counter() - begun

    def save(self):
        self.settle()
        begun, state = time.perf_counter(), self.state
        if self.settings["load_best_model_at_end"] and state["latest"]["step"] == state["step"] and (
                not state["best"] or state["latest"]["eval_loss"] < state["best"]["eval_loss"]):
            state["best"] = state["latest"]  # of models that are saved, so that it can be loaded
        if self.processes.rank == 0:
            save_checkpoint(self.settings["output_dir"], state["step"], self.write, self.settings["save_total_limit"],
                            keep=f"checkpoint-{state['best']['step']}" if state["best"] else None)
        self.processes.sum(0)  # the others wait: none trains on if this one fails
        self.paused += time.perf_counter() - begun

    def write(self, folder):
        self.accelerator.unwrap_model(self.model, keep_torch_compile=False).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        state = dict(self.state, scheduler={k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
                     scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler else None)
        (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    def after_update(self, update, losses, counts, norm, stop):
        """Log, score and save what is due after an update. Returns True where the run is to end.

        losses: sums of this process, (kinds,), nats, on the device. counts: of all processes, a list of as many.
        """
        state, last, nothing = self.state, update == self.max_steps, {"sums": [0.0] * len(counts),
                                                                      "counts": [0.0] * len(counts)}
        state["step"], state["window"] = update, state["window"] or nothing
        state["window"]["counts"] = [a + b for a, b in zip(state["window"]["counts"], counts, strict=True)]
        self.pending.append(losses)
        self.bar.update()
        if self.is_due("steps", self.settings["logging_steps"]) or last:
            self.settle()
            window, total, state["window"] = state["window"], state["train"] or nothing, None
            state["train"] = {name: [a + b for a, b in zip(total[name], window[name], strict=True)] for name in total}
            shown = self.means(**window)
            self.log({**shown, "learning_rate": self.scheduler.get_last_lr()[0], "grad_norm": norm.item()})
            self.bar.set_postfix(loss=f"{shown['loss']:.3f}")
            if self.bar.disable and self.processes.rank == 0:  # no terminal to show a bar on
                print(f"Update {update:>6}  " + "  ".join(f"{name} {value:.6g}" for name, value in shown.items()),
                      flush=True)
        if self.score and (self.is_due(self.settings["eval_strategy"], self.settings["eval_steps"]) or last):
            self.evaluate()
        if self.is_due(self.settings["save_strategy"], self.settings["save_steps"]) or (stop and not last):
            self.save()
        return stop


def score_rows(results):
    """List (name, before, after) of the scores, as text."""
    names = [name for name in results if name.startswith(("eval_", "perplexity", "predict_"))]
    values = [[results.get(f"initial_{name}"), results.get(name)] for name in names]
    return [(name, *("-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
                     for value in pair)) for name, pair in zip(names, values, strict=True)]


def write_model_card(output_dir, base, task, tag, data, results, settings, tables=()):
    """Write README.md: what the model was made of, and its scores before and after.

    Args:
        base: Hub name or folder of the model it began with. task: a sentence that says what was done with it.
        tag: the Hub's name of the task, or None. data: dict of split to (examples, tokens, name of the source).
        settings: dict of all flags. tables: more lines to stand below the scores.
    """
    named = [] if os.path.exists(base) else [f"base_model: {base}"]
    sizes = [f"| {split} | {examples:,} | {tokens:,} | {html.escape(name).replace('|', '&#124;')} |"
             for split, (examples, tokens, name) in data.items()]
    scores = [f"| {' | '.join(row)} |" for row in score_rows(results)]
    chosen = {name: value for name, value in sorted(settings.items())
              if not (value is None or value is False or value == [])}  # a 0 is a setting
    lines = ["---", "library_name: transformers", *([f"pipeline_tag: {tag}"] if tag else []), *named, "---", "",
             f"# {Path(output_dir).name}", "", f"{Path(base).name}, {task}", "",
             "| data | examples | tokens | source |", "| --- | ---: | ---: | --- |", *sizes, "",
             "| score | before | after |", "| --- | ---: | ---: |", *scores, "",
             "Losses are in nats, a mean over what is predicted.", "", *tables, "```yaml",
             *(f"{name}: {json.dumps(value)}" for name, value in chosen.items()), "```", ""]
    Path(output_dir, "README.md").write_text("\n".join(lines), encoding="utf-8")


def save_model(output_dir, model, tokenizer):
    """Leave model and tokenizer in the output folder, file by file, so that a kill leaves no half of one."""
    aside = Path(output_dir, "tmp-model")
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    umask = os.umask(0)
    os.umask(umask)
    for path in aside.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors lets the owner alone read its files
        os.replace(path, Path(output_dir, path.name))
    aside.rmdir()


def write_results(output_dir, results, same_model, trained):
    """Write all_results.json, beside the scores that stand there already if they are of the same model."""
    path = Path(output_dir, "all_results.json")
    older = json.loads(path.read_text(encoding="utf-8")) if path.exists() and same_model else {}
    # What was scored before the training may have been other data than these.
    if not trained and any(name.startswith("eval_") for name in results):
        older = {name: value for name, value in older.items() if not name.startswith("initial_")}
    write_json(path, older | results)


def upload(output_dir, repository):
    """Push what the output folder holds, but for checkpoints, to a repository of the Hub."""
    try:
        print("Uploaded to", huggingface_hub.upload_folder(
            repo_id=repository, folder_path=output_dir, ignore_patterns=["checkpoint-*", "tmp-*", "wandb/*"]))
    except Exception as error:  # network, rights, quota
        raise InputError(f"--push_to_hub: {' '.join(str(error).split())[:200]}. The model is safe in {output_dir}; "
                         f"upload it with: hf upload NAME/MODEL {output_dir}") from None


def show_results(results, note, output_dir, say):
    """Print the scores, before the training and after it, and where things are. note: what started at random."""
    trained, rows = any(name.startswith("initial_") for name in results), score_rows(results)
    width = max([20, *(len(name) + 2 for name, *_ in rows)])
    for name, *values in ([("", "before", "after")] * trained + rows if results else ()):
        say(f"{name:<{width}}" + "".join(f"{value:>16}" for value in values[0 if trained else 1 :]))
    if trained:
        say(f"Before: {note}")
    if results:
        say(f"Results are in {Path(output_dir, 'all_results.json')}"
            + (f", model and log in {output_dir}" if "step" in results else ""))
