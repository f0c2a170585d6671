"""run_mlm.py: what it reads and keeps in its cache, and what it says of mistakes."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from helpers import ALIKE, ROOT, accelerate_launch, assert_one_message, contents, read_log, read_results, write_lines
from plain_mlm import LENGTH, block_examples, plain_scores
from transformers import AutoTokenizer

# ---------------------------------------------------------------- data


def write_formats(folder, texts):
    """Write the same texts in every format, a document a line or a row: name to path or glob."""
    rows = [{"number": n, "text": text} for n, text in enumerate(texts)]
    paths = {name: folder / f"texts.{name}" for name in ("txt", "jsonl", "json", "csv", "tsv", "parquet")}
    write_lines(paths["txt"], texts)
    write_lines(paths["jsonl"], map(json.dumps, rows))
    paths["json"].write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        with open(paths[name], "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["number", "text"], delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    pa.parquet.write_table(pa.Table.from_pylist(rows), paths["parquet"])
    for name in list(paths):
        paths[f"{name}.gz"] = folder / f"texts.{name}.gz"
        paths[f"{name}.gz"].write_bytes(gzip.compress(paths[name].read_bytes()))
    paths["of Windows"] = write_lines(folder / "windows.txt", texts, "utf-8-sig", "\r\n")
    paths["with blank lines around"] = write_lines(folder / "blank.txt", ["", " ", *texts, "\t", ""])
    paths["without a line feed at the end"] = folder / "end.txt"
    paths["without a line feed at the end"].write_text("\n".join(texts), encoding="utf-8")
    paths["{data: []} json"] = folder / "squadlike.json"
    paths["{data: []} json"].write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    write_lines(folder / "part1.txt", texts[:17])
    write_lines(folder / "part2.txt", texts[17:])
    paths["a glob"] = folder / "part?.txt"
    paths["two files"] = [folder / "part1.txt", folder / "part2.txt"]
    return paths


@pytest.fixture(scope="session")
def formats(tmp_path_factory, tiny_bert, prose):
    texts = [*prose[300:339], 'Commas, "quotes", a\ttab, naïve café, and 日本語.']
    folder = tmp_path_factory.mktemp("formats")
    examples = block_examples(AutoTokenizer.from_pretrained(tiny_bert), [[text] for text in texts], LENGTH)
    return write_formats(folder, texts), plain_scores(tiny_bert, examples)


@pytest.mark.parametrize(
    "name",
    [
        "txt",
        "jsonl",
        "json",
        "csv",
        "tsv",
        "parquet",
        "txt.gz",
        "jsonl.gz",
        "json.gz",
        "csv.gz",
        "tsv.gz",
        "parquet.gz",
        "of Windows",
        "with blank lines around",
        "without a line feed at the end",
        "{data: []} json",
        "a glob",
        "two files",
    ],
)
def test_the_same_texts_score_the_same_in_every_format(mlm, formats, tmp_path, name):
    paths, expected = formats
    mlm(validation_file=paths[name]).checked()
    results = read_results(tmp_path / "out")
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert results["eval_accuracy"] == expected["eval_accuracy"]


def test_a_folder_with_a_data_set_scores_as_its_files_do(mlm, formats, tmp_path):
    paths, expected = formats
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        shutil.copy(paths["jsonl"], tmp_path / "set" / f"{split}.jsonl")
    mlm(dataset_name=tmp_path / "set", max_steps=1).checked()
    assert read_results(tmp_path / "out")["initial_eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)


def test_another_column_of_the_same_file_is_another_text(mlm, lines57, lines61, tmp_path):
    texts = [path.read_text(encoding="utf-8").splitlines()[:50] for path in (lines57, lines61)]
    table = write_lines(
        tmp_path / "two.jsonl", [json.dumps({"text": a, "summary": b}) for a, b in zip(*texts, strict=True)]
    )
    losses = {}
    for name, column in (("text", None), ("summary", "summary")):
        mlm(validation_file=table, text_column_name=column, output_dir=tmp_path / name).checked()
        losses[name] = read_results(tmp_path / name)["eval_loss"]
        plain = write_lines(tmp_path / f"{name}.txt", texts[name == "summary"])
        mlm(validation_file=plain, output_dir=tmp_path / f"plain {name}").checked()
        assert losses[name] == read_results(tmp_path / f"plain {name}")["eval_loss"]
    done = mlm(validation_file=table, text_column_name="title")
    assert_one_message(done, ["two.jsonl", "'title'", "text, summary"])


def test_the_same_bytes_under_another_ending_are_the_same_text(mlm, prose, tmp_path):
    rows = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in prose[500:530]).encode())
    for name in ("rows.txt.gz", "rows.jsonl.gz"):
        (tmp_path / name).write_bytes(rows)
        done = mlm(validation_file=name, output_dir=tmp_path / name.split(".")[1]).checked()
        assert (f"{name}: read as JSON" in done.out) == (name == "rows.txt.gz")
    write_lines(tmp_path / "plain.txt", prose[500:530])
    mlm(validation_file="plain.txt").checked()
    assert read_results(tmp_path / "jsonl")["eval_loss"] == read_results(tmp_path / "out")["eval_loss"]
    assert read_results(tmp_path / "jsonl")["eval_loss"] == read_results(tmp_path / "txt")["eval_loss"]


def test_special_tokens_in_a_corpus_are_text_and_in_a_question_they_are_masks(mlm, tiny_bert, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    text = write_lines(tmp_path / "text.txt", ["the [MASK] of [SEP] and [PAD] [CLS] value " * 30])
    mlm(validation_file=text, text="the [MASK] of", max_steps=1, train_file=text).checked()
    texts = tokenizer(text.read_text().strip(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not {*texts} & {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    inner, expected = LENGTH - 2, []
    for start in range(0, len(texts) - inner + 1, inner):
        expected.append([tokenizer.cls_token_id, *texts[start : start + inner], tokenizer.sep_token_id])
    scores = plain_scores(tiny_bert, expected)
    assert read_results(tmp_path / "out")["initial_eval_loss"] == pytest.approx(scores["eval_loss"], rel=1e-6)


def cached_files():
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize("processes", [1, 2])
def test_what_prepare_only_cached_is_found_by_a_later_run(mlm, tiny_bert, prose, tmp_path, processes):
    weightless = tmp_path / "weightless"  # to prepare, no model is needed
    shutil.copytree(tiny_bert, weightless)
    (weightless / "model.safetensors").unlink()
    text = write_lines(tmp_path / "text.txt", [f"{processes} {line}" for line in prose[400:440]])
    before = cached_files()
    done = mlm(model=weightless, train_file=text, prepare_only=True, processes=processes).checked()
    assert done.out.count("Train  ") == 1
    assert not (tmp_path / "out").exists()
    prepared = cached_files()
    assert len(prepared) > len(before)

    moved = Path(shutil.move(text, tmp_path / "another name.txt"))
    done = mlm(train_file=moved, processes=processes, max_steps=1).checked()
    assert "Tokenizing" not in done.err
    assert cached_files() == prepared

    moved.write_text(moved.read_text(encoding="utf-8").replace("e", "a", 1), encoding="utf-8")
    mlm(train_file=moved, do_eval=True, output_dir=tmp_path / "changed").checked()
    assert len(cached_files()) > len(prepared)

    mlm(train_file=moved, do_eval=True, overwrite_cache=True, output_dir=tmp_path / "anew").checked()
    assert read_results(tmp_path / "changed") == read_results(tmp_path / "anew")


@pytest.mark.parametrize(
    "flag", [{"max_seq_length": 24}, {"line_by_line": True}, {"validation_split_percentage": 30}], ids=str
)
def test_another_way_to_cut_the_same_file_is_not_taken_from_the_cache(mlm, lines61, tmp_path, flag):
    scores = []
    for n, flags in enumerate([{}, flag, {}]):
        mlm(train_file=lines61, do_eval=True, output_dir=tmp_path / str(n), **flags).checked()
        scores.append(read_results(tmp_path / str(n)))
    assert scores[0] == scores[2]
    assert scores[0] != scores[1]


def test_several_processes_that_tokenize_change_nothing(mlm, prose, tmp_path):
    text = write_lines(tmp_path / "text.txt", [f"Three {line}" for line in prose[440:470]])
    for workers in (None, 3):
        mlm(
            validation_file=text,
            preprocessing_num_workers=workers,
            overwrite_cache=True,
            output_dir=tmp_path / f"out{workers}",
        ).checked()
    assert read_results(tmp_path / "outNone") == read_results(tmp_path / "out3")


# ---------------------------------------------------------------- mistakes


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, tiny_bert, lines57, lines61):
    """A folder of files that are not what the script wants, next to good.txt and other.txt."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copy(lines57, folder / "good.txt")
    shutil.copy(lines61, folder / "other.txt")
    files = {
        "empty.txt": b"",
        "empty.jsonl": b"",
        "empty.csv": b"",
        "header.csv": b"text\n",
        "blank.txt": b" \n\t\n\r\n",
        "blank.jsonl": b'{"text": " "}\n',
        "latin1.txt": b"one\ntwo\ncaf\xe9 au lait\nfour\n",
        "latin1.csv": b"text\none\ncaf\xe9\n",
        "utf16.txt": "one\n".encode("utf-16-le"),
        "latin1.txt.gz": gzip.compress(b"one\ncaf\xe9\n"),
        "half.txt.gz": gzip.compress(b"one " * 100)[:-9],
        "column.jsonl": b'{"title": "A", "body": "B"}\n',
        "column2.jsonl": b'{"text": "A"}\n{"title": "A", "body": "B"}\n',
        "column.csv": b"number,body\n1,B\n",
        "number.jsonl": b'{"text": "A"}\n\n{"text": 7}\n',
        "list.jsonl": b'["A"]\n',
        "half.jsonl": b'{"text": "A"}\n{"text": "A\n',
        "half.json": b'[{"text": "A"},\n {"text"',
        "uneven.csv": b"text,number\nA,1\nB\n",
        "quote.csv": b'text\n"A, B\n',
        "broken.parquet": b"PAR1 and nothing more",
        "short.txt": b"Too short.\n",
        "key.yaml": b"learning_rte: 1\n",
        "list.yaml": b"- learning_rate\n",
        "text.yaml": b"a: b: c\n",
        "value.yaml": b"learning_rate: fast\n",
        "mapping.yaml": b"text:\n  - Note: the [MASK]\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    pa.parquet.write_table(pa.table({"number": [1], "body": ["B"]}), folder / "column.parquet")
    (folder / "folder").mkdir()
    for name, rows in {"numbers": [{"text": 1}], "blanks": [{"text": " "}], "titles": [{"title": "A"}]}.items():
        (folder / name).mkdir()
        write_lines(folder / name / "train.jsonl", map(json.dumps, rows))
    for name, leave_out in {"maskless": "mask_token", "padless": "pad_token", "clsless": "cls_token"}.items():
        shutil.copytree(tiny_bert, folder / name)
        settings = json.loads((folder / name / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings = {k: v for k, v in settings.items() if k != leave_out} | {
            "tokenizer_class": "PreTrainedTokenizerFast"
        }
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.copytree(tiny_bert, folder / "damaged")
    (folder / "damaged" / "model.safetensors").write_bytes((tiny_bert / "model.safetensors").read_bytes()[:-100])
    return folder


# fmt: off
MISTAKES = {  # the flags that differ from those of a good run; what the message has to name
    "missing file": ({"train_file": "missing.txt"}, ["--train_file missing.txt", "no such file"]),
    "missing validation file": ({"validation_file": "missing.txt"}, ["--validation_file missing.txt", "no such file"]),
    "one of two files missing": ({"train_file": ["good.txt", "missing.txt"]}, ["--train_file missing.txt"]),
    "glob without match": ({"train_file": "*.nothing"}, ["--train_file *.nothing", "no such file"]),
    "directory": ({"train_file": "folder"}, ["--train_file folder", "folder", "*.txt"]),
    "empty file": ({"train_file": "empty.txt"}, ["empty.txt", "no text"]),
    "empty jsonl": ({"train_file": "empty.jsonl"}, ["empty.jsonl", "no text"]),
    "empty csv": ({"train_file": "empty.csv"}, ["empty.csv", "no text"]),
    "csv of a header alone": ({"train_file": "header.csv"}, ["header.csv", "no text"]),
    "empty validation file": ({"validation_file": "empty.txt"}, ["empty.txt", "no text"]),
    "white space only": ({"train_file": "blank.txt"}, ["blank.txt", "no text", "white space"]),
    "white space only in jsonl": ({"train_file": "blank.jsonl"}, ["blank.jsonl", "no text"]),
    "not UTF-8": ({"train_file": "latin1.txt"}, ["latin1.txt, line 3", "byte 4", "0xe9", "UTF-8", "cp1252"]),
    "not UTF-8 in csv": ({"train_file": "latin1.csv"}, ["latin1.csv, line 3", "byte 4", "UTF-8"]),
    "not UTF-8 in gz": ({"train_file": "latin1.txt.gz"}, ["latin1.txt.gz, line 2", "byte 4", "UTF-8"]),
    "UTF-16": ({"train_file": "utf16.txt"}, ["utf16.txt, line 1", "byte 2", "--file_encoding utf-16-le"]),
    "half a gz": ({"train_file": "half.txt.gz"}, ["half.txt.gz", "cut off"]),
    "no column in jsonl": (
        {"train_file": "column.jsonl"}, ["column.jsonl, line 1", "'text'", "title, body", "--text_column_name"]),
    "no column later on": ({"train_file": "column2.jsonl"}, ["column2.jsonl, line 2", "'text'", "title, body"]),
    "no column in csv": ({"train_file": "column.csv"}, ["column.csv", "'text'", "number, body", "--text_column_name"]),
    "no column in parquet": ({"train_file": "column.parquet"}, ["column.parquet", "'text'", "number, body"]),
    "numbers for text": ({"train_file": "number.jsonl"}, ["number.jsonl, line 3", "'text'", "7"]),
    "no objects": ({"train_file": "list.jsonl"}, ["list.jsonl, entry 1", "object"]),
    "jsonl cut off": ({"train_file": "half.jsonl"}, ["half.jsonl, line 2", "JSON"]),
    "json cut off": ({"train_file": "half.json"}, ["half.json, line 2", "JSON", "cut off"]),
    "uneven csv": ({"train_file": "uneven.csv"}, ["uneven.csv, line 3", "2 columns", "found 1"]),
    "open quote": ({"train_file": "quote.csv"}, ["quote.csv, line", "quotes"]),
    "broken parquet": ({"train_file": "broken.parquet"}, ["broken.parquet", "Parquet"]),
    "too short for a block": (
        {"train_file": "short.txt", "validation_split_percentage": 0},
        ["short.txt", "too few", "--max_seq_length", "--line_by_line"],
    ),
    "validation too short": ({"validation_file": "short.txt"}, ["short.txt", "validation", "too few"]),
    "test file too short": ({"test_file": "short.txt"}, ["short.txt", "test", "too few"]),
    "no mask token": ({"model": "maskless"}, ["maskless", "no mask token"]),
    "no mask token in tokenizer": ({"tokenizer_name": "maskless"}, ["--tokenizer_name maskless", "no mask token"]),
    "no padding token": ({"model": "padless"}, ["padless", "no padding token"]),
    "no [CLS]": ({"model": "clsless"}, ["clsless", "[CLS]"]),
    "longer than the model": ({"max_seq_length": 65}, ["--max_seq_length is 65", "at most 64"]),
    "output folder in use": (
        {"overwrite_output_dir": False}, ["in use", "--resume_from_checkpoint", "--overwrite_output_dir"]),
    "output folder is a file": ({"output_dir": "good.txt"}, ["--output_dir good.txt", "file"]),
    "output folder below a file": ({"output_dir": "good.txt/out"}, ["--output_dir good.txt/out"]),
    "unknown model": ({"model": "no-such/model"}, ["--model no-such/model", "ithout network", "folder"]),
    "folder without a model": ({"model": "folder"}, ["--model folder", "config.json"]),
    "damaged model": ({"model": "damaged"}, ["--model damaged", "cannot be loaded"]),
    "unknown tokenizer": ({"tokenizer_name": "no-such/model"}, ["--tokenizer_name no-such/model"]),
    "unknown config setting": (
        {"config_overrides": "dropout_of_hidden=0"}, ["--config_overrides", "dropout_of_hidden"]),
    "config setting without value": ({"config_overrides": "hidden_dropout_prob"}, ["--config_overrides", "KEY=VALUE"]),
    "unknown key in --config": (
        {"config": "key.yaml"}, ["key.yaml", "--learning_rte", "did you mean --learning_rate?"]),
    "no such --config": ({"config": "missing.yaml"}, ["missing.yaml"]),
    "--config is a list": ({"config": "list.yaml"}, ["list.yaml", "flag"]),
    "--config is not YAML": ({"config": "text.yaml"}, ["text.yaml", "line 1"]),
    "bad value in --config": ({"config": "value.yaml"}, ["--learning_rate", "'fast'"]),
    "mapping in a list of --config": ({"config": "mapping.yaml"}, ["mapping.yaml", "text"]),
    "data set without network": (
        {"train_file": None, "dataset_name": "stanfordnlp/imdb"},
        ["--dataset_name stanfordnlp/imdb", "Without network", "--train_file"],
    ),
    "default data set without network": ({"train_file": None}, ["stanfordnlp/imdb", "Without network", "--train_file"]),
    "no column in a data set": (
        {"train_file": None, "dataset_name": "titles"}, ["titles", "'text'", "title", "--text_column_name"]),
    "numbers in a data set": ({"train_file": None, "dataset_name": "numbers"}, ["numbers", "text"]),
    "blanks in a data set": ({"train_file": None, "dataset_name": "blanks"}, ["blanks", "text"]),
    "files and a data set": ({"dataset_name": "titles"}, ["--dataset_name", "one of the two"]),
    "misspelt flag": ({"lerning_rate": 1}, ["--lerning_rate is not a flag", "did you mean --learning_rate?"]),
    "shortened flag": ({"num_train": 1}, ["--num_train is not a flag"]),
    "mlm_probability 0": ({"mlm_probability": 0}, ["--mlm_probability is 0"]),
    "mlm_probability 15": ({"mlm_probability": 15}, ["--mlm_probability is 15", "at most 1"]),
    "replacements over 1": (
        {"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, ["--mask_replace_prob", "--random_replace_prob"]),
    "batch 0": ({"per_device_train_batch_size": 0}, ["--per_device_train_batch_size is 0"]),
    "batch of half": ({"per_device_train_batch_size": 0.5}, ["--per_device_train_batch_size", "0.5"]),
    "accumulation 0": ({"gradient_accumulation_steps": 0}, ["--gradient_accumulation_steps is 0"]),
    "negative rate": ({"learning_rate": -1}, ["--learning_rate is -1"]),
    "no number": ({"weight_decay": "nan"}, ["--weight_decay is nan"]),
    "negative seed": ({"seed": -1}, ["--seed is -1"]),
    "seed too large": ({"seed": 2**32}, ["--seed"]),
    "length 2": ({"max_seq_length": 2}, ["--max_seq_length is 2"]),
    "split of 100%": ({"validation_split_percentage": 100}, ["--validation_split_percentage is 100"]),
    "no epochs": ({"num_train_epochs": 0}, ["--num_train_epochs is 0"]),
    "unknown choice": ({"masking": "words"}, ["--masking", "whole_word"]),
    "not a switch": ({"line_by_line": "maybe"}, ["--line_by_line", "maybe"]),
    "training without data": (
        {"train_file": None, "validation_file": "good.txt", "do_train": True}, ["--do_train", "--train_file"]),
    "nothing to predict": ({"do_predict": True}, ["--do_predict", "--test_file"]),
    "nothing to evaluate": ({"do_eval": True, "validation_split_percentage": 0}, ["--do_eval", "--validation_file"]),
    "best of none": (
        {"load_best_model_at_end": True, "eval_strategy": "no"}, ["--load_best_model_at_end", "--eval_strategy"]),
    "best of nothing scored": (
        {"load_best_model_at_end": True, "validation_split_percentage": 0}, ["--load_best_model_at_end"]),
    "resume and overwrite": (
        {"resume_from_checkpoint": "latest"}, ["--resume_from_checkpoint", "--overwrite_output_dir"]),
    "no such checkpoint": (
        {"resume_from_checkpoint": "folder", "overwrite_output_dir": False},
        ["--resume_from_checkpoint folder", "not a whole checkpoint"],
    ),
    "text without mask": (
        {"text": ["A [MASK] is fine.", "Nothing is hidden."]}, ["'Nothing is hidden.'", "no mask", "[MASK]"]),
    "text too long": ({"text": "[MASK] " * 70}, ["--text", "64"]),
    "fp16 on a CPU": ({"mixed_precision": "fp16"}, ["--mixed_precision fp16", "GPU"]),
    "nothing to be masked": ({"mlm_probability": 1e-09}, ["--mlm_probability"]),
    "push without network": ({"push_to_hub": True}, ["--push_to_hub"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_costs_nothing_that_was_there(mlm, inputs, trained_mlm, tmp_path, name):
    flags, fragments = MISTAKES[name]
    out = tmp_path / "out"
    shutil.copytree(trained_mlm, out)
    before = contents(out)
    settings = {"train_file": "good.txt", "overwrite_output_dir": True, "max_steps": 2, **flags}
    done = mlm(folder=inputs, **settings)
    assert_one_message(done, fragments)
    assert contents(out) == before


@pytest.mark.parametrize(
    "name",
    [
        "missing file",
        "not UTF-8",
        "misspelt flag",
        "unknown model",
        "too short for a block",
        "output folder in use",
        "text without mask",
        "nothing to be masked",
        "damaged model",
    ],
)
def test_two_processes_say_it_once(mlm, inputs, trained_mlm, tmp_path, name):
    flags, fragments = MISTAKES[name]
    shutil.copytree(trained_mlm, tmp_path / "out")
    done = mlm(folder=inputs, processes=2, **{"train_file": "good.txt", "overwrite_output_dir": True, **flags})
    assert_one_message(done, fragments)


def hide_wandb():
    import sys

    sys.modules["wandb"] = None  # as if it were not installed


def test_a_tracker_that_is_not_installed_is_named_with_its_pip_line(mlm, lines57, tmp_path):
    assert_one_message(mlm(train_file=lines57, report_to="wandb", prepare=hide_wandb), ["wandb", "pip install wandb"])


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_fsdp_and_deepspeed_are_refused(mlm, lines57, variable):
    assert_one_message(mlm(train_file=lines57, env={variable: "true"}), ["--multi_gpu"])


@pytest.mark.slow
def test_accelerate_launch_on_two_processes_says_it_once(tiny_bert, tmp_path):
    settings = {**ALIKE, "model": tiny_bert, "max_seq_length": LENGTH, "train_file": "missing.txt"}
    done = accelerate_launch(ROOT / "run_mlm.py", settings, tmp_path, processes=2)
    assert done.status != 0
    assert done.err.count("run_mlm.py: error: --train_file missing.txt") == 1
    assert "exitcode  : 2" in done.err  # what the launcher says of the first that ended


def test_settings_of_the_config_file_hold_unless_typed(mlm, lines57, tmp_path):
    settings = {
        "learning_rate": "1e-3",
        "max_steps": 3,
        "line_by_line": True,
        "train_file": [str(lines57)],
        "eval_strategy": "no",
        "config_overrides": {"hidden_dropout_prob": 0},
        "lr_scheduler_type": "constant",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    mlm(config="run.yaml", max_steps=2, logging_steps=1).checked()
    assert [(entry["step"], entry["learning_rate"]) for entry in read_log(tmp_path / "out", "loss")] == [
        (1, 1e-3),
        (2, 1e-3),
    ]
    assert [entry["step"] for entry in read_log(tmp_path / "out", "eval_loss")] == [2]
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_dropout_prob"] == 0
