"""Flags of training and output that the loops have in common."""

from utils.arguments import ABOVE_0, AMOUNT, COUNT, add_flags, check_output_flags, number


def add_loop_flags(parser, task, examples):
    """Add the flags of training and output to a parser.

    Args:
        task: last part of the default --output_dir.
        examples: what a batch is made of, in words: "blocks".
    """
    add_flags(
        parser.add_argument_group("training"),
        ("do_train", bool,
         "train, and evaluate where there are data for it; without any --do_ flag, all that the "
         "data allow"),
        ("do_eval", bool, "evaluate"),
        ("do_predict", bool, "score, or judge, the test data"),
        ("prepare_only", bool, "prepare and cache the data, without a model, and end"),
        ("per_device_train_batch_size", COUNT, 16, f"{examples} per process and pass"),
        ("per_device_eval_batch_size", COUNT, 16, "the same in evaluation"),
        ("gradient_accumulation_steps", COUNT, 1, "passes per update"),
        ("learning_rate", AMOUNT, 5e-5, "peak, for AdamW"),
        ("weight_decay", AMOUNT, 0.0, "never on biases and LayerNorm"),
        ("max_grad_norm", AMOUNT, 1.0, "to clip at; 0 does not clip"),
        ("num_train_epochs", ABOVE_0, 3.0, "passes over the data"),
        ("max_steps", int, -1, "updates, instead of epochs where above 0"),
        ("lr_scheduler_type", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
                               "constant_with_warmup", "inverse_sqrt"],
         "linear", "course of the learning rate"),
        ("warmup_steps", AMOUNT, 0, "updates, or below 1 a share of all"),
        ("mixed_precision", ["auto", "no", "bf16", "fp16"], "auto",
         "auto: as the launcher says, else bf16 where the hardware computes it natively; "
         "no: float32"),
        ("gradient_checkpointing", bool, "less memory, more time"),
        ("dataloader_num_workers", number(int, 0), 0, "data workers per process"),
        ("cpu_threads", COUNT,
         "torch threads per process (default: physical cores / processes)"),
        ("seed", number(int, 0, 2**32 - 1), 42, "of weights, order, pairs, masks and dropout"),
    )
    add_flags(
        parser.add_argument_group("output"),
        ("output_dir", str, f"outputs/{task}", "folder for all that a run leaves behind"),
        ("overwrite_output_dir", bool,
         "train although a model or checkpoints lie there, and replace them"),
        ("eval_strategy", ["no", "steps", "epoch"], "epoch", "when to evaluate"),
        ("eval_steps", ABOVE_0,
         "updates, or below 1 a share of all (default: as --logging_steps)"),
        ("save_strategy", ["no", "steps", "epoch"], "epoch", "when to save"),
        ("save_steps", ABOVE_0, 500, "updates, or below 1 a share of all"),
        ("logging_steps", ABOVE_0, 10, "updates between two lines of the log, or below 1 a share"),
        ("save_total_limit", COUNT, 2, "checkpoints that are kept"),
        ("load_best_model_at_end", bool, "keep the model with the lowest eval_loss"),
        ("report_to", [str], ["none"], "trackers: none, wandb, trackio, tensorboard"),
        ("run_name", str, "name in the trackers (default: --output_dir)"),
        ("push_to_hub", bool, "upload the model to the Hub at the end"),
        ("hub_model_id", str,
         "repository to push to (default: the last part of --output_dir)"),
    )
    parser.add_argument("--resume_from_checkpoint", nargs="?", const="latest",
                        metavar="latest|PATH",
                        help="go on from a checkpoint; latest: the newest whole one in "
                        "--output_dir")


def check_loop_flags(args, parser):
    """Find settings that do not fit each other, and fill in --eval_steps."""
    check_output_flags(args, parser)
    if args.push_to_hub and (args.do_eval or args.do_predict) and not args.do_train:
        parser.error("--push_to_hub uploads what a training leaves; for a model that lies in a "
                     "folder: hf upload NAME/MODEL FOLDER")
    args.eval_steps = args.eval_steps or args.logging_steps
    fits = args.eval_strategy == args.save_strategy != "no"
    if args.save_strategy == "steps":
        fits = fits and round(args.save_steps / args.eval_steps, 6) % 1 == 0
    if args.load_best_model_at_end and not fits:
        parser.error("--load_best_model_at_end needs scores of every model that is saved: give "
                     "--save_strategy and --eval_strategy the same value, and --save_steps a "
                     "multiple of --eval_steps")
