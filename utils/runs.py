"""A run: its processes, its folder, and what it leaves behind."""

import html
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import yaml

from utils.devices import Processes
from utils.errors import InputError, blame
from utils.output import open_output
from utils.writing import write_json

# Flags of all tasks that a resume may not change.
FIXED = ("seed", "learning_rate", "weight_decay", "max_grad_norm", "lr_scheduler_type",
         "warmup_steps", "config_overrides")
OURS = "<!-- Written by the run that trained this model. -->"


class Run(Processes):
    """A run: its processes, its flags, its folder, and what it leaves behind.

    Args:
        task: what the script does, in a word: "mlm".
        args: Namespace of the flags.
        settings: dict of the flags that trackers and the model card show.
        processes: num_processes, rank and local_rank, as of Processes.

    Attributes:
        is_main: whether this is the first process.
        folder: where the run leaves what it makes, from `open` on.
        checkpoint: folder of the one that it goes on from, or None.
        card: what the model card says: `task`, what was done with the model, in words; `tag`, the
            Hub's name of the task, or None; `data`, dict of split to what it is, in words;
            `tables`, Markdown to stand below the scores.
    """

    def __init__(self, task, args, settings, *processes):
        super().__init__(*processes)
        self.task, self.args, self.settings = task, args, settings
        self.is_main, self.repository = self.rank == 0, None
        self.card = {"tag": None, "data": {}, "tables": ""}

    def say(self, *lines):
        """Print lines, on the first process alone."""
        if self.is_main:
            print(*lines, sep="\n", flush=True)

    def open(self, writes):
        """Open the folder: the state as of open_output. writes: the run leaves something there.

        A run that does not train leaves what is there, and gets a folder of its own in it.
        """
        args = self.args
        self.folder = Path(args.output_dir)
        resume = args.resume_from_checkpoint if args.do_train else None
        self.checkpoint, state = open_output(args.output_dir if writes else None, args.do_train,
                                             resume, args.overwrite_output_dir, self.say)
        if writes and not args.do_train and (self.folder / "model.safetensors").exists():
            number = 1
            while (self.folder / f"eval-{number}").exists():
                number += 1
            number = self.sum(number * self.is_main)[0]  # the same on all processes
            self.folder /= f"eval-{number:.0f}"
            self.folder.mkdir(exist_ok=True)
        return state

    def check_resume(self, state, model_type, data, flags):
        """Refuse to go on from a checkpoint of other data or settings; else note what they are.

        Args:
            state: that of the checkpoint, or of a new run.
            model_type: kind of the model, as "bert".
            data: dict of split to what tells its data apart.
            flags: those of the task that may not change.
        """
        args = self.args
        passes = args.gradient_accumulation_steps * self.num_processes
        made_with = {**data, "task": self.task, "kind of model": model_type,
                     "global batch": args.per_device_train_batch_size * passes,
                     **{f"--{flag}": getattr(args, flag) for flag in (*FIXED, *flags)}}
        for name, value in made_with.items() if self.checkpoint else ():
            before = state["made_with"].get(name)
            if before != value:
                raise InputError(
                    f"{self.checkpoint}: {name} was {before} and is now {value}. A run goes on with "
                    "the text, settings and global batch (processes x --per_device_train_batch_size "
                    f"x --gradient_accumulation_steps, now with {self.num_processes} processes) that "
                    "it began with.")
        state["made_with"] = made_with
        if self.sum(state["step"])[0] != state["step"] * self.num_processes:
            raise InputError("the processes found different checkpoints. Expected a folder that all "
                             "machines see; put --output_dir on a shared disk.")

    def describe(self, device, threads, precision):
        """Say what the run computes on."""
        self.say(f"Running on  {device.type}, {self.num_processes} process"
                 f"{'es' * (self.num_processes > 1)}, {threads} CPU threads each, "
                 f"{precision.replace('no', 'float32')}")

    def start_trackers(self, accelerator, run_id, step):
        """Start what is told of the run: the trackers of --report_to, the repository on the Hub.

        Args:
            accelerator: of accelerate, that logs to the trackers.
            run_id: the same after a resume, which goes on with its own.
            step: updates done.
        """
        args, folder = self.args, str(self.folder)
        shown = {flag: value if isinstance(value, int | float) else f"{value}"
                 for flag, value in self.settings.items()}
        accelerator.project_configuration.logging_dir = f"{folder}/runs"
        with blame(f"--report_to {' '.join(args.report_to)}: cannot start", "For wandb, 'wandb "
                   "login' or WANDB_MODE=offline."):
            accelerator.init_trackers(os.environ.get("WANDB_PROJECT", self.task), shown, {
                "wandb": {"name": args.run_name, "id": run_id, "resume": "allow", "dir": folder},
                "trackio": {"name": args.run_name, "resume": "allow" if step else "never"},
                "tensorboard": {"purge_step": step + (step > 0)},  # hides what stood there from here
            })
        if args.push_to_hub and self.is_main:  # before the training, in case it fails
            with blame("--push_to_hub: cannot start", "Log in with 'hf auth login', and give "
                       "--hub_model_id NAME/MODEL."):
                name = args.hub_model_id or self.folder.resolve().name
                self.repository = huggingface_hub.create_repo(name, exist_ok=True).repo_id

    def leave(self, model, tokenizer, results):
        """Save a model that was trained, and the results: before anything else can fail.

        Args:
            model: not wrapped.
            results: dict of the scores.
        """
        if self.args.do_train and self.is_main:
            aside = self.folder / "tmp-model"
            with blame(f"--output_dir {self.folder}: the model cannot be saved", "The last "
                       "checkpoint is whole."):
                model.save_pretrained(aside)
                tokenizer.save_pretrained(aside)
            for path in aside.iterdir():
                shutil.copymode(aside / "config.json", path)  # safetensors lets the owner alone read
                os.replace(path, self.folder / path.name)
            aside.rmdir()
        self.write_results(results)

    def write_results(self, results):
        """Write all_results.json, and after a training the model card; again with what comes later.

        A run that was resumed adds to the results that it finds.
        """
        if not (self.is_main and results):
            return
        path, older = self.folder / "all_results.json", {}
        if self.checkpoint and path.exists():
            older = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, older | results)
        if self.args.do_train:
            card = self.folder / "README.md"
            if card.exists() and OURS not in card.read_text(encoding="utf-8", errors="replace"):
                card = self.folder / "MODEL_CARD.md"  # beside one of the user's
            card.write_text(self.make_card(results), encoding="utf-8")

    def make_card(self, results):
        """Make the model card: what the model was made of, and its scores."""
        base, card = self.args.model, self.card
        head = huggingface_hub.ModelCardData(library_name="transformers", pipeline_tag=card["tag"],
                                             base_model=None if os.path.exists(base) else base)
        data = "\n".join(f"- {split}: {html.escape(words)}" for split, words in card["data"].items())
        scores = "\n".join(f"| {' | '.join(row)} |" for row in score_rows(results))
        settings = {flag: value for flag, value in self.settings.items()
                    if str(value) not in ("None", "False", "[]")}
        return f"""---
{head.to_yaml()}
---

{OURS}

# {self.folder.resolve().name}

{Path(base).name}, {card['task']}.

{data}

| score | before | after |
| --- | ---: | ---: |
{scores}

Losses are in nats, a mean over what is predicted.

{card['tables']}
```yaml
{yaml.safe_dump(settings, allow_unicode=True)}```
"""

    def end(self, accelerator, results, note):
        """Show the results, and tell trackers and the Hub, which may fail.

        Args:
            note: what of the model started at random.
        """
        rows = score_rows(results)
        if rows:
            for name, before, after in [("", "before", "after"), *rows]:
                self.say(f"{name:<36}{before:>16}{after:>16}")
            self.say(f"Before: {note}" if self.args.do_train else "",
                     f"Results are in {self.folder / 'all_results.json'}")
        accelerator.log({name: results[name] for name, *_ in rows}, step=results.get("step", 0))
        accelerator.end_training()
        if self.repository:
            with blame("--push_to_hub", f"The model is safe in {self.folder}; upload it with: hf "
                       f"upload NAME/MODEL {self.folder}"):
                apart = ["checkpoint-*", "eval-*", "tmp-*", "wandb/*"]
                print("Uploaded to", huggingface_hub.upload_folder(
                    repo_id=self.repository, folder_path=self.folder, ignore_patterns=apart))


def score_rows(results):
    """List (name, before, after) of the scores, as text."""
    rows = []
    for name, value in results.items():
        if name.startswith(("eval_", "perplexity", "predict_")):
            values = results.get(f"initial_{name}", "-"), value
            rows.append((name, *(f"{v:,.4f}" if isinstance(v, float) else f"{v}" for v in values)))
    return rows
