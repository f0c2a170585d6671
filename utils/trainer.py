"""What Trainer leaves open: batches, scores and checkpoints that do not depend on how a run is split."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import ProjectConfiguration
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback, TrainerState

from utils.checkpoints import save_checkpoint
from utils.errors import InputError
from utils.signals import ignore_interrupts


def refuse_flags(args, parser):
    """End the run where a flag of TrainingArguments is given that an ExactTrainer has no use for. Better than silence.

    args: Namespace of all flags. parser: made them, and knows their defaults.
    """
    for names, reason in (
            ("auto_find_batch_size", "another batch size gives another result; to save memory, halve "
             "--per_device_train_batch_size and double --gradient_accumulation_steps"),
            ("dataloader_drop_last train_sampling_strategy data_seed", "the order of examples is a function of --seed, "
             "and none is left out"),
            ("ignore_data_skip save_only_model", "a resumed run ends as one that was left alone"),
            ("average_tokens_across_devices", "each label weighs the same on any number of devices"),
            ("fsdp fsdp_config deepspeed", "encoders of this size train fastest with plain data parallelism, by "
             "accelerate launch --multi_gpu"),
            ("eval_accumulation_steps batch_eval_metrics prediction_loss_only eval_use_gather_object", "evaluation "
             "keeps no more than it needs already")):
        for name in names.split():
            if getattr(args, name, None) != parser.get_default(name):
                parser.error(f"--{name} is not for this script: {reason}")


class RunCallback(TrainerCallback):
    """Around each update of an ExactTrainer: order and dropout before it, signals, the log and the bar after it."""

    def __init__(self, trainer):
        self.trainer, self.bar = trainer, None

    def on_train_begin(self, args, state, control, **kwargs):
        trainer, losses = self.trainer, self.trainer.run_state.get("losses")
        if losses:  # since the last line of the log, and in all, when the checkpoint was saved
            trainer._tr_loss += losses["window"]
            trainer._total_loss_scalar, trainer._globalstep_last_logged = losses["total"], losses["last_logged"]
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="Training", unit=" updates",
                        disable=trainer.processes.rank > 0 or None)
        if (state.global_step and args.eval_strategy == "epoch" and trainer.lacks_scores()
                and trainer.sampler.place(state.global_step)[1] == 0):
            # The run ended between the last update of an epoch and what follows it.
            trainer._determine_best_metric(trainer.evaluate(), None)

    def on_epoch_begin(self, args, state, control, **kwargs):
        sampler = self.trainer.sampler
        sampler.epoch = sampler.place(state.global_step)[0]

    def on_step_begin(self, args, state, control, **kwargs):
        # Dropout is a function of (seed, update, rank), so a checkpoint need not carry the state of any generator.
        numbers = (args.seed, state.global_step, self.trainer.processes.rank)
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
        if self.trainer.stopped:  # this is no end of an epoch: what is due at one is done after the resume
            control.should_evaluate = control.should_save = False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.global_step == 0:
            self.trainer.run_state["initial"] = {f"initial_{name}": value for name, value in metrics.items()}

    def on_log(self, args, state, control, logs=None, **kwargs):
        trainer = self.trainer
        values = {name: value for name, value in logs.items() if name != "epoch"}
        if not state.is_world_process_zero or "train_runtime" in values or not trainer.is_in_train:
            return
        if state.global_step == 0:
            values = {f"initial_{name}": value for name, value in values.items()}
        line = {"step": state.global_step, "epoch": round(trainer.sampler.epochs_until(state.global_step), 4), **values}
        path, text = Path(args.output_dir, "log.jsonl"), json.dumps(line) + "\n"
        if "eval_loss" in values and path.exists() and text in path.read_text(encoding="utf-8"):
            return  # a run that was killed between these scores and the next checkpoint had them already
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
        trainer.accelerator.log(values, step=state.global_step)
        shown = {name: value for name, value in values.items() if name not in ("learning_rate", "grad_norm")}
        if "loss" in values:
            self.bar.set_postfix(loss=f"{values['loss']:.3f}")
        if "loss" not in values or self.bar.disable:  # no terminal to show a bar on
            tqdm.write(f"Update {state.global_step:>6}  " + "  ".join(
                f"{name} {value:.6g}" for name, value in shown.items()))

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class ExactTrainer(Trainer):
    """A Trainer that trains, scores and saves alike on any number of processes, and resumes where it was.

    Batches come from a sampler over whole global batches; a score is computed by a function that adds up over all
    processes; a checkpoint counts only when it is whole (see utils.checkpoints), and needs no generator's state.

    Args:
        settings: the flags, a dict. processes: as join_processes made them. sampler: a GlobalBatchSampler of numbers of
            examples, of which the collator makes batches.
        score: function that scores a model, a dict of results with eval_ in front; None where there are no such data.
        run_state: what a checkpoint carries besides, a dict with "step". stop_signal: a StopSignal.
        tokenizer: is saved beside the model. rest: what else a Trainer takes.

    Attributes:
        stopped: whether a signal ended the training. paused: seconds spent on scoring and saving. scored_at: the update
            after which the model was last scored, or None. last_update: how many there are to be.

    Raises:
        InputError: the flags do not go together, or a package that they need is missing.
    """

    def __init__(self, *, settings, processes, sampler, collator, score, run_state, stop_signal, tokenizer, **rest):
        self.settings, self.processes, self.sampler, self.score = settings, processes, sampler, score
        self.run_state, self.stop_signal, self.tokenizer = run_state, stop_signal, tokenizer
        self.stopped, self.paused, self.scored_at = False, 0.0, None
        try:  # now, when nothing that lies in the output folder is cleared yet
            super().__init__(data_collator=collator, train_dataset=range(sampler.n),
                             eval_dataset=range(1) if score else None, **rest)
            given = self.args.max_steps
            self.last_update = given if given > 0 else sampler.updates_until(self.args.num_train_epochs)
            self.create_optimizer_and_scheduler(self.last_update)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"these flags cannot be trained with: {' '.join(str(error).split())}. See --optim, "
                             "--adam_beta1, --lr_scheduler_type and what is like them in --help.") from None
        self.add_callback(RunCallback(self))
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else ProgressCallback)

    def _build_accelerator_args(self, **kwargs):
        output_dir = self.args.output_dir
        return super()._build_accelerator_args(**kwargs) | {
            "log_with": self.settings["report_to"] or None,
            "project_config": ProjectConfiguration(output_dir, logging_dir=f"{output_dir}/runs")}

    def get_train_dataloader(self):
        """Make the loader of this process's batches. It is not prepared by accelerate, which would share them out."""
        # The generator keeps iter() from drawing its seed out of the global one.
        return DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=self.data_collator,
                          num_workers=self.args.dataloader_num_workers, generator=torch.Generator(),
                          pin_memory=self.args.device.type == "cuda", worker_init_fn=ignore_interrupts)

    def evaluate(self, *args, **kwargs):
        """Score the model, log the scores, and tell the callbacks."""
        begun = time.perf_counter()
        scores, self.scored_at = self.score(self.model), self.state.global_step
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        self.paused += time.perf_counter() - begun
        return scores

    def lacks_scores(self):
        """Whether the model was not scored after its last update, although there are data for it."""
        step = self.state.global_step
        return self.score and not any(line["step"] == step and "eval_loss" in line for line in self.state.log_history)

    def kept_step(self):
        """The update whose model is kept at the end: the best one's where that is asked for, or the last."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return best if best and self.state.best_model_checkpoint else self.state.global_step

    def _save_checkpoint(self, model, trial):
        begun, output_dir, step = time.perf_counter(), Path(self.args.output_dir), self.state.global_step
        best = f"checkpoint-{self.state.best_global_step}" if self.state.best_global_step else None
        if best and (step == self.state.best_global_step or (output_dir / best).exists()):
            self.state.best_model_checkpoint = str(output_dir / best)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        window = self.processes.sum(self._tr_loss.item())[0] / self.processes.num_processes
        self.run_state["losses"] = {"window": window, "total": self._total_loss_scalar,
                                    "last_logged": self._globalstep_last_logged}
        ends_early = self.control.should_training_stop and not self.stopped and step < self.state.max_steps
        self.run_state["ended_by_patience"] = self.settings["early_stopping_patience"] if ends_early else None
        if self.processes.rank == 0:
            kept = best if self.settings["load_best_model_at_end"] else None
            save_checkpoint(output_dir, step, self.write_checkpoint, self.args.save_total_limit or 10**9, keep=kept)
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
        self.accelerator.unwrap_model(self.model, keep_torch_compile=False).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
        if self.accelerator.scaler:
            torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
        self.state.save_to_json(folder / "trainer_state.json")
        (folder / "state.json").write_text(json.dumps(self.run_state, indent=1), encoding="utf-8")

    def _load_rng_state(self, checkpoint):
        pass  # see on_step_begin


def run_trainer(trainer, checkpoint, say):
    """Train, from a checkpoint where there is one: dict of results, those of the best model where it is kept.

    Empty where a signal ended the training; then trainer.stopped is True and a checkpoint saved.
    """
    sampler, run_state, args = trainer.sampler, trainer.run_state, trainer.args
    before, patience = run_state["step"], trainer.settings["early_stopping_patience"]
    ended = checkpoint and (before >= trainer.last_update or (patience and run_state["ended_by_patience"] == patience))
    begun = time.perf_counter()
    if ended:
        trainer.finish(checkpoint)  # there is nothing left to do; train() would do one update more
    else:
        with trainer.stop_signal:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stopped:
        return {}
    if trainer.kept_step() != trainer.state.global_step:
        say(f"Best        the model of update {trainer.kept_step()} is kept, by {args.metric_for_best_model}")
    seconds, state = time.perf_counter() - begun - trainer.paused, trainer.state
    results = {"step": state.global_step, "epoch": sampler.epochs_until(state.global_step), **run_state["initial"]}
    seen = sampler.examples_until(state.global_step) - sampler.examples_until(before)
    total = run_state["losses"]["total"] if ended else trainer._total_loss_scalar
    results["train_loss"] = total / state.global_step
    if not ended:  # otherwise it was a finished run that was resumed, whose time is known already, if at all
        results |= {"train_runtime": seconds, "train_samples_per_second": seen / seconds}
    scored = {entry["step"]: entry for entry in state.log_history if "eval_loss" in entry}
    scores = scored.get(trainer.kept_step(), {})
    names = [name.removeprefix("initial_") for name in run_state["initial"]]  # in their order
    return results | {name: scores[name] for name in names if name in scores}
