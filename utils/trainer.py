"""What Trainer leaves open: its flags, and order, scores and checkpoints as the loops have them."""

import argparse
import dataclasses
import json
import math
import time

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback, TrainerState

from utils.arguments import ABOVE_0, AMOUNT, COUNT, check_output_flags, number
from utils.checkpoints import save_checkpoint
from utils.errors import blame
from utils.signals import end_stopped_run, ignore_interrupts

BOUNDS = {  # of flags that TrainingArguments has without any
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), AMOUNT),
    **dict.fromkeys(("num_train_epochs", "logging_steps", "save_steps", "eval_steps"), ABOVE_0),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit", "cpu_threads"), COUNT),
    "early_stopping_patience": COUNT,
    "dataloader_num_workers": number(int, 0),
    "seed": number(int, 0, 2**32 - 1),
    "label_smoothing_factor": number(float, 0, math.nextafter(1, 0)),
}
REFUSED = (  # flags of TrainingArguments that an ExactTrainer has no use for, and why
    ("auto_find_batch_size", "another batch size gives another result; to save memory, halve "
     "--per_device_train_batch_size and double --gradient_accumulation_steps"),
    ("dataloader_drop_last train_sampling_strategy data_seed",
     "the order of examples is a function of --seed, and none is left out"),
    ("ignore_data_skip save_only_model", "a resumed run ends as one that was left alone"),
    ("average_tokens_across_devices", "each label weighs the same on any number of devices"),
    ("fsdp fsdp_config deepspeed", "encoders of this size train fastest with plain data "
     "parallelism, by accelerate launch --multi_gpu"),
    ("bf16_full_eval fp16_full_eval", "it is scored in the precision in which it is trained, that of "
     "--mixed_precision"),
    ("hub_token hub_strategy hub_revision hub_always_push", "the model is uploaded once, at the "
     "end; log in with: hf auth login"),
    ("eval_accumulation_steps batch_eval_metrics prediction_loss_only eval_use_gather_object",
     "evaluation keeps no more than it needs already"),
)
SHOWN = (  # of TrainingArguments, even where they are as there
    "learning_rate", "num_train_epochs", "max_steps", "weight_decay", "seed", "warmup_steps",
    "lr_scheduler_type", "gradient_accumulation_steps", "max_grad_norm",
)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says what a default is, where there is one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def settle_flags(parser):
    """Give the flags of TrainingArguments bounds, and all others their spelling with hyphens, too.

    Args:
        parser: an HfArgumentParser of one class, with all flags; the group of the class comes last.
    """
    for flag, action in [*parser._option_string_actions.items()]:
        parser._option_string_actions.setdefault(flag.replace("_", "-"), action)
    for action in parser._actions:
        action.type = BOUNDS.get(action.dest, action.type)
        # Of both spellings, messages and --help name the one with underscores.
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        action.option_strings = names
    title = parser.dataclass_types[0]._argument_group_name
    parser._action_groups.sort(key=lambda group: group.title == title)  # of others the order stays


def check_trainer_flags(args, parser):
    """Find flags of a Trainer that cannot work, do not fit each other, or have no use here.

    Args:
        args: Namespace of all flags.
        parser: made them, and knows their defaults.
    """
    for names, reason in REFUSED:
        for name in names.split():
            if getattr(args, name, None) != parser.get_default(name):
                parser.error(f"--{name} is not for this script: {reason}")
    check_output_flags(args, parser)
    given = [name for name in ("bf16", "fp16") if getattr(args, name)]
    if (given and args.mixed_precision != "auto") or len(given) > 1:
        parser.error(f"--mixed_precision {args.mixed_precision} and --{' and --'.join(given)} were "
                     "given; expected one of them")
    args.mixed_precision = given[0] if given else args.mixed_precision
    if args.save_strategy == "best":
        parser.error("--save_strategy best: expected no, steps or epoch. Which model is kept says "
                     "--load_best_model_at_end.")
    if args.early_stopping_patience and args.eval_strategy == "no":
        parser.error("--early_stopping_patience needs scores: give --eval_strategy epoch or steps")


def make_training_arguments(kind, args, on_cpu, precision):
    """Make the TrainingArguments of a run, for its own accelerator. InputError for what they refuse.

    Args:
        kind: the script's subclass of them.
    """
    settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(kind)
                if field.init}
    if args.load_best_model_at_end is None:
        settings["load_best_model_at_end"] = args.save_strategy == args.eval_strategy != "no"
    settings |= {
        "bf16": precision == "bf16", "fp16": precision == "fp16", "use_cpu": on_cpu,
        "disable_tqdm": True, "log_level": "error", "log_level_replica": "error",
        "report_to": "none", "push_to_hub": False, "resume_from_checkpoint": None,  # these are ours
        "accelerator_config": {"use_configured_state": True}, "gradient_checkpointing": None,
        "activation_checkpointing": args.activation_checkpointing or args.gradient_checkpointing,
    }
    with blame("these flags do not fit each other", "See --help."):
        training = kind(**settings)
    training._n_gpu = min(training.n_gpu, 1)  # several GPUs are for processes, not for DataParallel
    return training


