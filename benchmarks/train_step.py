"""Time an update of masked language modelling at 16 x 128 tokens: run_mlm.py beside the stock way.

    python -m benchmarks.train_step --data FOLDER --pairs 5

Each way is a whole command that trains for --updates updates; the step is the median time between two of them. Prints
tokens per second, the share of padding, floating-point operations per update, how much of the speed of this machine's
matrix multiplication that is, peak memory, and the time from the start of the command to the end of its first update,
with the data in the cache.
"""

import itertools
import statistics
import time

import datasets
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling

import run_mlm
from benchmarks import stock_mlm
from benchmarks.harness import (
    Scratch,
    describe_machine,
    launch,
    median_ratio,
    parse_args,
    parser_of,
    print_table,
    take_turns,
    write_text,
)

BATCH, LENGTH = 16, 128


def matmul_speed(dtype, threads, seconds=1.0):
    """Measure multiplications of two 2048 x 2048 matrices: floating-point operations per second, at their best."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    torch.set_num_threads(before)
    return 2 * 2048**3 / best


def count_work(model_name, text):
    """Count what an update does, by the scripts' own functions: dict of way to (operations, share of padding)."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    # With attention written out: the counter does not know the fused one of the CPU.
    model = AutoModelForMaskedLM.from_pretrained(model_name, attn_implementation="eager")
    args = run_mlm.parse_args(["--model", model_name, "--train_file", str(text), "--validation_split_percentage", "0"])
    examples, _ = run_mlm.prepare_data(args, tokenizer, lambda *lines: None)["train"]
    collator = run_mlm.MaskingCollator(run_mlm.Masker(tokenizer, args, seed=0), tokenizer.pad_token_id)
    batches = {
        "run_mlm.py": DataLoader(examples, BATCH, collate_fn=collator),
        "stock": DataLoader(
            stock_mlm.prepare(tokenizer, {"train": str(text)}, LENGTH)["train"],
            BATCH,
            collate_fn=DataCollatorForLanguageModeling(tokenizer),
        ),
    }
    work = {}
    for way, loader in batches.items():
        batch = next(iter(loader))
        with FlopCounterMode(display=False) as counter:
            if way == "stock":
                model(**batch).loss.backward()
            else:
                logits, _ = run_mlm.masked_outputs(model, batch)
                torch.nn.functional.cross_entropy(logits, batch["targets"]).backward()
        seen = padding = 0
        for batch in loader:
            seen += batch["input_ids"].numel()
            padding += (batch["input_ids"] == tokenizer.pad_token_id).sum().item()
        work[way] = (counter.get_total_flops(), padding / seen)
    return work


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--updates", type=int, default=20, help="updates of each command; the first is not counted")
    args = parse_args(parser, argv)
    threads = torch.cpu.get_capabilities().get("num_physical_cores") or torch.get_num_threads()
    native = run_mlm.pick_precision("auto", "no", "cpu")
    with Scratch() as scratch:
        datasets.config.HF_DATASETS_CACHE = scratch / "datasets"  # of what this process prepares
        text = scratch / "text.txt"
        write_text(text, args.paragraphs, args.updates * BATCH * LENGTH * 6 / 1e6)  # some 5 letters a token
        common = ["--model", args.model, "--train_file", text, "--max_steps", args.updates]

        def ours(pair):
            return launch("run_mlm.py", *common, "--validation_split_percentage", 0, "--save_strategy", "no",
                          "--logging_steps", 1, "--output_dir", scratch / f"ours-{pair}", "--overwrite_output_dir",
                          home=scratch / "home")  # fmt: skip

        def stock(_, *more, threads=None):
            return launch("benchmarks/stock_mlm.py", *common, "--output_dir", scratch / "stock", *more,
                          home=scratch / "home", threads=threads)  # fmt: skip

        ways = {
            "run_mlm.py": ours,
            "stock": stock,
            f"stock, {threads} threads": lambda pair: stock(pair, threads=threads),
            "stock --bf16": lambda pair: stock(pair, "--bf16"),
            f"stock --bf16, {threads} threads": lambda pair: stock(pair, "--bf16", threads=threads),
        }
        if native != "bf16":
            ways = {name: run for name, run in ways.items() if "bf16" not in name}
        ours(0), stock(0)  # fills the caches
        results = take_turns(ways, args.pairs)
        work = count_work(args.model, text)
    speed = matmul_speed(torch.bfloat16 if native == "bf16" else torch.float32, threads)

    print(f"An update of {BATCH} x {LENGTH} tokens; medians of {args.pairs} turns of {args.updates} updates; "
          f"{describe_machine()}; torch multiplies matrices at {speed / 1e9:.0f} GFLOP/s in {native} on {threads} "
          "threads")  # fmt: skip

    def step(done):
        at = done.find("Update ")
        return statistics.median(b - a for a, b in itertools.pairwise(at))

    def kind(name):
        return "stock" if name.startswith("stock") else name

    steps = {name: [step(done) for done in runs] for name, runs in results.items()}
    start = {name: [done.find("Update ")[0] for done in runs] for name, runs in results.items()}
    median = {name: statistics.median(some) for name, some in steps.items()}
    rows = [
        ("one update, s", *(f"{median[name]:.2f}" for name in results)),
        ("times as long as run_mlm.py", *(f"{median_ratio(some, steps['run_mlm.py']):.2f}" for some in steps.values())),
        ("tokens a second", *(f"{BATCH * LENGTH / median[name]:,.0f}" for name in results)),
        ("share of padding", *(f"{work[kind(name)][1]:.1%}" for name in results)),
        ("GFLOP an update", *(f"{work[kind(name)][0] / 1e9:.1f}" for name in results)),
        ("share of the matrix speed", *(f"{work[kind(name)][0] / median[name] / speed:.0%}" for name in results)),
        ("command to first update done, s", *(f"{statistics.median(some):.1f}" for some in start.values())),
        *((f"peak {what}, MB", *(f"{statistics.median(of(done) for done in runs):,.0f}" for runs in results.values()))
          for what, of in (("RssAnon", lambda done: done.rss_anon), ("RSS", lambda done: done.rss))),
    ]  # fmt: skip
    print_table(("", *results), rows)


if __name__ == "__main__":
    main()
