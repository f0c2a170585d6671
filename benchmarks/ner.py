"""Train on tagged sentences with run_ner.py and the stock way, seed after seed: time, F1 and padding of both.

    python -m benchmarks.ner --data FOLDER

FOLDER holds train.conll, dev.conll and test.conll: a word and its tag a line, a tab between them. Both train for three
epochs on batches of 16, in turn, each from `accelerate launch` with the threads of all cores; the time is that of the
training alone, without evaluation. The stock way trains in float32 on random batches. Also prints what the updates of
run_ner.py are spent on, by torch's profiler.
"""

import json
import re
import statistics
from pathlib import Path

import torch

import run_ner
from benchmarks.harness import Scratch, describe_machine, launch, median_ratio, parser_of, print_table, take_turns
from tools.offline_model import offline_model_path

PARTS = {  # what torch's operations are for
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "AdamW": ("aten::_fused_adamw_",),
    "conversion between float32 and bfloat16, and copies": ("aten::copy_",),
    "dropout": ("aten::bernoulli_", "aten::native_dropout"),
    "clearing, clipping and its norm": ("aten::fill_", "aten::zero_", "aten::linalg_vector_norm", "aten::mul_"),
}


def profile_updates(model, train_file, output_dir, updates=60):
    """Train in this process, and say what the time of torch's operations goes into: dict of part to its share."""
    flags = ["--model", model, "--train_file", train_file, "--validation_split_percentage", 0, "--max_steps", updates,
             "--save_strategy", "no", "--logging_steps", updates, "--output_dir", output_dir]  # fmt: skip
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        run_ner.main(list(map(str, flags)))
    spent = {row.key: row.self_cpu_time_total for row in found.key_averages() if row.key.startswith("aten::")}
    total = sum(spent.values())
    shares = {part: sum(spent.get(name, 0) for name in names) / total for part, names in PARTS.items()}
    return shares | {"all else (normalisation, activations, attention, adding up)": 1 - sum(shares.values())}


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of train.conll, dev.conll and test.conll")
    parser.add_argument("--model", help="Hub name or folder (default: the offline model of requirements-dev.txt)")
    parser.add_argument("--pairs", type=int, default=3, help="seeds, each of which both ways train with")
    parser.add_argument("--num_train_epochs", type=float, default=3)
    args = parser.parse_args(argv)
    model = args.model or str(offline_model_path())
    files = []
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        files += [f"--{split}_file", Path(args.data, f"{name}.conll")]
        if not files[-1].is_file():
            parser.error(f"--data {args.data}: there is no {name}.conll in it")
    threads = torch.cpu.get_capabilities().get("num_physical_cores")
    with Scratch() as scratch:

        def way(script, *more):
            def run(pair):
                flags = ["--model", model, *files, "--num_train_epochs", args.num_train_epochs, "--seed", 42 + pair]
                out = scratch / f"{Path(script).stem}-{pair}"
                flags += [*more, "--output_dir", out]
                done = launch(script, *flags, home=scratch / "home", threads=threads, watch=False)
                results = json.loads((out / "all_results.json").read_text(encoding="utf-8"))
                padded = next((line for line in done.lines if "are padding" in line), None)
                if padded:
                    results["padding"] = float(re.search(r"([\d.]+)% of the tokens", padded)[1]) / 100
                return results | {"command": done.seconds}

            return run

        ways = {"stock": way("benchmarks/stock_ner.py")}
        ours = ["--per_device_train_batch_size", 16, "--learning_rate", 5e-5, "--save_strategy", "no"]
        found = take_turns({"run_ner.py": way("run_ner.py", *ours), **ways}, args.pairs)
        shares = profile_updates(model, files[1], scratch / "profile")
    print(f"{describe_machine()}; medians of {args.pairs} pairs, F1 means of their seeds")
    rows = []
    for name, key, how, form in (
        ("training, s", "train_runtime", statistics.median, "{:.1f}"),
        ("whole command, s", "command", statistics.median, "{:.1f}"),
        ("padding among the tokens", "padding", statistics.mean, "{:.1%}"),
        ("f1 on dev", "eval_f1", statistics.mean, "{:.4f}"),
        ("f1 on test", "predict_f1", statistics.mean, "{:.4f}"),
    ):
        values = {way: [results[key] for results in found[way]] for way in found}
        ratio = f"{median_ratio(values['run_ner.py'], values['stock']):.0%}" if name.endswith(", s") else "-"
        rows.append((name, *(form.format(how(values[way])) for way in found), ratio))
    print_table(("", *found, "run_ner.py / stock"), rows)
    for name, results in found.items():
        print(name, "f1 on dev and test by seed:", ", ".join(
            f"{42 + n}: {row['eval_f1']:.4f} {row['predict_f1']:.4f}" for n, row in enumerate(results)))  # fmt: skip
    rows = [(name, f"{part:.0%}") for name, part in shares.items()]
    print_table(("an update of run_ner.py goes into", "share"), rows)


if __name__ == "__main__":
    main()
