"""Time the preparation of text for masked language modelling: run_mlm.py beside the stock way.

    python -m benchmarks.prepare --data FOLDER --megabytes 61 --pairs 5

Both start from nothing in the cache each time, on the same text: the paragraphs of the folder, in another order each
time round. Prints the seconds of the preparation and of the whole command, and peak memory.
"""

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
    write_text,
)


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--megabytes", type=float, default=61, help="text to prepare, in 10^6 bytes")
    parser.add_argument("--without_stock", action="store_true", help="leave out the stock way, for a very large text")
    args = parse_args(parser, argv)
    with Scratch() as scratch:
        text = scratch / "text.txt"
        write_text(text, args.paragraphs, args.megabytes)
        flags = ["--model", args.model, "--train_file", text, "--prepare_only"]

        def prepare(script, *more):
            with Scratch() as home:
                return launch(script, *flags, *more, home=home)

        ways = {
            "run_mlm.py": lambda _: prepare("run_mlm.py", "--validation_split_percentage", 0),
            "stock": lambda _: prepare("benchmarks/stock_mlm.py"),
        }
        if args.without_stock:
            del ways["stock"]
        results = take_turns(ways, args.pairs)
    print(f"Preparing {args.megabytes:g} MB of text; medians of {args.pairs} pairs; {describe_machine()}")
    measures = {
        "preparation, s": lambda done: done.prepared_in(),
        "MB of text a second": lambda done: args.megabytes / done.prepared_in(),
        "whole command, s": lambda done: done.seconds,
        "peak RssAnon, MB": lambda done: done.rss_anon,
        "peak RSS, MB": lambda done: done.rss,
    }
    rows = []
    for measure, of in measures.items():
        values = {name: [of(done) for done in runs] for name, runs in results.items()}
        medians = [f"{statistics.median(some):.4g}" for some in values.values()]
        ratio = "-"
        if "stock" in values and "a second" not in measure:
            ratio = f"{median_ratio(values['stock'], values['run_mlm.py']):.2f}"
        rows.append((measure, *medians, ratio))
    print_table(("", *results, "stock / run_mlm.py"), rows)


if __name__ == "__main__":
    main()
