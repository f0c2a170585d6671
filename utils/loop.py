"""What stands around the updates of a loop."""

import json
import math
import time
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration
from tqdm import tqdm

from utils.checkpoints import save_checkpoint
from utils.devices import choose_device, join_processes


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
