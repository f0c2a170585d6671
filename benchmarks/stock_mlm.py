"""The stock way of masked language modelling, for the benchmarks to compare with: tokenizer, `map` over lists, Trainer.

    accelerate launch benchmarks/stock_mlm.py --model DIR --train_file a.txt --validation_file b.txt --output_dir OUT

What the library's own example does, in its order and with its functions: each line tokenized into Python lists, joined
and cut into blocks of max_seq_length, masked by DataCollatorForLanguageModeling, trained by Trainer with its defaults.
"""

import argparse
import itertools
import time

from datasets import load_dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class SayUpdates(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        print(f"Update {state.global_step}", flush=True)


def prepare(tokenizer, files, max_seq_length):
    """Tokenize text files, and cut them into blocks: a DatasetDict with the columns that the collator wants."""

    def tokenize(rows):
        return tokenizer(rows["text"], return_special_tokens_mask=True)

    def join_and_cut(rows):
        joined = {name: list(itertools.chain(*lists)) for name, lists in rows.items()}
        total = len(joined["input_ids"]) // max_seq_length * max_seq_length
        return {
            name: [tokens[start : start + max_seq_length] for start in range(0, total, max_seq_length)]
            for name, tokens in joined.items()
        }

    rows = load_dataset("text", data_files=files)
    return rows.map(tokenize, batched=True, remove_columns=["text"]).map(join_and_cut, batched=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    for name in ("--model", "--train_file", "--validation_file", "--output_dir"):
        parser.add_argument(name)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--prepare_only", action="store_true")
    args = parser.parse_args()
    files = {"train": args.train_file, "validation": args.validation_file}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    begun = time.perf_counter()
    blocks = prepare(tokenizer, {split: path for split, path in files.items() if path}, args.max_seq_length)
    print(f"Prepared in {time.perf_counter() - begun:.2f} s", flush=True)
    if args.prepare_only:
        return
    settings = TrainingArguments(
        args.output_dir,
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        seed=args.seed,
        bf16=args.bf16,
        use_cpu=args.bf16,  # on a CPU, transformers takes bf16 only where it is told that it is one
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(
        AutoModelForMaskedLM.from_pretrained(args.model),
        settings,
        train_dataset=blocks["train"],
        eval_dataset=blocks.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer),
        callbacks=[SayUpdates()],
    )
    trainer.train()
    trainer.save_model()
    if args.validation_file:
        print(trainer.evaluate())


if __name__ == "__main__":
    main()
