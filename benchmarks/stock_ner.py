"""The stock way of named entity recognition, for benchmarks.ner to compare with: truncation, random batches, Trainer.

    accelerate launch benchmarks/stock_ner.py --model DIR --train_file a.conll --validation_file b.conll \
        --test_file c.conll --output_dir OUT

What the library's own example does, in its order and with its functions: words split into tokens, a label on the first
token of each word, padded by DataCollatorForTokenClassification, trained by Trainer with its defaults.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from datasets import Dataset
from seqeval.metrics import f1_score
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)


def read(path):
    """Read a CoNLL file: a Dataset of tokens and ner_tags."""
    sentences = Path(path).read_text(encoding="utf-8").split("\n")
    rows, tokens, tags = {"tokens": [], "ner_tags": []}, [], []
    for line in [*sentences, ""]:
        if line.strip():
            columns = line.split("\t")
            tokens.append(columns[0])
            tags.append(columns[-1])
        elif tokens:
            rows["tokens"].append(tokens)
            rows["ner_tags"].append(tags)
            tokens, tags = [], []
    return Dataset.from_dict(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    for name in ("--model", "--train_file", "--validation_file", "--test_file", "--output_dir"):
        parser.add_argument(name)
    parser.add_argument("--num_train_epochs", type=float, default=3)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    data = {split: read(getattr(args, f"{split}_file")) for split in ("train", "validation", "test")}
    labels = sorted({tag for tags in data["train"]["ner_tags"] for tag in tags})
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def tokenize(rows):
        made = tokenizer(rows["tokens"], truncation=True, max_length=128, is_split_into_words=True)
        made["labels"] = []
        for n, tags in enumerate(rows["ner_tags"]):
            words, row, before = made.word_ids(n), [], None
            for word in words:
                row.append(-100 if word is None or word == before else labels.index(tags[word]))
                before = word
            made["labels"].append(row)
        return made

    data = {split: rows.map(tokenize, batched=True, remove_columns=rows.column_names) for split, rows in data.items()}

    def score(found):
        rows = [
            ([labels[i] for i in row[gold != -100]], [labels[i] for i in gold[gold != -100]])
            for row, gold in zip(np.argmax(found.predictions, axis=-1), found.label_ids, strict=True)
        ]
        return {"f1": f1_score([gold for _, gold in rows], [row for row, _ in rows])}

    trainer = Trainer(
        AutoModelForTokenClassification.from_pretrained(args.model, num_labels=len(labels)),
        TrainingArguments(
            args.output_dir,
            num_train_epochs=args.num_train_epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            learning_rate=5e-5,
            seed=args.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data["train"],
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=score,
    )
    results = dict(trainer.train().metrics)
    for split, prefix in (("validation", "eval"), ("test", "predict")):
        results |= trainer.evaluate(data[split], metric_key_prefix=prefix)
    lengths = np.array([len(ids) for ids in data["train"]["input_ids"]])
    batches = np.split(np.random.default_rng(0).permutation(len(lengths)), range(16, len(lengths), 16))
    results["padding"] = 1 - lengths.sum() / sum(lengths[batch].max() * len(batch) for batch in batches)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(args.output_dir, "all_results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
