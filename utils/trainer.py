"""What Trainer leaves open: its flags, and order, scores and checkpoints as the loops have them."""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback, TrainerState

from utils.arguments import ABOVE_0, AMOUNT, COUNT, check_output_flags, number
from utils.checkpoints import save_checkpoint
from utils.errors import blame
from utils.signals import ignore_interrupts

BOUNDS = {  # of flags that TrainingArguments has without any
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), AMOUNT),
    **dict.fromkeys(("num_train_epochs", "logging_steps"), ABOVE_0),
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
    if args.early_stopping_patience and args.eval_strategy == "no":
        parser.error("--early_stopping_patience needs scores: give --eval_strategy epoch or steps")


def make_training_arguments(kind, args, on_cpu, precision, has_scores):
    """Make the TrainingArguments of a run. InputError for what they refuse.

    Args:
        kind: the script's subclass of them.
        has_scores: the model is scored while it is trained.
    """
    settings = {field.name: getattr(args, field.name) for field in dataclasses.fields(kind)
                if field.init}
    keeps_best = args.load_best_model_at_end
    if keeps_best is None:
        keeps_best = args.save_strategy == args.eval_strategy != "no"
    settings |= {
        "bf16": precision == "bf16", "fp16": precision == "fp16", "use_cpu": on_cpu,
        "disable_tqdm": True, "log_level": "error", "log_level_replica": "error",
        "report_to": "none", "push_to_hub": False, "resume_from_checkpoint": None,  # these are ours
        "gradient_checkpointing": None,
        "activation_checkpointing": args.activation_checkpointing or args.gradient_checkpointing,
        "do_eval": has_scores, "eval_strategy": args.eval_strategy if has_scores else "no",
        "load_best_model_at_end": keeps_best and has_scores,
    }
    with blame("these flags do not fit each other", "See --help."):
        training = kind(**settings)
    training._n_gpu = min(training.n_gpu, 1)  # several GPUs are for processes, not for DataParallel
    return training


