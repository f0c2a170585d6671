"""The stock way of question answering, for benchmarks.qa to compare with: windows padded to their full length, Trainer.

    accelerate launch benchmarks/stock_qa.py --model DIR --train_file a.json --validation_file b.json --output_dir OUT

What the library's own example does, in its order and with its functions: question and context cut into windows by the
tokenizer and padded to max_seq_length, random batches, trained by Trainer with its defaults; answers are then searched
for in Python, window by window.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))  # accelerate launches it as a script
import run_qa


def read(path):
    """Read SQuAD's layout: a Dataset of id, question, context, texts and starts of the answers."""
    rows = [
        {"id": str(question["id"]), "question": question["question"], "context": paragraph["context"],
         "texts": [answer["text"] for answer in question["answers"]],
         "starts": [answer["answer_start"] for answer in question["answers"]]}
        for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"] for question in paragraph["qas"]
    ]  # fmt: skip
    return Dataset.from_list(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    for name in ("--model", "--train_file", "--validation_file", "--output_dir"):
        parser.add_argument(name)
    parser.add_argument("--max_seq_length", type=int, default=384)
    parser.add_argument("--doc_stride", type=int, default=128)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def cut(rows):
        return tokenizer(
            [question.lstrip() for question in rows["question"]], rows["context"], truncation="only_second",
            max_length=args.max_seq_length, stride=args.doc_stride, return_overflowing_tokens=True,
            return_offsets_mapping=True, padding="max_length",
        )  # fmt: skip

    def prepare_training(rows):
        made = cut(rows)
        made["start_positions"], made["end_positions"] = [], []
        samples = made["overflow_to_sample_mapping"]
        for n, (offsets, row) in enumerate(zip(made["offset_mapping"], samples, strict=True)):
            start, text = rows["starts"][row][0], rows["texts"][row][0]
            within = [i for i, part in enumerate(made.sequence_ids(n)) if part == 1]
            held = [i for i in within if offsets[i][0] < start + len(text) and offsets[i][1] > start]
            whole = held and offsets[within[0]][0] <= start and offsets[within[-1]][1] >= start + len(text)
            made["start_positions"].append(held[0] if whole else 0)
            made["end_positions"].append(held[-1] if whole else 0)
        made.pop("offset_mapping")
        made.pop("overflow_to_sample_mapping")
        return made

    def prepare_evaluation(rows):
        made = cut(rows)
        made["row"] = made.pop("overflow_to_sample_mapping")
        made["id"] = [rows["id"][row] for row in made["row"]]
        made["offset_mapping"] = [
            [pair if part == 1 else None for pair, part in zip(offsets, made.sequence_ids(n), strict=True)]
            for n, offsets in enumerate(made["offset_mapping"])
        ]
        return made

    rows = {split: read(getattr(args, f"{split}_file")) for split in ("train", "validation")}
    train = rows["train"].map(prepare_training, batched=True, remove_columns=rows["train"].column_names)
    windows = rows["validation"].map(prepare_evaluation, batched=True, remove_columns=rows["validation"].column_names)
    trainer = Trainer(
        AutoModelForQuestionAnswering.from_pretrained(args.model),
        TrainingArguments(
            args.output_dir,
            num_train_epochs=1,
            per_device_train_batch_size=12,
            per_device_eval_batch_size=12,
            learning_rate=5e-5,
            seed=args.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=train,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    results = dict(trainer.train().metrics)
    lengths = np.array([sum(mask) for mask in train["attention_mask"]])
    results |= {"windows": len(train), "padding": 1 - lengths.sum() / (len(train) * args.max_seq_length)}
    starts, ends = trainer.predict(windows.remove_columns(["row", "id", "offset_mapping"])).predictions
    scored = {}
    for name, offsets, first, last in zip(
        windows["id"], windows["offset_mapping"], starts.tolist(), ends.tolist(), strict=True
    ):
        tokens = [(a, b, *pair) for a, b, pair in zip(first, last, offsets, strict=True) if pair is not None]
        scored.setdefault(name, []).append(tokens)
    texts = []
    for row in rows["validation"]:
        spans = run_qa.search_spans(scored[row["id"]], 20, 30)
        texts.append(row["context"][spans[0]["start"] : spans[0]["end"]])
    scores = run_qa.SquadScores(keep_in_memory=True).compute(predictions=texts, references=rows["validation"]["texts"])
    results |= {f"eval_{name}": score for name, score in scores.items()}
    Path(args.output_dir, "all_results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
