"""Checkpoints: whole or not counted, in their order, and only so many of them."""

import hashlib
import json
import shutil

import pytest
from helpers import write_manifest

from utils.checkpoints import checkpoint_fault, hash_folder, list_checkpoints, save_checkpoint, step_of
from utils.output import clear_output

WEIGHTS, STATE = bytes(range(256)) * 5, b'{"step": 7}'


def write(folder):
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "state.json").write_bytes(STATE)


def save(output_dir, *steps, limit=2, keep=None):
    for step in steps:
        save_checkpoint(output_dir, step, write, limit, keep)


def names(output_dir):
    return sorted(path.name for path in output_dir.iterdir())


@pytest.fixture
def checkpoint(tmp_path):
    save(tmp_path, 7)
    return tmp_path / "checkpoint-7"


# ---------------------------------------------------------------- manifest and faults


def test_a_saved_checkpoint_is_whole_and_has_what_was_written(checkpoint):
    assert checkpoint_fault(checkpoint) is None
    assert names(checkpoint) == ["manifest.json", "model.safetensors", "state.json"]
    assert (checkpoint / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8")) == {
        "model.safetensors": hashlib.sha256(WEIGHTS).hexdigest(),
        "state.json": hashlib.sha256(STATE).hexdigest(),
    }


@pytest.mark.parametrize("size", [0, 1, 1279])
def test_a_truncated_file_is_named(checkpoint, size):
    (checkpoint / "model.safetensors").write_bytes(WEIGHTS[:size])
    assert checkpoint_fault(checkpoint) == "model.safetensors is missing, or not what was written"


@pytest.mark.parametrize("at", [0, 700, 1279])
def test_a_changed_byte_is_noticed_and_its_file_named(checkpoint, at):
    (checkpoint / "model.safetensors").write_bytes(WEIGHTS[:at] + bytes([WEIGHTS[at] ^ 1]) + WEIGHTS[at + 1 :])
    assert checkpoint_fault(checkpoint) == "model.safetensors is missing, or not what was written"


def test_all_files_at_fault_are_named(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "state.json").write_bytes(b"")
    assert checkpoint_fault(checkpoint) == "model.safetensors, state.json is missing, or not what was written"


