"""What stands around a model that a Trainer fine-tunes: its run, its head and its dropout."""

import copy
import hashlib
import json
import os

import torch
import torch.distributed
from transformers import EarlyStoppingCallback

from utils.models import checkpoint_gradients
from utils.output import clear_output
from utils.runs import Run
from utils.similar_lengths import SimilarLengthSampler
from utils.trainer import ExactTrainer, make_training_arguments, run_trainer, shown_settings


def write_list(folder, file, rows, words, say):
    """Write what is wrong with the data to a file, a row each, and say how much it is.

    Args:
        rows: values for JSON; without any, there is no file.
        words: what they are.
    """
    if int(os.environ.get("RANK", 0)) == 0:
        path = folder / file
        path.unlink(missing_ok=True)  # that of an earlier run
        if rows:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character
            say(f"  Careful:  {len(rows):,} {words}; they are listed in {path}")


class TrainerRun(Run):
    """A run that fine-tunes a model by a Trainer, or only uses one.

    Args:
        task, args, writes: as of Run.
        kind: the script's subclass of TrainingArguments.
        hidden: names of flags that the model card does not show.

    Attributes:
        training: the TrainingArguments.
    """

    def __init__(self, task, args, writes, kind, *, hidden=()):
        super().__init__(task, args, writes)
        precision = self.accelerator.mixed_precision
        self.training = make_training_arguments(kind, args, self.on_cpu, precision)
        self.settings = {flag: value for flag, value in shown_settings(args).items()
                         if flag not in hidden}

    def open(self, resume, overwrite):
        """Open the folder, as Run does. That of a run in rounds has its checkpoints in theirs."""
        if resume and getattr(self.args, "unlabeled_file", None):
            resume, overwrite = None, True
        super().open(resume, overwrite)

    def introduce(self, model, note):
        """Say what the run begins with, and quicken its dropout. note: as of load_model."""
        super().introduce(model, note)
        quicken_dropout(model, self.on_cpu)  # where nothing is dropped, it computes as in training

    def check_resume(self, model_type, data, flags):
        """Refuse to go on from a checkpoint of other data or settings, as Run does."""
        super().check_resume(model_type, data, (
            *flags, "optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2",
            "adam_epsilon", "lr_scheduler_kwargs", "label_smoothing_factor", "neftune_noise_alpha",
            "metric_for_best_model", "greater_is_better"))

    def fit(self, model, tokenizer, lengths, *, score, **how):
        """Train a model, from the checkpoint where there is one: (trainer, results).

        A signal ends the run.

        Args:
            tokenizer: is saved beside the model.
            lengths: tokens of each window.
            score: as for an ExactTrainer.
            how: collator and compute_loss_func, as for an ExactTrainer.
        """
        args, training = self.args, copy.copy(self.training)
        # Rotation is ours: Trainer's own would look for checkpoints that are gone.
        training.output_dir, training.save_total_limit = str(self.folder), None
        training.eval_on_start = score is not None and self.checkpoint is None
        if score is None:
            training.eval_strategy, training.load_best_model_at_end = "no", False
        self.settings["load_best_model_at_end"] = training.load_best_model_at_end
        if training.activation_checkpointing:
            checkpoint_gradients(model)
        sampler = SimilarLengthSampler(lengths, args.per_device_train_batch_size,
                                       args.gradient_accumulation_steps, self.num_processes,
                                       self.rank, args.seed)
        patience = args.early_stopping_patience
        trainer = ExactTrainer(model=model, args=training, run=self, sampler=sampler, score=score,
                               tokenizer=tokenizer,
                               callbacks=[EarlyStoppingCallback(patience)] if patience else None,
                               **how)
        self.say(f"Updates     {trainer.max_steps:,}, {sampler.updates_in(0):,} an epoch, with "
                 f"{sampler.global_batch} windows each (processes {self.num_processes} x batch "
                 f"{sampler.batch_size} x accumulation {sampler.accumulation_steps}); "
                 f"{sampler.padding():.1%} of the tokens are padding")
        self.start_trackers()
        if self.is_main:  # only now that nothing is left to go wrong
            clear_output(self.folder, self.step, args.overwrite_output_dir)
        return trainer, run_trainer(trainer)


def vocabulary_of(tokenizer):
    """Tell a vocabulary apart from others, in words."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return f"{len(tokenizer):,} tokens ({hashlib.sha256(words.encode()).hexdigest()[:12]})"


def add_up(processes, *arrays):
    """Add up arrays of numbers over all processes, each in its place."""
    for numbers in arrays if processes.group is not None else ():
        torch.distributed.all_reduce(torch.from_numpy(numbers), group=processes.group)


def renew_head(model, note):
    """Start the head of a model at random, as its weights are for other labels: the note on it.

    Args:
        note: as load_model gives it; what it says of the vocabulary stays.
    """
    parts = {name: module for name, module in model.named_modules()
             if isinstance(module, torch.nn.Linear) and module.out_features
             == model.config.num_labels and not name.startswith(model.base_model_prefix)}
    for part in parts.values():  # those of the same shape as the weights of other labels, too
        torch.nn.init.normal_(part.weight, std=getattr(model.config, "initializer_range", 0.02))
        if part.bias is not None:
            torch.nn.init.zeros_(part.bias)
    _, *growth = note.split("; ")
    fate = f"these parts start at random, as its own are for other labels: {', '.join(parts)}"
    return "; ".join([fate, *growth])


class QuickDropout(torch.nn.Dropout):
    """Dropout that takes four decisions out of each random number.

    On a CPU, to draw them takes a tenth of an update. The share that is dropped is a multiple of
    1/65536. On other devices it is what it is in torch.
    """

    def forward(self, inputs):
        level = round(self.p * 65536)
        if not self.training or inputs.device.type != "cpu" or not 0 < level < 65536:
            return super().forward(inputs)
        numbers = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.int16)[: inputs.numel()].view(inputs.shape) >= level - 32768
        return inputs * kept.to(inputs.dtype).mul_(65536 / (65536 - level))


def quicken_dropout(model, on_cpu):
    """Have all modules of a model that drop out do so quickly, and its attention fit that."""
    if on_cpu:  # with dropout, torch's fused attention falls back to what the plain one does
        model.set_attn_implementation("eager")
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = QuickDropout
