"""What stands around a model that a Trainer fine-tunes: its run, its head and its dropout."""

import copy
import json
import os
from functools import partial
from pathlib import Path

import datasets
import torch
import torch.distributed
import transformers
from accelerate import Accelerator
from transformers import EarlyStoppingCallback

from utils.devices import Processes, choose_device
from utils.models import checkpoint_gradients
from utils.output import clear_output
from utils.results import claim_repository, save_model, start_trackers, upload, write_model_card, write_results
from utils.signals import StopSignal, end_stopped_run
from utils.similar_lengths import SimilarLengthSampler
from utils.trainer import ExactTrainer, make_training_arguments, run_trainer, shown_settings
from utils.writing import write_json


def start_quietly():
    """Quieten the libraries, and make a function that prints lines, on the first process alone."""
    # What they say of heads and lengths, the script says.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    if int(os.environ.get("RANK", 0)) == 0:
        return partial(print, sep="\n", flush=True)
    datasets.disable_progress_bars()
    return lambda *_: None


def write_list(output_dir, file, rows, words, say):
    """Write what is wrong with the data to a file, a row each, and say how much it is.

    Args:
        rows: values for JSON; without any, there is no file.
        words: what they are.
    """
    if int(os.environ.get("RANK", 0)) == 0:
        path = Path(output_dir, file)
        path.unlink(missing_ok=True)  # that of an earlier run
        if rows:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character
            say(f"  Careful:  {len(rows):,} {words}; they are listed in {path}")


class Run(Processes):
    """A run that fine-tunes a model, or only uses one: its processes, and what it goes on from.

    Args:
        task: what the script does, in a word: "ner".
        kind: its subclass of TrainingArguments.
        args: Namespace of the flags.
        has_scores: the model is scored while it is trained.
        output: (checkpoint, state), as open_output gives them.
        say: called with lines for the user.
        hidden: names of flags that the model card does not show.

    Attributes:
        training: the TrainingArguments.
        device: where tensors go.
        folder: where a training leaves its checkpoints and its log.
        checkpoint: folder of the one to go on from, or None.
        state: what a checkpoint carries besides the weights; "note" says what of the model that the
            run began with started at random.
        settings: what the model card shows.
    """

    def __init__(self, task, kind, args, has_scores, output, say, *, hidden=()):
        self.task, self.args, self.say = task, args, say
        self.folder, self.repository = args.output_dir, args.hub_model_id
        self.checkpoint, self.state = output
        on_cpu, self.precision, self.threads = choose_device(args.mixed_precision, args.cpu_threads)
        training = make_training_arguments(kind, args, on_cpu, self.precision, has_scores)
        super().__init__(training.world_size, training.process_index, training.local_process_index)
        self.training, self.device = training, training.device
        shown = shown_settings(args, kind)
        shown["load_best_model_at_end"] = training.load_best_model_at_end
        self.settings = {flag: value for flag, value in shown.items() if flag not in hidden}
        if args.push_to_hub and args.do_train and self.rank == 0:
            self.repository = claim_repository(args.hub_model_id, args.output_dir)

    def describe(self):
        """Say what the run computes on."""
        several = "es" * (self.num_processes > 1)
        self.say(f"Running on  {self.device.type}, {self.num_processes} process{several}, "
                 f"{self.threads} CPU threads each, {self.precision.replace('no', 'float32')}")

    def begin(self, model, note):
        """Say what a model is, and quicken its dropout. note: what of it starts at random."""
        name = self.checkpoint or self.args.model
        self.say(f"Model       {name}, {model.num_parameters():,} weights; {note}")
        self.state["note"] = self.state["note"] or note
        quicken_dropout(model, self.training.use_cpu)

    def start_trackers(self, accelerator):
        """Start the trackers of the run's own accelerator."""
        settings = self.settings | {"output_dir": str(self.folder)}
        start_trackers(accelerator, self.task, settings, self.state["run_id"], self.state["step"])

    def use(self, model, note):
        """Make a model ready that is not trained: (accelerator, model). note: as for begin."""
        self.begin(model, note)  # nothing is dropped, but it computes as in a training
        accelerator = Accelerator(cpu=self.training.use_cpu,
                                  mixed_precision=self.training.mixed_precision,
                                  log_with=self.args.report_to or None, project_dir=self.folder)
        self.start_trackers(accelerator)
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
        args, training = self.args, copy.copy(self.training)
        training.output_dir = str(self.folder)
        training.eval_on_start = score is not None and self.checkpoint is None
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
        if self.rank == 0:
            clear_output(self.folder, self.state["step"], args.overwrite_output_dir)
        self.start_trackers(trainer.accelerator)
        results = run_trainer(trainer, self.checkpoint, self.say)
        if trainer.stopped:
            number, step = trainer.stop_signal.number, trainer.state.global_step
            end_stopped_run(trainer.accelerator, number, step, self.say)
        return trainer, results

    def leave(self, model, tokenizer, results, *, task, tag, data, tables=()):
        """Leave behind what the run has made: results, and of a training the model and its card.

        Args:
            model: not wrapped.
            task, tag, data, tables: as for write_model_card.
        """
        args = self.args
        if args.do_train:
            save_model(args.output_dir, model, tokenizer)
            write_model_card(args.output_dir, args.model, task, tag=tag, data=data, results=results,
                             settings=self.settings, tables=tables)
        elif any(name.startswith("eval_") for name in results):
            forget_initial_scores(Path(args.output_dir, "all_results.json"))
        is_same = Path(args.model).resolve() == Path(args.output_dir).resolve()
        write_results(args.output_dir, results, is_same or args.resume_from_checkpoint)
        if args.push_to_hub:
            upload(args.output_dir, self.repository)


def forget_initial_scores(path):
    """Take scores of before a training out of a file of results: newer may be of other data."""
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: value for name, value in results.items() if not name.startswith("initial_")}
        write_json(path, kept)


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