def shown_settings(args):
    """Settings for the model card and the trackers: dict of flags to their values.

    They are the flags that TrainingArguments has not, some of those it has, and what was changed.
    """
    plain = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    return {name: value for name, value in vars(args).items()
            if name in SHOWN or value != plain.get(name, dataclasses.MISSING)}


class RunCallback(TrainerCallback):
    """Around each update of an ExactTrainer: order and dropout, then signals, log and bar."""

    def __init__(self, trainer):
        self.trainer, self.run, self.bar = trainer, trainer.run, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="Training",
                        unit=" updates", disable=not self.run.is_main or None)

    def on_epoch_begin(self, args, state, control, **kwargs):
        sampler = self.trainer.sampler
        sampler.epoch = sampler.place(state.global_step)[0]

    def on_step_begin(self, args, state, control, **kwargs):
        # Dropout is a function of (seed, update, rank), so a checkpoint need not carry the state of
        # any generator.
        numbers = args.seed, state.global_step, self.run.rank
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        trainer, run = self.trainer, self.run
        run.step = state.global_step
        is_last = run.step >= state.max_steps
        is_due = (args.eval_strategy == "epoch" and args.eval_delay <= state.epoch
                  and trainer.sampler.place(run.step)[1] == 0)
        if trainer.score and (is_last or is_due):
            control.should_evaluate = True  # before it is saved: a checkpoint has its scores
        if run.sum(run.stop_signal.number > 0)[0] and not is_last:
            trainer.stopped = control.should_save = control.should_training_stop = True
        # What is not logged yet would be lost to a resume.
        control.should_log |= is_last or control.should_save

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save
        if self.trainer.scored_at == state.global_step:
            control.should_evaluate = False
        if self.trainer.stopped:  # within an epoch: its evaluation and checkpoint come after the resume
            control.should_evaluate = control.should_save = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        run = self.run
        values = {name: value for name, value in logs.items() if name != "epoch"}
        if not run.is_main or "train_runtime" in values or not self.trainer.is_in_train:
            return
        if state.global_step == 0:
            values = {f"initial_{name}": value for name, value in values.items()}
        epochs = round(self.trainer.sampler.epochs_until(state.global_step), 4)
        with open(run.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "epoch": epochs, **values}) + "\n")
        run.accelerator.log(values, step=state.global_step)
        shown = [f"{name} {value:.6g}" for name, value in values.items() if name not
                 in ("learning_rate", "grad_norm")]
        tqdm.write(f"Update {state.global_step:>6}  {'  '.join(shown)}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class ExactTrainer(Trainer):
    """A Trainer that trains, scores and saves alike on any number of processes.

    Batches come from a sampler over whole global batches; a score is computed by a function that
    adds up over all processes; a checkpoint counts only when it is whole (see utils.checkpoints),
    and needs no generator's state.

    Args:
        run: a Run, whose state a checkpoint carries.
        sampler: a GlobalBatchSampler of numbers of examples.
        collator: makes a batch of such numbers.
        score: function that scores a model, a dict of results with eval_ in front; or None.
        tokenizer: is saved beside the model.
        rest: what else a Trainer takes.

    Attributes:
        stopped: whether a signal ended the training.
        paused: seconds spent on scoring and saving.
        scored_at: the update after which the model was last scored, or None.
        max_steps: how many there are to be.

    Raises:
        InputError: the flags do not go together, or a package that they need is missing.
    """

    def __init__(self, *, run, sampler, collator, score, tokenizer, **rest):
        self.run, self.sampler, self.score, self.tokenizer = run, sampler, score, tokenizer
        self.stopped, self.paused, self.scored_at = False, 0.0, None
        # Now, when nothing that lies in the output folder is cleared yet.
        with blame("these flags cannot be trained with", "See --optim, --adam_beta1, "
                   "--lr_scheduler_type and what is like them in --help."):
            super().__init__(data_collator=collator, train_dataset=range(sampler.n),
                             eval_dataset=range(1) if score else None, **rest)
            self.max_steps = self.args.max_steps
            if self.max_steps <= 0:
                self.max_steps = sampler.updates_until(self.args.num_train_epochs)
            self.create_optimizer_and_scheduler(self.max_steps)
        self.add_callback(RunCallback(self))
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self):
        """Make the loader of this process's batches, which accelerate would share out again."""
        # The generator keeps iter() from drawing its seed out of the global one.
        return DataLoader(self.train_dataset, batch_sampler=self.sampler,
                          collate_fn=self.data_collator,
                          num_workers=self.args.dataloader_num_workers, generator=torch.Generator(),
                          pin_memory=self.args.device.type == "cuda",
                          worker_init_fn=ignore_interrupts)

    def evaluate(self, *args, **kwargs):
        """Score the model, log the scores, and tell the callbacks."""
        begun = time.perf_counter()
        scores, self.scored_at = self.score(self.model), self.state.global_step
        if self.scored_at == 0:
            self.run.initial = {f"initial_{name}": value for name, value in scores.items()}
        self.log(dict(scores))
        callbacks = self.callback_handler
        self.control = callbacks.on_evaluate(self.args, self.state, self.control, scores)
        self.paused += time.perf_counter() - begun
        return scores

    def kept_step(self):
        """The update whose model is kept: the best one's where that is asked for, or the last."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return best if best and self.state.best_model_checkpoint else self.state.global_step

    def _save_checkpoint(self, model, trial):
        begun, args, state, run = time.perf_counter(), self.args, self.state, self.run
        step, best = state.global_step, None
        if state.best_global_step:
            best = f"checkpoint-{state.best_global_step}"
        if best and (step == state.best_global_step or (run.folder / best).exists()):
            state.best_model_checkpoint = str(run.folder / best)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                state.stateful_callbacks[type(callback).__name__] = callback.state()
        counters = [callback.early_stopping_patience_counter for callback
                    in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)]
        ends = bool(counters) and max(counters) >= args.early_stopping_patience
        run.ended_by_patience = args.early_stopping_patience if ends else None
        if run.is_main:
            keep = best if args.load_best_model_at_end else None
            limit = run.args.save_total_limit or 10**9
            save_checkpoint(run.folder, step, self.write_checkpoint, limit, keep=keep)
        run.sum(0)  # the others wait: none trains on if this one fails
        self.paused += time.perf_counter() - begun

    def write_checkpoint(self, folder):
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        state = json.dumps(self.run.state(), indent=1)
        with blame(f"{folder} cannot be written", "A whole checkpoint, if there was one, is "
                   "still there."):
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            self._save_optimizer_and_scheduler(folder)
            self._save_scaler(folder)
            self.state.save_to_json(folder / "trainer_state.json")
            (folder / "state.json").write_text(state, encoding="utf-8")

    def _load_rng_state(self, checkpoint):
        pass  # see on_step_begin

    def restore_finished(self, checkpoint):
        """Take up the state of a run that had come to its end, and the model that it kept."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.accelerator.prepare_model(self.model, evaluation_mode=True)
        best = self.run.folder / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best.exists() else None
        if self.args.load_best_model_at_end and best.exists():
            self._load_best_model()


