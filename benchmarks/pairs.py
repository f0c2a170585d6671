"""Time the making of a batch of sentence pairs: run_nsp.py and run_pretraining.py beside the stock way.

    python -m benchmarks.pairs --data FOLDER --pairs 5

Ours makes pairs of integers; the stock way draws them as text and tokenizes each pair anew. Prints milliseconds a batch
of 16 pairs of up to 128 tokens, and what share that is of an update of run_pretraining.py's model with this batch.
"""

import random
import statistics
import time
from itertools import islice

import datasets
import sentencex
import torch
from transformers import AutoModelForPreTraining, AutoTokenizer, DataCollatorForLanguageModeling

import run_pretraining
from benchmarks.harness import Scratch, describe_machine, parse_args, parser_of, print_table, take_turns, write_text

BATCH, LENGTH, BATCHES = 16, 128, 50


def our_batches(model, text, scratch, unit):
    """Batches as run_pretraining.py makes them, for ever."""
    args = run_pretraining.parse_args(
        ["--model", model, "--train_file", str(text), "--validation_split_percentage", "0", "--pair_unit", unit,
         "--max_seq_length", str(LENGTH), "--document_separator", "line", "--output_dir", str(scratch)]
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    documents, _, _ = run_pretraining.prepare_data(args, tokenizer, ["train"], lambda *lines: None)["train"]
    collator = run_pretraining.make_collator(args, tokenizer, documents, "train")
    order = list(range(collator.count(0)))
    random.Random(0).shuffle(order)
    for start in range(0, len(order) - BATCH, BATCH):
        yield collator(order[start : start + BATCH])


def stock_batches(model, paragraphs):
    """Pairs of sentences drawn as text, tokenized pair by pair as they are drawn, and masked by the library."""
    tokenizer, rng = AutoTokenizer.from_pretrained(model), random.Random(0)
    collator = DataCollatorForLanguageModeling(tokenizer)
    documents = [sentences for text in paragraphs if len(sentences := sentencex.segment("en", text)) > 1]
    while True:
        rows = []
        for _ in range(BATCH):
            document = rng.choice(documents)
            at, label = rng.randrange(len(document) - 1), rng.randrange(2)
            other = rng.choice(rng.choice(documents)) if label else document[at + 1]
            row = tokenizer(document[at], other, truncation=True, max_length=LENGTH, return_special_tokens_mask=True)
            rows.append({**row, "next_sentence_label": label})
        yield collator(rows)


def milliseconds(batches):
    """Milliseconds a batch, over so many of them; the first is not counted."""
    next(batches)
    begun = time.perf_counter()
    made = sum(1 for _ in islice(batches, BATCHES))
    return (time.perf_counter() - begun) * 1000 / made


def update_milliseconds(model_name, batch):
    """Median milliseconds of an update with a batch: forward, backward and AdamW, as run_pretraining.py does them."""
    run_pretraining.set_cpu_threads(None, 1)
    run_pretraining.keep_freed_memory()
    model = AutoModelForPreTraining.from_pretrained(model_name).train()
    optimizer, taken = run_pretraining.build_optimizer(model, 5e-5, 0.0), []
    native = run_pretraining.pick_precision("auto", "no", "cpu") == "bf16"
    for _ in range(8):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            losses, _, _ = run_pretraining.losses_of(model, batch)
        losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken[2:])


def main(argv=None):
    args = parse_args(parser_of(__doc__), argv)
    with Scratch() as scratch:
        datasets.config.HF_DATASETS_CACHE = scratch / "datasets"
        text = scratch / "text.txt"
        write_text(text, args.paragraphs, 4)
        ways = {
            "segments": lambda _: milliseconds(our_batches(args.model, text, scratch, "segment")),
            "sentences": lambda _: milliseconds(our_batches(args.model, text, scratch, "sentence")),
            "stock, sentences": lambda _: milliseconds(stock_batches(args.model, args.paragraphs)),
        }
        results = take_turns(ways, args.pairs)
        units = {"segments": "segment", "sentences": "sentence"}
        update = {name: update_milliseconds(args.model, next(our_batches(args.model, text, scratch, units[name])))
                  for name in units}  # fmt: skip
    medians = {name: statistics.median(some) for name, some in results.items()}
    print(f"Making {BATCH} pairs of up to {LENGTH} tokens; medians of {args.pairs} turns of {BATCHES} batches; "
          f"{describe_machine()}")  # fmt: skip
    shares = [f"{medians[name] / update[name.removeprefix('stock, ')]:.1%}" for name in medians]
    print_table(
        ("", *medians),
        [("a batch, ms", *(f"{value:.2f}" for value in medians.values())), ("share of an update", *shares)],
    )


if __name__ == "__main__":
    main()