def shown_settings(args, kind):
    """Settings for the model card and the trackers: a dict of flags to their values.

    They are the flags that TrainingArguments has not, some of those it has, and what was changed.
    kind: the script's subclass of TrainingArguments.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    shown = {*vars(args)} - {*fields} | {*kind.__annotations__, *SHOWN}
    for name, field in fields.items():
        is_plain = field.init and not callable(field.default_factory)
        if is_plain and getattr(args, name) != field.default:
            shown.add(name)
    return {name: value for name, value in vars(args).items() if name in shown}


class RunCallback(TrainerCallback):
    """Around each update of an ExactTrainer: order and dropout, then signals, log and bar."""

    def __init__(self, trainer):
        self.trainer, self.bar = trainer, None

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, losses = self.trainer, self.trainer.run_state.get("losses")
        if losses:  # since the last line of the log, and in all, when the checkpoint was saved
            trainer._tr_loss += losses["window"]
            trainer._total_loss_scalar = losses["total"]
            trainer._globalstep_last_logged = losses["last_logged"]
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="Training",
                        unit=" updates", disable=trainer.processes.rank > 0 or None)
        is_end = state.global_step and trainer.sampler.place(state.global_step)[1] == 0
        if is_end and args.eval_strategy == "epoch" and trainer.lacks_scores():
            # The run ended between the last update of an epoch and what follows it.
            trainer._determine_best_metric(trainer.evaluate(), None)

    def on_epoch_begin(self, args, state, control, **kwargs):
        sampler = self.trainer.sampler
        sampler.epoch = sampler.place(state.global_step)[0]

    def on_step_begin(self, args, state, control, **kwargs):
        # Dropout is a function of (seed, update, rank), so a checkpoint need not carry the state of
        # any generator.
        numbers = args.seed, state.global_step, self.trainer.processes.rank
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        trainer, is_last = self.trainer, state.global_step >= state.max_steps
        trainer.run_state["step"] = state.global_step
        if is_last:
            control.should_log = True
            # The end of an epoch, which follows, evaluates by itself where each one does.
            control.should_evaluate = trainer.score is not None and args.eval_strategy != "epoch"
        elif trainer.processes.sum(trainer.stop_signal.number > 0)[0]:
            trainer.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.stopped:  # no end of an epoch: what is due at one is done after the resume
            control.should_evaluate = control.should_save = False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.global_step == 0:
            scores = {f"initial_{name}": value for name, value in metrics.items()}
            self.trainer.run_state["initial"] = scores

    def on_log(self, args, state, control, logs=None, **kwargs):
        trainer = self.trainer
        values = {name: value for name, value in logs.items() if name != "epoch"}
        if not state.is_world_process_zero or "train_runtime" in values or not trainer.is_in_train:
            return
        if state.global_step == 0:
            values = {f"initial_{name}": value for name, value in values.items()}
        epochs = round(trainer.sampler.epochs_until(state.global_step), 4)
        text = json.dumps({"step": state.global_step, "epoch": epochs, **values}) + "\n"
        path = Path(args.output_dir, "log.jsonl")
        if "eval_loss" in values and path.exists() and text in path.read_text(encoding="utf-8"):
            return  # a run that was killed between these scores and the next checkpoint had them
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
        trainer.accelerator.log(values, step=state.global_step)
        if "loss" in values:
            self.bar.set_postfix(loss=f"{values['loss']:.3f}")
        if "loss" not in values or self.bar.disable:  # no terminal to show a bar on
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
        report_to: list of trackers.
        processes: a Processes.
        sampler: a GlobalBatchSampler of numbers of examples.
        collator: makes a batch of such numbers.
        score: function that scores a model, a dict of results with eval_ in front; or None.
        run_state: what a checkpoint carries besides the weights, a dict with "step".
        stop_signal: a StopSignal.
        tokenizer: is saved beside the model.
        rest: what else a Trainer takes.

    Attributes:
        stopped: whether a signal ended the training.
        paused: seconds spent on scoring and saving.
        scored_at: the update after which the model was last scored, or None.
        last_update: how many there are to be.

    Raises:
        InputError: the flags do not go together, or a package that they need is missing.
    """

    def __init__(self, *, report_to, processes, sampler, collator, score, run_state, stop_signal,
                 tokenizer, **rest):
        self.report_to, self.processes, self.sampler = report_to, processes, sampler
        self.score, self.run_state, self.stop_signal = score, run_state, stop_signal
        self.tokenizer, self.stopped, self.paused, self.scored_at = tokenizer, False, 0.0, None
        # Now, when nothing that lies in the output folder is cleared yet.
        with blame("these flags cannot be trained with", "See --optim, --adam_beta1, "
                   "--lr_scheduler_type and what is like them in --help."):
            super().__init__(data_collator=collator, train_dataset=range(sampler.n),
                             eval_dataset=range(1) if score else None, **rest)
            self.last_update = self.args.max_steps
            if self.last_update <= 0:
                self.last_update = sampler.updates_until(self.args.num_train_epochs)
            self.create_optimizer_and_scheduler(self.last_update)
        self.add_callback(RunCallback(self))
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else ProgressCallback)

    def _build_accelerator_args(self, **kwargs):
        return super()._build_accelerator_args(**kwargs) | {"log_with": self.report_to or None,
                                                            "project_dir": self.args.output_dir}

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
        self.log(dict(scores))
        callbacks = self.callback_handler
        self.control = callbacks.on_evaluate(self.args, self.state, self.control, scores)
        self.paused += time.perf_counter() - begun
        return scores

    def lacks_scores(self):
        """Whether the model was not scored after its last update, though there are data for it."""
        scored = [line["step"] for line in self.state.log_history if "eval_loss" in line]
        return self.score and self.state.global_step not in scored

    def kept_step(self):
        """The update whose model is kept: the best one's where that is asked for, or the last."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return best if best and self.state.best_model_checkpoint else self.state.global_step

    def _save_checkpoint(self, model, trial):
        begun, args, state = time.perf_counter(), self.args, self.state
        output_dir, step, best = Path(args.output_dir), state.global_step, None
        if state.best_global_step:
            best = f"checkpoint-{state.best_global_step}"
        if best and (step == state.best_global_step or (output_dir / best).exists()):
            state.best_model_checkpoint = str(output_dir / best)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                state.stateful_callbacks[type(callback).__name__] = callback.state()
        window = self.processes.sum(self._tr_loss.item())[0] / self.processes.num_processes
        self.run_state["losses"] = {"window": window, "total": self._total_loss_scalar,
                                    "last_logged": self._globalstep_last_logged}
        ends = self.control.should_training_stop and not self.stopped and step < state.max_steps
        self.run_state["ended_by_patience"] = args.early_stopping_patience if ends else None
        if self.processes.rank == 0:
            keep = best if args.load_best_model_at_end else None
            limit = args.save_total_limit or 10**9
            save_checkpoint(output_dir, step, self.write_checkpoint, limit, keep=keep)
        self.processes.sum(0)  # the others wait: none trains on if this one fails
        self.paused += time.perf_counter() - begun

    def finish(self, checkpoint):
        """Take up the state of a run that had come to its end, and the model that it kept."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.accelerator.prepare_model(self.model, evaluation_mode=True)
        if self.lacks_scores():  # it ended between its last update and what follows it
            self.is_in_train = True  # so that they are logged
            self._determine_best_metric(self.evaluate(), None)
            self.is_in_train = False
        best = Path(self.args.output_dir, f"checkpoint-{self.state.best_global_step}")
        self.state.best_model_checkpoint = str(best) if best.exists() else None
        if self.args.load_best_model_at_end and best.exists():
            self._load_best_model()

    def write_checkpoint(self, folder):
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        scaler, state = self.accelerator.scaler, json.dumps(self.run_state, indent=1)
        with blame(f"{folder} cannot be written", "The last whole checkpoint is still there."):
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
            if scaler:
                torch.save(scaler.state_dict(), folder / "scaler.pt")
            self.state.save_to_json(folder / "trainer_state.json")
            (folder / "state.json").write_text(state, encoding="utf-8")

    def _load_rng_state(self, checkpoint):
        pass  # see on_step_begin