@pytest.mark.parametrize("missing", ["model.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_named(checkpoint, missing):
    (checkpoint / missing).unlink()
    fault = checkpoint_fault(checkpoint)
    assert "missing" in fault and missing in fault


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"files": {"model.safe',
        b"\0" * 300,
        b'{"files": "\xff"}',
        b'{"files": {}}',
        b"[]",
        b"null",
        b"{}",
        b"5",
        b'""',
        b'"state.json"',
    ],
)
def test_a_damaged_manifest_is_named(checkpoint, content):
    (checkpoint / "manifest.json").write_bytes(content)
    assert "manifest.json" in (checkpoint_fault(checkpoint) or "")


@pytest.mark.parametrize(
    "content", [{"state.json": 5}, {"state.json": None}, {"state.json": ""}, {"other.json": "ab" * 32}]
)
def test_a_manifest_of_other_files_or_hashes_does_not_agree(checkpoint, content):
    (checkpoint / "manifest.json").write_text(json.dumps(content))
    assert f"{next(iter(content))} is missing, or not what was written" in checkpoint_fault(checkpoint)


def test_the_hashes_are_those_of_the_files_but_for_the_manifest_itself(checkpoint):
    hashes = hash_folder(checkpoint)
    assert hashes == json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").unlink()
    assert hash_folder(checkpoint) == hashes


def test_a_folder_that_is_not_there_has_a_fault(tmp_path):
    assert checkpoint_fault(tmp_path / "checkpoint-3") is not None


def test_a_manifest_can_vouch_for_files_that_are_written_otherwise(tmp_path):
    write(tmp_path)
    write_manifest(tmp_path)
    assert checkpoint_fault(tmp_path) is None


# ---------------------------------------------------------------- which there are


def test_checkpoints_are_listed_by_number_and_nothing_else_is_listed(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100"):
        (tmp_path / name).mkdir()
    for name in ("tmp-checkpoint-11", "tmp-old-checkpoint-8", "my-checkpoint-1", "checkpoint-", "checkpoint-best",
                 "checkpoint-1-2", "checkpoint-12.tmp", "runs"):  # fmt: skip
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


@pytest.mark.parametrize(
    ("name", "step"),
    [("checkpoint-10", 10), ("checkpoint-007", 7), ("checkpoint-", None), ("checkpoint-1.5", None),
     ("tmp-checkpoint-3", None), ("checkpoint-3.tmp", None), ("checkpoint--3", None), ("checkpoint-3\n", None)],
)  # fmt: skip
def test_the_step_of_a_checkpoint_is_that_of_its_name(tmp_path, name, step):
    assert step_of(tmp_path / name) == step


def test_a_folder_that_is_not_there_has_no_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path / "never") == []


# ---------------------------------------------------------------- saving


def test_the_output_folder_is_made(tmp_path):
    save(tmp_path / "a" / "b", 1)
    assert names(tmp_path / "a" / "b") == ["checkpoint-1"]


def test_a_writer_that_fails_leaves_no_checkpoint_and_takes_none_away(tmp_path):
    def fail(folder):
        write(folder)
        raise OSError("disk full")

    save(tmp_path, 1, 2)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 3, fail, limit=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert all(checkpoint_fault(path) is None for path in list_checkpoints(tmp_path))


def test_what_a_kill_left_half_written_does_not_get_into_the_next_checkpoint(tmp_path):
    (tmp_path / "tmp-checkpoint-3").mkdir()
    (tmp_path / "tmp-checkpoint-3" / "stale").write_text("half")
    save(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-3"]
    assert names(tmp_path / "checkpoint-3") == ["manifest.json", "model.safetensors", "state.json"]


def test_a_damaged_checkpoint_of_the_same_name_is_replaced(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    (checkpoint / "stale").write_bytes(b"of an earlier run")
    save(tmp_path, 7)
    assert checkpoint_fault(checkpoint) is None
    assert names(tmp_path) == ["checkpoint-7"]
    assert names(checkpoint) == ["manifest.json", "model.safetensors", "state.json"]


def test_older_checkpoints_go_only_when_the_new_one_is_whole(tmp_path):
    def look(folder):
        seen.extend(path.name for path in list_checkpoints(tmp_path))
        write(folder)

    seen = []
    save(tmp_path, 1, limit=1)
    save_checkpoint(tmp_path, 2, look, limit=1)
    assert seen == ["checkpoint-1"]
    assert names(tmp_path) == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("limit", "left"),
    [(1, [[1], [2], [3], [4], [5], [6]]),
     (2, [[1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6]]),
     (3, [[1], [1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]),
     (4, [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]),
     (9, [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]])],
)  # fmt: skip
def test_the_newest_stay_up_to_the_limit(tmp_path, limit, left):
    found = []
    for step in range(1, 7):
        save(tmp_path, step, limit=limit)
        found.append([int(path.name.split("-")[1]) for path in list_checkpoints(tmp_path)])
    assert found == left
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left[-1]]  # and nothing lies about


def test_the_oldest_is_the_one_with_the_lowest_number(tmp_path):
    save(tmp_path, 9, 10, 11)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(1, 1, [1, 5]), (2, 1, [1, 5]), (3, 1, [1, 4, 5]), (4, 1, [1, 3, 4, 5]),
     (5, 1, [1, 2, 3, 4, 5]), (6, 1, [1, 2, 3, 4, 5]), (2, 3, [3, 5]), (3, 3, [3, 4, 5]),
     (2, 4, [4, 5]), (1, 5, [5]), (2, 5, [4, 5]), (3, 5, [3, 4, 5])],
)  # fmt: skip
def test_the_best_stays_whatever_its_age_and_counts(tmp_path, limit, best, left):
    save(tmp_path, 1, 2, 3, 4, limit=9)
    save(tmp_path, 5, limit=limit, keep=f"checkpoint-{best}")
    assert [int(path.name.split("-")[1]) for path in list_checkpoints(tmp_path)] == left


def test_a_best_one_that_is_no_longer_there_takes_no_place(tmp_path):
    save(tmp_path, 1, 2, 3, keep="checkpoint-99")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_folders_without_a_manifest_are_neither_counted_nor_removed(tmp_path):
    """As those that another program has left there."""
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "mine.txt").write_text("mine")
    save(tmp_path, 2, 3, 4)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert names(tmp_path / "checkpoint-1") == ["mine.txt"]


def test_a_kill_while_an_old_one_is_removed_leaves_nothing_for_good(tmp_path, monkeypatch):
    def killed(folder, **_):
        if folder.name.endswith("checkpoint-1"):
            (folder / "manifest.json").unlink()
            raise KeyboardInterrupt

    save(tmp_path, 1, 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        save(tmp_path, 3)
    clear_output(tmp_path, 3, overwrite=False)  # as the resume does
    save(tmp_path, 4)
    assert [name for name in names(tmp_path) if "checkpoint" in name] == ["checkpoint-3", "checkpoint-4"]