def run_trainer(trainer):
    """Train, from a checkpoint where there is one: dict of results, of the model that is kept.

    A signal ends the run, with a checkpoint saved.
    """
    run, args, patience = trainer.run, trainer.args, trainer.args.early_stopping_patience
    sampler, checkpoint, before = trainer.sampler, run.checkpoint, run.step
    begun = time.perf_counter()
    ended = checkpoint and (before >= trainer.max_steps
                            or (patience and run.ended_by_patience == patience))
    if ended:
        trainer.restore_finished(checkpoint)  # there is nothing left to do; train() would do one update more
    else:
        with run.stop_signal:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stopped:
        end_stopped_run(run.accelerator, run.stop_signal.number, run.step, run.say)
    seconds = time.perf_counter() - begun - trainer.paused
    history, kept = trainer.state.log_history, trainer.kept_step()
    if kept != run.step:
        run.say(f"Best        the model of update {kept} is kept, by {args.metric_for_best_model}")
    losses = [line for line in history if "loss" in line]  # each the mean since the line before it
    updates = np.diff([0, *(line["step"] for line in losses)])
    results = {"step": run.step, "epoch": sampler.epochs_until(run.step), **run.initial,
               "train_loss": float(np.average([line["loss"] for line in losses], weights=updates))}
    if not ended:  # else it was a finished run that was resumed, whose time is known, if at all
        seen = sampler.examples_until(run.step) - sampler.examples_until(before)
        results |= {"train_runtime": seconds, "train_samples_per_second": seen / seconds}
    scores = {line["step"]: line for line in history if "eval_loss" in line}.get(kept, {})
    if trainer.score and not scores:  # it ends where the run that it goes on from did not
        scores = trainer.evaluate()
    names = [name.removeprefix("initial_") for name in run.initial]  # in their order
    return results | {name: scores[name] for name in names if name in scores}