def run_trainer(trainer, checkpoint, say):
    """Train, from a checkpoint where there is one: dict of results, of the model that is kept.

    Empty where a signal ended the training; then trainer.stopped is True and a checkpoint saved.
    """
    sampler, run_state, args = trainer.sampler, trainer.run_state, trainer.args
    begun, before, patience = time.perf_counter(), run_state["step"], args.early_stopping_patience
    ended = checkpoint and before >= trainer.last_update
    if checkpoint and patience:
        ended = ended or run_state["ended_by_patience"] == patience
    if ended:
        trainer.finish(checkpoint)  # there is nothing left to do; train() would do one update more
    else:
        with trainer.stop_signal:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stopped:
        return {}
    step, kept = trainer.state.global_step, trainer.kept_step()
    if kept != step:
        say(f"Best        the model of update {kept} is kept, by {args.metric_for_best_model}")
    seconds = time.perf_counter() - begun - trainer.paused
    total = run_state["losses"]["total"] if ended else trainer._total_loss_scalar
    results = {"step": step, "epoch": sampler.epochs_until(step), **run_state["initial"],
               "train_loss": total / step}
    if not ended:  # else it was a finished run that was resumed, whose time is known, if at all
        seen = sampler.examples_until(step) - sampler.examples_until(before)
        results |= {"train_runtime": seconds, "train_samples_per_second": seen / seconds}
    scored = [line for line in trainer.state.log_history if "eval_loss" in line]
    scores = {line["step"]: line for line in scored}.get(kept, {})
    names = [name.removeprefix("initial_") for name in run_state["initial"]]  # in their order
    return results | {name: scores[name] for name in names if name in scores}
