"""Time whole training commands to the same perplexity: run_mlm.py beside the stock way.

    python -m benchmarks.time_to_perplexity --data FOLDER --pairs 5

The stock way trains for --updates updates of 16 x 128 tokens, with its defaults. run_mlm.py trains with the same
settings and seed, and where it ends above the stock way's loss, anew with a tenth more updates, until it does not: the
time is that of the run that got there, from the start of its command to its end. Both evaluate at the end, run_mlm.py
also at the start, and neither saves checkpoints; both models are then scored by one evaluation, `run_mlm.py --do_eval`,
on paragraphs that neither has trained on.
"""

import json
import statistics

from benchmarks.harness import (
    Scratch,
    describe_machine,
    launch,
    median_ratio,
    parse_args,
    parser_of,
    print_table,
    take_turns,
)


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--updates", type=int, default=120, help="updates of the stock way")
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="of both")
    args = parse_args(parser, argv)
    with Scratch() as scratch:
        held_out, train = scratch / "validation.txt", scratch / "train.txt"
        for path, paragraphs in (
            (held_out, args.paragraphs[::40]),
            (train, [text for n, text in enumerate(args.paragraphs) if n % 40]),
        ):
            path.write_text("\n".join(paragraphs) + "\n", encoding="utf-8")
        files = ["--train_file", train, "--validation_file", held_out, "--learning_rate", args.learning_rate]
        targets = {}

        def score(model):
            """Score a model, whichever way made it: eval_loss in nats per masked token."""
            launch("run_mlm.py", "--model", model, "--do_eval", "--validation_file", held_out, "--output_dir",
                   scratch / "score", "--mixed_precision", "no", home=scratch / "home")  # fmt: skip
            return json.loads((scratch / "score" / "all_results.json").read_text(encoding="utf-8"))["eval_loss"]

        def stock(pair):
            done = launch("benchmarks/stock_mlm.py", "--model", args.model, *files, "--max_steps", args.updates,
                          "--seed", pair, "--output_dir", scratch / "stock", home=scratch / "home")  # fmt: skip
            targets[pair] = score(scratch / "stock")
            return done.seconds, targets[pair], args.updates

        def ours(pair):
            updates, target = args.updates, targets[pair]
            while True:
                flags = ["--max_steps", updates, "--seed", pair, "--output_dir", scratch / "ours"]
                done = launch("run_mlm.py", "--model", args.model, *files, *flags, "--overwrite_output_dir",
                              "--save_strategy", "no", home=scratch / "home")  # fmt: skip
                loss = score(scratch / "ours")
                if loss <= target:
                    return done.seconds, loss, updates
                updates = round(updates * 1.1) + 1

        ways = {"stock": stock, "run_mlm.py": ours}
        score(args.model)  # fills the caches
        results = take_turns(ways, args.pairs, always_in_this_order=True)
        before = score(args.model)
    print(f"Whole commands to the stock way's final loss; medians of {args.pairs} pairs; {describe_machine()}")
    seconds, losses, updates = (
        {name: [run[i] for run in results[name]] for name in ("run_mlm.py", "stock")} for i in range(3)
    )
    rows = [
        ("whole command, s", *(f"{statistics.median(some):.1f}" for some in seconds.values()),
         f"{median_ratio(seconds['stock'], seconds['run_mlm.py']):.2f}"),
        (f"eval_loss (before: {before:.4f})", *(f"{statistics.median(some):.4f}" for some in losses.values()), "-"),
        ("updates", *(f"{statistics.median(some):g}" for some in updates.values()), "-"),
    ]  # fmt: skip
    print_table(("", *seconds, "stock / run_mlm.py"), rows)


if __name__ == "__main__":
    main()
