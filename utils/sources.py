"""Where text comes from: files or a data set; and what is kept of it in the cache."""

import hashlib
import importlib.metadata
import itertools
import json
import os
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
import sentencex
from tqdm import tqdm

from utils.reading import InputError, find_files, hash_files, number_rows, read_all_texts
from utils.tokenizing import FlatTokenizer, tokenize_batch


def find_sources(files, dataset_name, dataset_config_name, column, splits, separator="auto"):
    """Find the text of each split: dict of split to (fingerprint of its content, function that yields batches, name).

    Args:
        files: dict of split to paths and globs, or None.
        dataset_name, dataset_config_name: a data set of the Hub, or a folder, instead of files.
        column: the column that holds the text.
        splits: the splits that are wanted.
        separator: what ends a document, as for read_texts.

    Raises:
        InputError: a file, the data set or its column is not there.
    """
    sources = {}
    for split in splits if not dataset_name else ():
        if files[split]:
            paths = find_files(files[split], f"--{split}_file")
            name = os.path.basename(paths[0]) + (f" and {len(paths) - 1} more files" if paths[1:] else "")
            sources[split] = (f"{hash_files(paths)} {column} {separator}",
                              partial(read_all_texts, paths, column, separator), name)
    if not dataset_name:
        return sources
    loaded = load_splits(dataset_name, dataset_config_name)
    for split in splits:
        if split in loaded:
            if column not in loaded[split].column_names:
                raise InputError(f"--dataset_name {dataset_name}: there is no column {column!r}; the columns are "
                                 f"{', '.join(loaded[split].column_names)}. Name one with --text_column_name.")
            name = f"{dataset_name} ({split})"
            sources[split] = (f"{loaded[split]._fingerprint} {column} {separator}",
                              partial(read_dataset, loaded[split], column, f"--dataset_name {name}", separator), name)
    return sources


def load_splits(dataset_name, dataset_config_name):
    """Load a data set of the Hub, or of a folder: dict of split to Dataset. InputError where that fails."""
    try:
        return datasets.load_dataset(dataset_name, dataset_config_name)
    except Exception as error:  # whatever the Hub, a proxy, the file system or a damaged file comes up with
        fault = " ".join(str(error).split())[:200]
        raise InputError(f"--dataset_name {dataset_name}: cannot be loaded: {fault} Check the name and "
                         "--dataset_config_name. Without network, give --train_file with a file of your own, or a "
                         "folder that holds the data set, or bring along a cache from where there is network: "
                         f"{datasets.config.HF_DATASETS_CACHE}") from None


def read_dataset(rows, column, name, separator="auto"):
    """Read the texts of a Dataset as read_all_texts reads those of files: yields (texts, documents)."""
    found, document = False, 0
    for start in range(0, len(rows), 10_000):
        texts = rows[start : start + 10_000][column]
        for number, text in enumerate(texts, start):
            if not isinstance(text, str | None):
                raise InputError(f"{name}, row {number}: expected text in column {column!r}, found {str(text)[:40]!r}. "
                                 "Name the column that holds the text with --text_column_name.")
        texts, documents, document = number_rows(texts, document, separator)
        found |= bool(len(texts))
        yield texts, documents
    if not found:
        raise InputError(f"{name}: there is no text in column {column!r}. Name another with --text_column_name.")


def split_sentences(source, language, sentence_per_line):
    """Make of a source of paragraphs one of sentences: (fingerprint, function that yields batches, name).

    Args:
        source: as find_sources returns. language: code that sentencex knows, as en.
        sentence_per_line: the paragraphs are sentences already.
    """
    fingerprint, batches, name = source

    def sentences():
        for texts, documents in batches():
            split = [[part for sentence in sentencex.segment(language, text) if (part := sentence.strip())]
                     for text in texts.to_pylist()]
            yield (pa.array(itertools.chain.from_iterable(split), pa.large_string()),
                   np.repeat(documents, list(map(len, split))))

    version = importlib.metadata.version("sentencex")  # another may find other sentences
    return source if sentence_per_line else (f"{fingerprint} sentences {language} {version}", sentences, name)


