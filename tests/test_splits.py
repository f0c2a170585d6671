"""Splits: what each is made of, and what is refused where there are no data for what the run is to do."""

import json
from argparse import Namespace

import pytest
from datasets import config

from utils.errors import InputError
from utils.splits import choose_parts, load_splits


def parts_of(*splits, percent=10, best=False, **tasks):
    """What choose_parts makes of the splits there are: dict of split to (source, part)."""
    flags = dict.fromkeys(("do_train", "do_eval", "do_predict"), False) | tasks
    args = Namespace(**flags, validation_split_percentage=percent, load_best_model_at_end=best)
    return choose_parts({split: f"from {split}" for split in splits}, args)


def test_what_there_is_is_taken_whole():
    parts = parts_of("train", "validation", "test", do_train=True, do_eval=True, do_predict=True)
    assert parts == {split: (f"from {split}", ("all", 0)) for split in ("train", "validation", "test")}


@pytest.mark.parametrize("do_eval", [False, True])
def test_validation_data_are_drawn_from_the_training_data_where_there_are_none(do_eval):
    parts = parts_of("train", percent=2.5, do_train=True, do_eval=do_eval)
    assert parts == {"train": ("from train", ("rest", 2.5)), "validation": ("from train", ("drawn", 2.5))}


def test_an_evaluation_alone_takes_the_same_rows_as_the_training_would_set_apart():
    assert parts_of("train", do_eval=True) == {"validation": ("from train", ("drawn", 10))}


def test_0_percent_sets_nothing_apart():
    assert parts_of("train", percent=0, do_train=True, do_eval=True) == {"train": ("from train", ("all", 0))}
    with pytest.raises(InputError, match="--do_eval has no data: give --validation_file"):
        parts_of("train", percent=0, do_eval=True)


def test_the_training_data_are_left_out_where_nothing_is_trained():
    assert list(parts_of("train", "validation", do_eval=True)) == ["validation"]
    assert list(parts_of("train", "validation", "test", do_predict=True)) == ["test"]


@pytest.mark.parametrize(
    ("splits", "tasks", "flag", "split"),
    [
        (["validation"], {"do_train": True}, "--do_train", "train"),
        (["test"], {"do_eval": True}, "--do_eval", "validation"),
        (["train", "validation"], {"do_train": True, "do_predict": True}, "--do_predict", "test"),
        ([], {"do_predict": True}, "--do_predict", "test"),
    ],
)
def test_a_task_without_data_is_refused_with_its_flag_and_the_split_that_is_missing(splits, tasks, flag, split):
    with pytest.raises(InputError, match=f"^{flag} has no data: give --{split}_file, or .* named {split}$"):
        parts_of(*splits, **tasks)


def test_a_run_without_any_data_is_refused():
    with pytest.raises(InputError, match="there are no data to prepare"):
        parts_of()
    with pytest.raises(InputError, match="there are no data to prepare"):
        parts_of("train")  # to do nothing with


def test_the_best_model_needs_validation_data():
    assert "validation" in parts_of("train", best=True, do_train=True)
    with pytest.raises(InputError, match="--load_best_model_at_end has nothing to tell the best by"):
        parts_of("train", percent=0, best=True, do_train=True)


def test_a_folder_is_loaded_as_its_splits_and_what_is_none_is_blamed(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{split}.jsonl").write_text(json.dumps({"text": split}) + "\n")
    loaded = load_splits(str(tmp_path / "set"), None)
    assert {split: rows["text"][:] for split, rows in loaded.items()} == {"train": ["train"], "test": ["test"]}
    for name, other in ((str(tmp_path / "none"), None), (str(tmp_path / "set"), "german")):
        with pytest.raises(InputError, match=f"--dataset_name {name}: cannot be loaded: .*--train_file"):
            load_splits(name, other)
