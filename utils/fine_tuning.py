"""What stands around a model that a Trainer fine-tunes: its run, its head and its dropout."""

import hashlib
import json
import os

import datasets
import torch
import torch.distributed
import transformers
from accelerate import Accelerator
from transformers import EarlyStoppingCallback

from utils.devices import choose_device
from utils.models import checkpoint_gradients
from utils.output import clear_output
from utils.runs import Run
from utils.signals import StopSignal, end_stopped_run
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
    """A run that fine-tunes a model, or only uses one.

    Args:
        task: what the script does, in a word: "ner".
        kind: its subclass of TrainingArguments.
        args: Namespace of the flags.
        hidden: names of flags that the model card does not show.

    Attributes:
        training: the TrainingArguments.
        device: where tensors go.
        state: what a checkpoint carries besides the weights, from `open` on; "note" says what of
            the model that the run began with started at random.
    """

    def __init__(self, task, kind, args, *, hidden=()):
        transformers.logging.set_verbosity_error()  # what they say of heads and lengths, we say
        transformers.logging.disable_progress_bar()
        datasets.logging.set_verbosity_error()
        self.on_cpu, self.precision, self.threads = choose_device(args.mixed_precision,
                                                                  args.cpu_threads)
        self.kind = kind
        self.training = make_training_arguments(kind, args, self.on_cpu, self.precision, False)
        settings = {flag: value for flag, value in shown_settings(args, kind).items()
                    if flag not in hidden}
        super().__init__(task, args, settings, self.training.world_size,
                         self.training.process_index, self.training.local_process_index)
        self.device = self.training.device
        if not self.is_main:
            datasets.disable_progress_bars()

    def begin(self, model, note):
        """Say what a model is, and quicken its dropout. note: what of it starts at random."""
        name = self.checkpoint or self.args.model
        self.say(f"Model       {name}, {model.num_parameters():,} weights; {note}")
        self.state["note"] = self.state["note"] or note
        quicken_dropout(model, self.on_cpu)

    def use(self, model, note):
        """Make a model ready that is not trained: (accelerator, model). note: as for begin."""
        self.begin(model, note)  # nothing is dropped, but it computes as in a training
        accelerator = Accelerator(cpu=self.on_cpu, mixed_precision=self.training.mixed_precision,
                                  log_with=self.args.report_to or None, project_dir=self.folder)
        self.start_trackers(accelerator, self.state["run_id"], self.state["step"])
        return accelerator, accelerator.prepare_model(model, evaluation_mode=True)

    def fit(self, model, note, tokenizer, lengths, *, score, **how):
        """Train a model, from the checkpoint where there is one: (trainer, results).

        A signal ends the run.

        Args:
            note: as for begin.
            tokenizer: is saved beside the model.
            lengths: tokens of each window.
            score: as for an ExactTrainer.
            how: collator and compute_loss_func, as for an ExactTrainer.
        """
        self.begin(model, note)
        args, has_scores = self.args, score is not None
        training = make_training_arguments(self.kind, args, self.on_cpu, self.precision, has_scores)
        self.settings["load_best_model_at_end"] = training.load_best_model_at_end
        training.output_dir = str(self.folder)
        training.eval_on_start = has_scores and self.checkpoint is None
        if training.activation_checkpointing:
            checkpoint_gradients(model)
        sampler = SimilarLengthSampler(lengths, args.per_device_train_batch_size,
                                       args.gradient_accumulation_steps, self.num_processes,
                                       self.rank, args.seed)
        patience = args.early_stopping_patience
        trainer = ExactTrainer(model=model, args=training, report_to=args.report_to, processes=self,
                               sampler=sampler, score=score, run_state=self.state,
                               stop_signal=StopSignal(), tokenizer=tokenizer,
                               callbacks=[EarlyStoppingCallback(patience)] if patience else None,
                               **how)
        self.say(f"Updates     {trainer.last_update:,}, {sampler.updates_in(0):,} an epoch, with "
                 f"{sampler.global_batch} windows each (processes {self.num_processes} x batch "
                 f"{sampler.batch_size} x accumulation {sampler.accumulation_steps}); "
                 f"{sampler.padding():.1%} of the tokens are padding")
        if self.is_main:
            clear_output(self.folder, self.state["step"], args.overwrite_output_dir)
        self.start_trackers(trainer.accelerator, self.state["run_id"], self.state["step"])
        results = run_trainer(trainer, self.checkpoint, self.say)
        if trainer.stopped:
            number, step = trainer.stop_signal.number, trainer.state.global_step
            end_stopped_run(trainer.accelerator, number, step, self.say)
        return trainer, results


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