def write_texts(batches, path):
    """Write batches of (texts, documents) to an Arrow file. Returns counts: paragraphs, repeated, words, characters."""
    schema = pa.schema({"text": pa.large_string(), "document": pa.int64()})
    counts, hashes, aside = {"paragraphs": 0, "words": 0, "characters": 0}, [], f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with pa.OSFile(aside, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for texts, documents in tqdm(batches, desc="Reading", unit=" batches", disable=None, leave=False):
                writer.write_batch(pa.record_batch({"text": texts, "document": documents}, schema))
                strings = texts.to_pylist()
                counts["paragraphs"] += len(strings)
                counts["words"] += len(strings) + sum(map(str.count, strings, itertools.repeat(" ")))
                counts["characters"] += sum(map(len, strings))
                hashes.append(np.fromiter(map(hash, strings), dtype=np.int64, count=len(strings)))
    except BaseException:
        os.unlink(aside)
        raise
    os.replace(aside, path)  # at once, as another run may be preparing the same text
    return counts | {"repeated": counts["paragraphs"] - len(np.unique(np.concatenate(hashes)))}


def choose_parts(sources, percent, tasks, load_best_model_at_end):
    """Say what each split of a run is made of: dict of split to (source, part), a part being (which, percent).

    Where there are no validation data, so many percent of the training data are "drawn" for it, and training takes the
    "rest"; else parts are "all".

    Args:
        sources: as find_sources returns. percent: --validation_split_percentage.
        tasks: dict of "train", "validation" and "test" to whether the run does what needs it.

    Raises:
        InputError: something that the run is to do has no data.
    """
    parts = {split: (source, ("all", 0)) for split, source in sources.items()}
    if "validation" not in sources and "train" in sources and percent:
        parts["train"] = (sources["train"], ("rest", percent))
        parts["validation"] = (sources["train"], ("drawn", percent))
    if not tasks["train"]:
        parts.pop("train", None)
    if not (tasks["train"] or tasks["validation"]):
        parts.pop("validation", None)
    for flag, split in (("do_train", "train"), ("do_predict", "test"), ("do_eval", "validation")):
        if tasks[split] and split not in parts and not (tasks["train"] and split == "validation"):
            raise InputError(f"--{flag} has no data: give --{split}_file, or a data set with a split named {split}")
    if not parts:
        raise InputError("there are no data to prepare: give --train_file, --validation_file or --dataset_name")
    if load_best_model_at_end and "validation" not in parts:
        raise InputError("--load_best_model_at_end has nothing to tell the best by: give --validation_file")
    return parts


def write_json(path, value):
    """Write a JSON file so that a reader, or a kill, never meets half of it."""
    aside = Path(f"{path}.{os.urandom(4).hex()}.tmp")
    aside.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
    os.replace(aside, path)


def tokenize_source(source, tokenizer, *, num_proc, overwrite):
    """Turn the text of a source into token ids without special tokens, or find them in the cache, by content.

    Args:
        source: (fingerprint, function that yields batches of texts and documents, name), as find_sources returns.
        tokenizer: the model's own. num_proc: processes that tokenize. overwrite: do it anew.

    Returns:
        (tokens, counts): a Dataset of `ids` (int32 lists) and `document`, a row for each text, in the Arrow format; and
        a dict of counts, whose `key` tells apart what was made from other content or with another vocabulary.
    """
    fingerprint, batches, _ = source
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else f"{tokenizer!r} {tokenizer.get_vocab()}"
    key = hashlib.sha256(f"2 {fingerprint} {vocabulary}".encode()).hexdigest()[:32]
    cache = Path(datasets.config.HF_DATASETS_CACHE, "bert_scripts")
    cache.mkdir(parents=True, exist_ok=True)
    text, facts, made = cache / f"text-{key}.arrow", cache / f"text-{key}.json", cache / f"tokens-{key}.arrow"
    if overwrite or not (text.exists() and facts.exists()):
        write_json(facts, write_texts(batches(), text))
    counts = json.loads(facts.read_text(encoding="utf-8")) | {"key": key}
    if made.exists() and not overwrite:
        return datasets.Dataset.from_file(str(made)).with_format("arrow"), counts
    texts = datasets.Dataset.from_file(str(text)).with_format("arrow")
    flat_tokenizer = FlatTokenizer(tokenizer, texts[:100]["text"].to_pylist(), tqdm.write)
    at_once = max(1, int(2e6 * counts["paragraphs"] / counts["characters"]))  # paragraphs in about 2 MB
    tokens = texts.map(tokenize_batch, batched=True, batch_size=at_once, fn_kwargs={"tokenizer": flat_tokenizer},
                       remove_columns=["text"], num_proc=num_proc, desc=f"Tokenizing ({flat_tokenizer.name})",
                       load_from_cache_file=not overwrite, new_fingerprint=key, cache_file_name=str(made))
    return tokens, counts
