"""What stands around the updates of a loop: log, scores and checkpoints."""

import json
import math
import time

import numpy as np
import torch
from tqdm import tqdm
from transformers import get_scheduler

from utils.checkpoints import save_checkpoint
from utils.errors import blame
from utils.models import checkpoint_gradients
from utils.output import clear_output
from utils.runs import Run
from utils.signals import end_stopped_run


def build_optimizer(model, learning_rate, weight_decay):
    """Make a fused AdamW that decays matrices alone: not biases, nor the weights of LayerNorm."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def as_predictions(scores):
    """Name the scores of test data: predict_loss for eval_loss."""
    return {f"predict_{name.removeprefix('eval_')}": value for name, value in scores.items()}


class LoopRun(Run):
    """A run of a loop: what is due around its updates.

    Attributes:
        max_steps: updates to make, from `begin` on.
    """

    def begin(self, model, tokenizer, sampler, score, loss_weights):
        """Make ready for the first update, and clear the folder of what the run replaces.

        Args:
            model, tokenizer: as they are loaded.
            sampler: the GlobalBatchSampler of the run.
            score: function that scores a model, a dict of results; None where there are no data.
            loss_weights: dict of the name of each kind of loss to its weight in the sum.

        Returns:
            The model, wrapped for several processes and for its precision.
        """
        args, self.pending = self.args, []  # losses that are still on the device
        self.tokenizer, self.sampler = tokenizer, sampler
        self.score, self.loss_weights = score, loss_weights
        self.max_steps = args.max_steps
        if self.max_steps <= 0:
            self.max_steps = max(1, sampler.updates_until(args.num_train_epochs))
        if args.gradient_checkpointing:
            checkpoint_gradients(model)
        optimizer = build_optimizer(model, args.learning_rate, args.weight_decay)
        self.schedule = get_scheduler(args.lr_scheduler_type, optimizer,
                                      self.updates(args.warmup_steps), self.max_steps)
        model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.model = self.accelerator.unwrap_model(model, keep_torch_compile=True)
        if self.checkpoint:
            path, scaler = self.checkpoint / "optimizer.pt", self.accelerator.scaler
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
            # Rates are a function of the update: of a schedule, nothing else has to be saved.
            self.schedule.last_epoch = self.step
            if scaler and saved["scaler"]:
                scaler.load_state_dict(saved["scaler"])
        self.say(f"Updates     {self.max_steps:,}, {sampler.updates_in(0):,} an epoch, with "
                 f"{sampler.global_batch} examples each (processes {self.num_processes} x batch "
                 f"{sampler.batch_size} x accumulation {sampler.accumulation_steps}); going on "
                 f"from {self.checkpoint or 'the start'}")
        scores = score(self.model) if score and not self.checkpoint else {}
        self.start_trackers()
        if self.is_main:  # only now that nothing is left to go wrong
            clear_output(self.folder, self.step, args.overwrite_output_dir)
        self.bar = tqdm(total=self.max_steps, initial=self.step, desc="Training",
                        disable=not self.is_main or None)
        if scores:
            self.initial = {f"initial_{name}": value for name, value in scores.items()}
            self.log(self.initial)
        self.first_step, self.begun = self.step, time.perf_counter()
        return model

    def updates(self, number):
        """Turn what a flag counts into updates: below 1 it is a share of all of them."""
        return math.ceil(round(number * self.max_steps, 6)) if number < 1 else int(number)

    def is_due(self, strategy, every):
        if strategy == "epoch":
            return self.sampler.place(self.step)[1] == 0 or self.step == self.max_steps
        return strategy == "steps" and self.step % self.updates(every) == 0

    def seed_dropout(self):
        """Make dropout a function of (seed, update, rank): no checkpoint need carry a generator."""
        sequence = np.random.SeedSequence((self.args.seed, self.step, self.rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def after_update(self, losses, counts, norm, stop):
        """Log, score and save what is due after an update.

        Args:
            losses: sums of this process, nats, on the device; (kinds,).
            counts: of what the losses are of, of all processes; a list of as many.
            norm: of the gradient, before it was clipped; a scalar on the device.
            stop: whether any process noted a signal.

        Returns:
            Whether there is another update to make.
        """
        args, self.step = self.args, self.step + 1
        is_last = self.step == self.max_steps
        self.pending.append(losses)
        self.totals = np.add(self.totals, [[0] * len(counts), counts]).tolist()
        self.bar.update()
        if self.is_due("steps", args.logging_steps) or is_last:
            self.collect_losses()
            means = self.means(np.subtract(self.totals, self.logged))
            self.logged = self.totals
            rate = self.schedule.get_last_lr()[0]
            self.log({**means, "learning_rate": rate, "grad_norm": norm.item()})
        since = time.perf_counter()
        save_is_due = self.is_due(args.save_strategy, args.save_steps)
        score_is_due = self.is_due(args.eval_strategy, args.eval_steps) or is_last
        if self.score and (score_is_due or (save_is_due and args.load_best_model_at_end)):
            self.evaluate()
        if save_is_due or (stop and not is_last):
            self.save()
        self.begun += time.perf_counter() - since  # neither is training
        return not (stop or is_last)

    def collect_losses(self):
        """Read the losses that are still on the device, and add them up over all processes."""
        if self.pending:
            losses = torch.stack(self.pending).cpu().double().sum(dim=0)  # (kinds,)
            self.totals[0] = np.add(self.totals[0], self.sum(*losses)).tolist()
            self.pending = []

    def means(self, totals):
        """Turn sums of losses and their counts into means, and `loss`, their weighted sum."""
        means = np.divide(totals[0], np.maximum(totals[1], 1)).tolist()  # (kinds,)
        loss = float(np.dot(means, [*self.loss_weights.values()]))
        return {"loss": loss, **dict(zip(self.loss_weights, means, strict=True))}

    def log(self, values):
        """Add a line to log.jsonl, print it, and tell the trackers."""
        if self.is_main:
            epoch = round(self.sampler.epochs_until(self.step), 4)
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, "epoch": epoch, **values}) + "\n")
            shown = (f"{name} {value:.6g}" for name, value in values.items()
                     if isinstance(value, float))
            tqdm.write(f"Update {self.step:>6}  {'  '.join(shown)}")
        self.accelerator.log(values, step=self.step)

    def evaluate(self):
        scores = self.score(self.model)
        self.latest = {**scores, "step": self.step}
        self.log(scores)

    def save(self):
        """Save a checkpoint; note the best of those that are saved, so that it can be loaded."""
        self.collect_losses()
        args, keep = self.args, None
        if args.load_best_model_at_end and self.latest.get("step") == self.step:
            both = [self.best or self.latest, self.latest]
            self.best = min(both, key=lambda scores: scores["eval_loss"])
        if self.best:
            keep = f"checkpoint-{self.best['step']}"
        if self.is_main:
            save_checkpoint(self.folder, self.step, self.write, args.save_total_limit, keep)
        self.sum(0)  # the others wait: none trains on if this one fails

    def write(self, folder):
        """Write the files of a checkpoint into a folder."""
        scaler = self.accelerator.scaler
        training = {"optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else None}
        state = json.dumps(self.state(), indent=1)
        with blame(f"{folder} cannot be written", "A whole checkpoint, if there was one, is still "
                   "there."):
            self.unwrapped().save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            torch.save(training, folder / "optimizer.pt")
            (folder / "state.json").write_text(state, encoding="utf-8")

    def unwrapped(self):
        """Give the model as it is saved."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def finish_training(self):
        """End the run where a signal has stopped it; else load the best model, if asked for.

        Returns:
            dict of results.
        """
        sampler, seconds = self.sampler, time.perf_counter() - self.begun
        self.bar.close()
        if self.step < self.max_steps:
            end_stopped_run(self.accelerator, self.stop_signal.number, self.step, self.say)
        if self.score and self.latest.get("step") != self.step:  # it was killed before this
            self.evaluate()
        if self.best and self.best["eval_loss"] < self.latest["eval_loss"]:
            name = f"checkpoint-{self.best['step']}"
            self.say(f"Best        the model of {name} is kept")
            model = self.unwrapped()
            best = type(model).from_pretrained(self.folder / name, dtype=torch.float32)
            model.load_state_dict(best.state_dict())
            self.latest = self.best
        results = {"epoch": sampler.epochs_until(self.step), **self.initial}
        results |= {f"train_{name}": value for name, value in self.means(self.totals).items()}
        seen = sampler.examples_until(self.step) - sampler.examples_until(self.first_step)
        if seen:  # otherwise it was a finished run that was resumed, and these are known already
            results |= {"train_runtime": seconds, "train_samples_per_second": seen / seconds}
        return {**results, **self.latest, "step": self.step}
