"""Train on questions with run_qa.py and the stock way: speed, padding, F1; and time the search for answers.

    python -m benchmarks.qa --data FOLDER                  # speed on 300 questions, and the search over 10,000 windows
    python -m benchmarks.qa --data FOLDER --full           # besides, F1 after an epoch of all questions

FOLDER holds train.json and dev.json in SQuAD's layout. Both train with batches of 12, in turn, each from `accelerate
launch` with the threads of all cores; the time is that of the training alone. The stock way trains in float32, every
window padded to 384 tokens. Answers are searched for over the same random scores by run_qa.py's own two functions: the
one that its evaluation uses, and the plain search, which must find the same.
"""

import json
import random
import re
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import run_qa
from benchmarks.harness import Scratch, describe_machine, launch, median_ratio, parser_of, print_table, take_turns
from tools.offline_model import offline_model_path


def write_sample(path, source, questions):
    """Write so many articles of a SQuAD file, drawn with seed 0; all of them where it is None."""
    content = json.loads(Path(source).read_text(encoding="utf-8"))
    if questions:
        content["data"] = random.Random(0).sample(content["data"], questions)
    path.write_text(json.dumps(content), encoding="utf-8")
    return sum(len(paragraph["qas"]) for article in content["data"] for paragraph in article["paragraphs"])


def search_both(windows, n_best=20, max_answer_length=30):
    """Search so many windows for answers, both ways: (seconds of the one, of the other). Ends where they differ."""
    rng = np.random.default_rng(0)
    questions, tokens = np.sort(rng.integers(windows // 4, size=windows)), 369  # some four windows a question
    questions = np.unique(questions, return_inverse=True)[1]
    drawn = rng.normal(size=(2, windows, tokens)).astype(np.float32)
    logits = dict(zip(("start", "end"), torch.from_numpy(drawn), strict=True))
    begun = time.perf_counter()
    top, allowed = {}, torch.ones((windows, tokens), dtype=torch.bool)
    for name, shift in (("start", 0), ("end", 4)):  # five characters a token
        parts = [run_qa.keep_best(logits[name][at : at + 1000], allowed[at : at + 1000], n_best)
                 for at in range(0, windows, 1000)]  # fmt: skip
        top[f"{name}_logit"], top[name] = (np.concatenate(part) for part in zip(*parts, strict=True))
        top[f"{name}_char"] = top[name] * 5 + shift
    found = run_qa.choose_spans(top, questions, n_best, max_answer_length)
    fast = time.perf_counter() - begun
    of_question = [[] for _ in range(questions[-1] + 1)]
    for question, a, b in zip(questions.tolist(), logits["start"].tolist(), logits["end"].tolist(), strict=True):
        of_question[question].append(list(zip(a, b, range(0, 5 * tokens, 5), range(4, 5 * tokens, 5), strict=True)))
    begun = time.perf_counter()
    plain = [run_qa.search_spans(some, n_best, max_answer_length) for some in of_question]
    slow = time.perf_counter() - begun
    mine = list(zip(*(found[name].tolist() for name in ("question", "start", "end", "score")), strict=True))
    theirs = [(n, span["start"], span["end"], span["score"]) for n, spans in enumerate(plain) for span in spans]
    if mine != theirs:
        raise SystemExit("the two searches found different answers")
    return fast, slow


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of train.json and dev.json")
    parser.add_argument("--model", help="Hub name or folder (default: the offline model of requirements-dev.txt)")
    parser.add_argument("--pairs", type=int, default=3, help="how often each way trains on --questions, in turn")
    parser.add_argument("--questions", type=int, default=300, help="to train on, for the speed")
    parser.add_argument("--windows", type=int, default=10_000, help="to search for answers")
    parser.add_argument("--full", action="store_true", help="train an epoch of all questions, too, once")
    args = parser.parse_args(argv)
    model, threads = args.model or str(offline_model_path()), torch.cpu.get_capabilities().get("num_physical_cores")
    print(describe_machine())
    times = [search_both(args.windows) for _ in range(args.pairs)]
    fast, slow = (statistics.median(part) for part in zip(*times, strict=True))
    ratio = median_ratio(*(list(part) for part in zip(*[pair[::-1] for pair in times], strict=True)))
    print_table((f"search of {args.windows:,} windows", "run_qa.py", "plain search", "plain / run_qa.py"),
                [("seconds", f"{fast:.3f}", f"{slow:.2f}", f"{ratio:.1f}")])  # fmt: skip
    with Scratch() as scratch:

        def way(script, train, *more):
            def run(pair):
                out = scratch / f"{Path(script).stem}-{train.stem}-{pair}"
                flags = ["--model", model, "--train_file", train, "--validation_file", scratch / "dev.json",
                         "--seed", 42, "--output_dir", out]  # fmt: skip
                done = launch(script, *flags, *more, home=scratch / "home", threads=threads, watch=False)
                results = json.loads((out / "all_results.json").read_text(encoding="utf-8"))
                padded = next((line for line in done.lines if "are padding" in line), None)
                if padded:
                    results["padding"] = float(re.search(r"([\d.]+)% of the tokens", padded)[1]) / 100
                return results

            return run

        for questions, pairs in ((args.questions, args.pairs), *([(None, 1)] if args.full else [])):
            train = scratch / f"train-{questions}.json"
            count = write_sample(train, Path(args.data, "train.json"), questions)
            # For the speed, a few answers are enough to see that there are any.
            write_sample(scratch / "dev.json", Path(args.data, "dev.json"), 20 if questions else None)
            ours = ["--per_device_train_batch_size", 12, "--num_train_epochs", 1, "--learning_rate", 5e-5,
                    "--save_strategy", "no", "--load_best_model_at_end", "false"]  # fmt: skip
            found = take_turns({"run_qa.py": way("run_qa.py", train, *ours),
                                "stock": way("benchmarks/stock_qa.py", train)}, pairs)  # fmt: skip
            rates = {name: [count / row["train_runtime"] for row in rows] for name, rows in found.items()}
            rows = [("questions a second", *(f"{statistics.median(rates[name]):.2f}" for name in found),
                     f"{median_ratio(rates['run_qa.py'], rates['stock']):.2f}")]  # fmt: skip
            scores = [] if questions else [("exact match on dev", "eval_exact_match", "{:.1f}"),
                                           ("F1 on dev", "eval_f1", "{:.1f}")]  # fmt: skip
            for title, key, form in (("padding among the tokens", "padding", "{:.1%}"), *scores):
                values = [form.format(statistics.median(row[key] for row in some)) for some in found.values()]
                rows.append((title, *values, "-"))
            print_table((f"an epoch of {count:,} questions", *found, "run_qa.py / stock"), rows)


if __name__ == "__main__":
    main()
