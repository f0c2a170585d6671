"""Train run_nsp.py on books, and say how well it tells the next sentence in chapters that it has not seen.

    python -m benchmarks.nsp_books --data FOLDER_OF_BOOKS
    python -m benchmarks.nsp_books --data FOLDER_OF_BOOKS --pretraining --num_train_epochs 2

Each .txt file is a book, a paragraph a line, a blank line between two chapters. The last tenth of the chapters of each
is held out. A random B can come from another chapter of the same book, with the same people in it, which is harder than
one of another book: so the accuracy for those is given apart, too. Prints the command, the accuracy over both classes,
how likely chance alone would be to reach it (binomial test), and seconds. With --pretraining, run_pretraining.py learns
the same pairs and masked words at once; a pair counts for more then, as a head for words that starts at random has much
the larger gradient.
"""

import json
import math
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import AutoModelForNextSentencePrediction, AutoTokenizer

import run_nsp
from benchmarks.harness import Scratch, describe_machine, launch, parse_args, parser_of, print_table


def read_chapters(folder):
    """Read the chapters of each book: dict of name to a list of texts."""
    books = {}
    for path in sorted(Path(folder).glob("*.txt")):
        chapters = [chapter.strip() for chapter in path.read_text(encoding="utf-8").split("\n\n")]
        books[path.stem] = [chapter for chapter in chapters if chapter]
    return books


def chance_of(hits, number):
    """Chance that so many hits or more of a number come by tossing a coin: binomial, one-sided."""
    logs = [math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1) - number * math.log(2)
            for k in range(hits, number + 1)]  # fmt: skip
    top = max(logs)
    return math.exp(top) * sum(math.exp(value - top) for value in logs)


@torch.no_grad()
def sentence_of_b(collator, number):
    """Number of the sentence that is B in a pair of the first epoch, drawn as the collator draws it."""
    start, middle, _, label = collator.plan(0)[number].tolist()
    drawn = collator.documents.draw_others(start, run_nsp.rng_of(2, collator.seed, 0, number))
    return int(drawn) if label else middle


def judge_pairs(model, collator):
    """Judge each pair of a collator: bool arrays of hits and of labels that are 1, and the number of B's sentence."""
    hits, labels, others = [], [], []
    for start in range(0, collator.count(0), 32):
        numbers = list(range(start, min(start + 32, collator.count(0))))
        batch = collator(numbers)
        verdicts = run_nsp.score_pairs(model, batch).argmax(dim=-1)
        hits += (verdicts == batch["next_sentence_label"]).tolist()
        labels += batch["next_sentence_label"].bool().tolist()
        others += [sentence_of_b(collator, number) for number in numbers]
    return np.array(hits), np.array(labels), np.array(others)


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--books", type=int, default=4, help="take so many of the largest")
    parser.add_argument("--num_train_epochs", type=float, default=3)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--pretraining", action="store_true", help="run_pretraining.py instead of run_nsp.py")
    args = parse_args(parser, argv)
    if not args.data:
        parser.error("--data is missing: give a folder of books")
    books = sorted(read_chapters(args.data).items(), key=lambda book: -sum(map(len, book[1])))[: args.books]
    held_out = {name: max(1, len(chapters) // 10) for name, chapters in books}
    flags = ["--max_seq_length", 64, "--num_train_epochs", args.num_train_epochs, "--learning_rate", args.learning_rate,
             "--warmup_steps", 0.1, "--save_strategy", "no"]  # fmt: skip
    script, more = "run_nsp.py", []
    if args.pretraining:
        script, more = "run_pretraining.py", ["--pair_unit", "sentence", "--nsp_weight", 20]
    with Scratch() as scratch:
        datasets.config.HF_DATASETS_CACHE = scratch / "datasets"  # of what this process prepares
        train = [chapter for name, chapters in books for chapter in chapters[: -held_out[name]]]
        validation = [chapter for name, chapters in books for chapter in chapters[-held_out[name] :]]
        for name, chapters in (("train", train), ("validation", validation)):
            (scratch / f"{name}.txt").write_text("\n\n".join(chapters) + "\n", encoding="utf-8")
        files = ["--train_file", scratch / "train.txt", "--validation_file", scratch / "validation.txt"]
        done = launch(script, "--model", args.model, *files, *flags, *more, "--output_dir", scratch / "out",
                      home=scratch / "home")  # fmt: skip
        results = json.loads((scratch / "out" / "all_results.json").read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(scratch / "out")
        settings = run_nsp.parse_args([*map(str, [*files, *flags]), "--do_eval"])
        prepared = run_nsp.prepare_data(settings, tokenizer, ["validation"], lambda *lines: None)
        documents, _, _ = prepared["validation"]
        collator = run_nsp.make_collator(settings, tokenizer, documents, "validation")
        model = AutoModelForNextSentencePrediction.from_pretrained(scratch / "out").eval()
        hits, negative, others = judge_pairs(model, collator)
        plan = collator.plan(0)
    if len(documents) != sum(held_out.values()):
        raise SystemExit(f"expected {sum(held_out.values())} chapters, found {len(documents)} of two sentences or more")
    of_chapter = np.repeat(np.arange(len(books)), [held_out[name] for name, _ in books])  # book of each chapter
    book = partial(np.searchsorted, documents.starts, side="right")
    same = of_chapter[book(plan[:, 0]) - 1] == of_chapter[book(others) - 1]
    print(f"accelerate launch {script} --model MODEL --train_file train.txt --validation_file validation.txt "
          f"{' '.join(map(str, flags + more))}\n{describe_machine()}")  # fmt: skip
    names = ("perplexity", "eval_nsp_loss", "eval_nsp_accuracy") if more else ("eval_loss", "eval_accuracy")
    print(f"whole command {done.seconds:.0f} s; " + "; ".join(
        f"{name} {results[f'initial_{name}']:.4f} before, {results[name]:.4f} after" for name in names))  # fmt: skip
    rows = []
    for name, chosen in (
        ("all", np.ones_like(hits, dtype=bool)),
        ("the true next sentence", ~negative),
        ("random B of the same book", negative & same),
        ("random B of another book", negative & ~same),
    ):
        number, right = int(chosen.sum()), int(hits[chosen].sum())
        if number:  # of one class alone, chance says nothing: a model may favour it
            chance = f"{chance_of(right, number):.1e}" if chosen.all() else "-"
            rows.append((name, f"{number:,}", f"{right / number:.3f}", chance))
    print_table(("held-out pairs", "number", "accuracy", "by chance"), rows)


if __name__ == "__main__":
    main()
