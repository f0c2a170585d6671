"""A run: its processes, its folder, and what it leaves behind."""

import html
import json
import os
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import transformers
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed

from utils.checkpoints import list_checkpoints
from utils.devices import Processes, choose_device
from utils.errors import InputError, blame
from utils.models import hub_settings, load_model
from utils.output import open_output
from utils.signals import StopSignal
from utils.writing import write_json

# Flags of all tasks that a resume may not change.
FIXED = ("seed", "learning_rate", "weight_decay", "max_grad_norm", "lr_scheduler_type",
         "warmup_steps", "config_overrides", "load_best_model_at_end")
OURS = "<!-- Written by the run that trained this model. -->"


class Run(Processes):
    """A run: its processes, its folder, its state, and what it leaves behind.

    Args:
        task: what the script does, in a word: "mlm".
        args: Namespace of the flags.
        writes: whether the run leaves something behind.
        unused_weights: whether the model leaves some of its weights without a gradient.

    Attributes:
        accelerator: of accelerate.
        device: where tensors go.
        settings: dict of the flags that trackers and the model card show.
        is_main: whether this is the first process.
        folder: where the run leaves what it makes.
        checkpoint: folder of the one that it goes on from, or None.
        step, totals, logged, initial, latest, best, fills, note, made_with, ended_by_patience, run_id:
            the state of the run, which goes into a checkpoint's state.json, as of open_output.
        card: what the model card says: `task`, what was done with the model, in words; `tag`, the
            Hub's name of the task, or None; `data`, dict of split to what it is, in words;
            `tables`, Markdown to stand below the scores.
    """

    def __init__(self, task, args, writes=True, unused_weights=False):
        transformers.logging.set_verbosity_error()  # the lines below say it of heads and lengths
        transformers.logging.disable_progress_bar()
        self.on_cpu, precision, self.threads = choose_device(args.mixed_precision, args.cpu_threads)
        find_unused = DistributedDataParallelKwargs(find_unused_parameters=unused_weights)
        self.accelerator = accelerator = Accelerator(
            cpu=self.on_cpu, mixed_precision=precision, log_with=args.report_to or None,
            project_dir=args.output_dir, kwargs_handlers=[find_unused])
        super().__init__(accelerator.num_processes, accelerator.process_index,
                         accelerator.local_process_index)
        self.task, self.args, self.settings, self.writes = task, args, vars(args), writes
        self.device, self.is_main = accelerator.device, self.rank == 0
        self.card = {"tag": None, "data": {}, "tables": ""}
        self.stop_signal, self.repository = StopSignal(), None
        if not self.is_main:
            datasets.disable_progress_bars()
        self.open(args.resume_from_checkpoint, args.overwrite_output_dir)

    def say(self, *lines):
        """Print lines, on the first process alone."""
        if self.is_main:
            print(*lines, sep="\n", flush=True)

    def open(self, resume, overwrite):
        """Open the folder, and take up the state of the checkpoint, where there is one.

        A run that does not train leaves what is there, and gets a folder of its own in it.
        """
        args = self.args
        self.folder = Path(args.output_dir)
        self.checkpoint, state = open_output(args.output_dir if self.writes else None,
                                             args.do_train, resume, overwrite, self.say)
        if self.writes and not args.do_train and (self.folder / "model.safetensors").exists():
            number = 1
            while (self.folder / f"eval-{number}").exists():
                number += 1
            number = self.sum(number * self.is_main)[0]  # the same on all processes
            self.folder /= f"eval-{number:.0f}"
            self.folder.mkdir(exist_ok=True)
        self.state_names = [*state]
        vars(self).update(state)  # self.step, self.note …: each an attribute of its own

    def state(self):
        """What goes into a checkpoint's state.json: a dict, as of open_output."""
        return {name: vars(self)[name] for name in self.state_names}

    def load_model(self, kind, config, tokenizer, head, **settings):
        """Load --model, or the checkpoint that the run goes on from: (model, note).

        Arguments and note as of load_model.
        """
        set_seed(self.args.seed)
        name, scratch = self.args.model, self.args.from_scratch
        if self.checkpoint:
            name, config, scratch = str(self.checkpoint), None, False
        return load_model(kind, name, config, tokenizer, head, from_scratch=scratch, **settings,
                          **hub_settings(self.args))

    def introduce(self, model, note):
        """Say what the run begins with, and what it computes on. note: as of load_model."""
        self.note = self.note or note  # of the model that the run began with
        precision = self.accelerator.mixed_precision.replace("no", "float32")
        several = "es" * (self.num_processes > 1)
        self.say(f"Model       {self.checkpoint or self.args.model}, {model.num_parameters():,} "
                 f"weights; {note}",
                 f"Running on  {self.device.type}, {self.num_processes} process{several}, "
                 f"{self.threads} CPU threads each, {precision}")

    def prepare_for_evaluation(self, model):
        """Make a model ready that is not trained, as it computes in a training."""
        self.start_trackers()
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def in_float32(self, model):
        """Take a model out of its wrappers: what is shown is computed in float32."""
        return self.accelerator.unwrap_model(model, keep_fp32_wrapper=False,
                                             keep_torch_compile=False)

    def check_resume(self, model_type, data, flags):
        """Refuse to go on from a checkpoint of other data or settings; else note what they are.

        Args:
            model_type: kind of the model, as "bert".
            data: dict of split to what tells its data apart.
            flags: those of the task that may not change.
        """
        args = self.args
        passes = args.gradient_accumulation_steps * self.num_processes
        made_with = {"task": self.task, "kind of model": model_type,
                     "precision": self.accelerator.mixed_precision,
                     "global batch": args.per_device_train_batch_size * passes,
                     **{f"--{flag}": getattr(args, flag) for flag in (*FIXED, *flags)}, **data}
        for name in {**self.made_with, **made_with} if self.checkpoint else ():
            before, value = self.made_with.get(name), made_with.get(name)
            if before != value:
                raise InputError(
                    f"{self.checkpoint}: {name} was {before} and is now {value}. A run goes on with "
                    "the text, settings and global batch (processes x --per_device_train_batch_size "
                    f"x --gradient_accumulation_steps, now with {self.num_processes} processes) that "
                    "it began with.")
        self.made_with = made_with
        if self.sum(self.step)[0] != self.step * self.num_processes:
            raise InputError("the processes found different checkpoints. Expected a folder that all "
                             "machines see; put --output_dir on a shared disk.")

    def start_trackers(self):
        """Start what is told of the run: the trackers of --report_to, the repository on the Hub.

        A resumed run goes on with its own.
        """
        args, folder = self.args, str(self.folder)
        shown = {flag: value if isinstance(value, int | float) else f"{value}"
                 for flag, value in self.settings.items()}
        self.accelerator.project_configuration.logging_dir = f"{folder}/runs"
        with blame(f"--report_to {' '.join(args.report_to)}: cannot start", "For wandb, 'wandb "
                   "login' or WANDB_MODE=offline."):
            self.accelerator.init_trackers(os.environ.get("WANDB_PROJECT", self.task), shown, {
                "wandb": {"name": args.run_name, "id": self.run_id, "resume": "allow",
                          "dir": folder},
                "trackio": {"name": args.run_name, "resume": "allow" if self.step else "never"},
                # Hides what stood there from here on.
                "tensorboard": {"purge_step": self.step + (self.step > 0)},
            })
        if args.push_to_hub and self.is_main:  # before the training, in case it fails
            with blame("--push_to_hub: cannot start", "Log in with 'hf auth login', and give "
                       "--hub_model_id NAME/MODEL."):
                name = args.hub_model_id or self.folder.resolve().name
                private = getattr(args, "hub_private_repo", None)  # of the Trainer scripts
                repository = huggingface_hub.create_repo(name, exist_ok=True, private=private)
                self.repository = repository.repo_id

    def save_model_and_results(self, model, tokenizer, results):
        """Save a model that was trained, and the results: before anything else can fail.

        Args:
            model: not wrapped.
            results: dict of the scores.
        """
        if self.args.do_train and self.is_main:
            aside = self.folder / "tmp-model"
            advice = "The last checkpoint is whole." if list_checkpoints(self.folder) else ""
            with blame(f"--output_dir {self.folder}: the model cannot be saved", advice):
                model.save_pretrained(aside)
                tokenizer.save_pretrained(aside)
            for path in aside.iterdir():
                shutil.copymode(aside / "config.json", path)  # safetensors lets the owner alone read
                os.replace(path, self.folder / path.name)
            aside.rmdir()
        self.write_results(results)

    def write_results(self, results):
        """Write all_results.json, and after a training the model card; again with what comes later.

        A run that was resumed adds to the results that it finds, if they are of the same model.
        """
        if not (self.is_main and self.writes and results):
            return
        path, older = self.folder / "all_results.json", {}
        if self.checkpoint and path.exists():
            older = json.loads(path.read_text(encoding="utf-8"))
        if older.get("step") != results.get("step"):
            older = {}  # of an earlier model
        results = older | results
        write_json(path, results)
        cards = [self.folder / name for name in ("README.md", "MODEL_CARD.md")]
        free = [card for card in cards if not card.exists()
                or OURS in card.read_text(encoding="utf-8", errors="replace")]
        if self.args.do_train and free:  # beside one of the user's
            free[0].write_text(self.make_card(results), encoding="utf-8")

    def make_card(self, results):
        """Make the model card: what the model was made of, and its scores."""
        base, card = self.args.model, self.card
        head = huggingface_hub.ModelCardData(library_name="transformers", pipeline_tag=card["tag"],
                                             base_model=None if os.path.exists(base) else base)
        data = "\n".join(f"- {split}: {html.escape(words)}" for split, words in card["data"].items())
        scores = "\n".join(f"| {' | '.join(row)} |" for row in score_rows(results))
        settings = {flag: value for flag, value in self.settings.items()
                    if str(value) not in ("None", "False", "[]")}
        settings = json.loads(json.dumps(settings, default=str))
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

    def report_results(self, results):
        """Show the results, and tell trackers and the Hub, which may fail."""
        rows = score_rows(results)
        if rows:
            for name, before, after in [("", "before", "after"), *rows]:
                self.say(f"{name:<36}{before:>16}{after:>16}")
            self.say(f"Before: {self.note}" if self.args.do_train else "",
                     f"Results are in {self.folder / 'all_results.json'}")
        self.accelerator.log({name: results[name] for name, *_ in rows}, step=results.get("step", 0))
        self.accelerator.end_training()
        if self.repository:
            with blame("--push_to_hub", f"The model is safe in {self.folder}; upload it with: hf "
                       f"upload NAME/MODEL {self.folder}"):
                apart = ["checkpoint-*", "eval-*", "tmp-*", "*.tmp", "wandb/*"]
                print("Uploaded to", huggingface_hub.upload_folder(
                    repo_id=self.repository, folder_path=self.folder, ignore_patterns=apart))


def score_rows(results):
    """List (name, before, after) of the scores, as text: of all results but those of the training."""
    rows = []
    for name, value in results.items():
        is_number = isinstance(value, int | float)
        if is_number and not name.startswith(("initial_", "train_", "epoch", "step")):
            values = results.get(f"initial_{name}", "-"), value
            rows.append((name, *(f"{v:,.4f}" if isinstance(v, float) else f"{v}" for v in values)))
    return rows
