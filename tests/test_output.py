"""The output folder: a run in use is refused, a resume goes on from what is whole, and nothing else is cleared away."""

import errno
import json
import tempfile
from types import SimpleNamespace

import pytest
from helpers import contents

from utils.checkpoints import save_checkpoint
from utils.errors import InputError
from utils.output import clear_output, cut_log, open_output
from utils.runs import FIXED, Run


def save(folder, *steps, limit=9, **state):
    """Save checkpoints that hold a state, as a run does."""
    state = {"best": {}, "made_with": {}} | state
    for step in steps:
        text = json.dumps({"step": step, **state})
        save_checkpoint(folder, step, lambda aside, text=text: (aside / "state.json").write_text(text), limit)


def opened(folder, training=True, resume=None, overwrite=False):
    """Open an output folder: (name of the checkpoint or None, its state, what was said)."""
    said = []
    checkpoint, state = open_output(folder, training, resume, overwrite, said.append)
    return checkpoint and checkpoint.name, state, said


# ---------------------------------------------------------------- open_output


def test_a_new_folder_is_made_and_a_run_begins_with_nothing_done(tmp_path):
    checkpoint, state, said = opened(tmp_path / "a" / "b")
    assert (checkpoint, state["step"], said) == (None, 0, []) and (tmp_path / "a" / "b").is_dir()
    assert not (state["best"] or state["latest"] or state["initial"] or state["totals"] or state["logged"])
    assert state["run_id"] != opened(tmp_path / "c")[1]["run_id"]  # trackers tell two runs apart by it


def test_a_run_that_leaves_nothing_behind_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint, state, said = opened(None)
    assert (checkpoint, state["step"], said, contents(tmp_path)) == (None, 0, [], {})


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(InputError, match=f"--output_dir {path}: cannot be written, or is a file.*another folder"):
            opened(path)


def test_an_empty_name_of_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--output_dir"):
        opened("")


def test_a_folder_that_takes_no_files_is_refused_before_the_run(tmp_path, monkeypatch):
    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(InputError, match="cannot be written.*Read-only file system"):
        opened(tmp_path)


@pytest.mark.parametrize("left", ["model.safetensors", "checkpoint-3"])
def test_a_folder_in_use_is_refused_with_what_lies_there_and_the_three_ways_out(tmp_path, left):
    save(tmp_path, 3)
    if left == "model.safetensors":
        (tmp_path / "checkpoint-3").rename(tmp_path / "old")
        (tmp_path / left).write_bytes(b"weights")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="is in use") as refusal:
        opened(tmp_path)
    for part in (str(tmp_path / left), "--resume_from_checkpoint latest", "--overwrite_output_dir", "another folder"):
        assert part in str(refusal.value)
    assert contents(tmp_path) == before
    assert opened(tmp_path, overwrite=True)[0] is None
    assert opened(tmp_path, training=False)[0] is None  # it only looks


def test_latest_is_the_newest_whole_checkpoint_and_those_passed_over_are_named(tmp_path):
    save(tmp_path, 8, 9, 10, 11)
    (tmp_path / "checkpoint-11" / "state.json").write_text("{")
    (tmp_path / "checkpoint-10" / "manifest.json").unlink()
    checkpoint, state, said = opened(tmp_path, resume="latest")
    assert checkpoint == "checkpoint-9" and state["step"] == 9
    assert [f"checkpoint-{step} is passed over" in line for step, line
            in zip((11, 10), said, strict=True)] == [True] * 2
    assert "state.json" in said[0] and "manifest.json" in said[1]


def test_where_no_checkpoint_is_whole_the_run_starts_anew_and_says_so(tmp_path):
    assert opened(tmp_path, resume="latest")[::2] == (None, [f"Resume      there is no whole checkpoint in {tmp_path}: "
                                                             "starting anew"])  # fmt: skip
    save(tmp_path, 2)
    (tmp_path / "checkpoint-2" / "state.json").unlink()
    checkpoint, state, said = opened(tmp_path, resume="latest")
    assert checkpoint is None and state["step"] == 0 and len(said) == 2 and "starting anew" in said[1]
    (tmp_path / "model.safetensors").write_bytes(b"weights")  # but a model is not given away
    with pytest.raises(InputError, match="is in use"):
        opened(tmp_path, resume="latest")


def test_a_checkpoint_that_is_named_is_taken_though_there_are_later_ones(tmp_path):
    save(tmp_path, 2, 4, 6)
    checkpoint, state, said = opened(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert (checkpoint, state["step"], said) == ("checkpoint-4", 4, [])


@pytest.mark.parametrize("damage", ["state.json", "manifest.json", None])
def test_a_checkpoint_that_is_named_and_not_whole_is_refused(tmp_path, damage):
    save(tmp_path, 2, 4)
    if damage:
        (tmp_path / "checkpoint-4" / damage).write_bytes(b"")
    path = tmp_path / ("checkpoint-4" if damage else "checkpoint-5")
    with pytest.raises(InputError, match=f"--resume_from_checkpoint {path}: not a whole checkpoint: .*or latest"):
        opened(tmp_path, resume=str(path))


def test_a_run_can_go_on_in_another_folder_if_that_is_free(tmp_path):
    save(tmp_path / "old", 4, best={"step": 2, "eval_loss": 1.0})
    path = str(tmp_path / "old" / "checkpoint-4")
    checkpoint, state, _ = opened(tmp_path / "new", resume=path)
    assert checkpoint == "checkpoint-4" and state["step"] == 4
    assert state["best"] == {}  # its weights lie in the old folder
    save(tmp_path / "new", 1)
    with pytest.raises(InputError, match="is in use: .*checkpoint-1"):
        opened(tmp_path / "new", resume=path)


def test_the_best_score_is_taken_up_where_its_checkpoint_is_there(tmp_path):
    best = {"step": 2, "eval_loss": 1.0}
    save(tmp_path, 2, 4, best=best)
    assert opened(tmp_path, resume="latest")[1]["best"] == best


# ---------------------------------------------------------------- check_resume


FLAGS = {name: 0 for name in FIXED} | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def hold(checkpoint, before, processes=1, steps=None, step=5, **flags):
    """Hold a run with these flags against the checkpoint of an earlier one: what it notes of itself."""
    run = SimpleNamespace(task="mlm", args=SimpleNamespace(**FLAGS | flags), checkpoint=checkpoint, made_with=before)
    run.accelerator = SimpleNamespace(mixed_precision="no")
    run.step, run.num_processes, run.sum = step, processes, lambda step: [sum(steps or [step] * processes)]
    Run.check_resume(run, "bert", {"train": "57 examples"}, ["masking"])
    return run.made_with


def test_a_run_notes_what_it_is_made_with():
    noted = hold(None, {}, processes=2, step=0, masking="token", seed=3)
    assert {"train": "57 examples", "task": "mlm", "kind of model": "bert", "global batch": 16,
            "--masking": "token", "--seed": 3}.items() <= noted.items()  # fmt: skip
    assert {"--warmup_steps", "--lr_scheduler_type", "--max_grad_norm", "--learning_rate"} <= noted.keys()


def test_a_resume_with_the_same_settings_goes_on(tmp_path):
    noted = hold(None, {}, step=0, masking="token", warmup_steps=0.1)
    assert hold(tmp_path, noted, masking="token", warmup_steps=0.1) == noted


@pytest.mark.parametrize("change", [{"gradient_accumulation_steps": 4}, {"per_device_train_batch_size": 8}])
def test_a_resume_with_another_batch_is_refused_with_both_values(tmp_path, change):
    noted = hold(None, {}, step=0, masking="token")
    shared_out = {"processes": 2, "gradient_accumulation_steps": 1}
    assert hold(tmp_path, noted, masking="token", **shared_out) == noted
    with pytest.raises(InputError, match=f"{tmp_path}: global batch was 8 and is now 32.*with 2 processes"):
        hold(tmp_path, noted, processes=2, masking="token", **change)


@pytest.mark.parametrize("flag", ["masking", *FIXED])
def test_a_resume_with_another_setting_is_refused(tmp_path, flag):
    noted = hold(None, {}, step=0, **{"masking": "token", flag: 1})
    with pytest.raises(InputError, match=f"{tmp_path}: --{flag} was 1 and is now 2"):
        hold(tmp_path, noted, **{"masking": "token", flag: 2})
    del noted[f"--{flag}"]  # as of a run that knew of no such flag
    with pytest.raises(InputError, match=f"--{flag} was None and is now 1"):
        hold(tmp_path, noted, **{"masking": "token", flag: 1})


def test_processes_that_found_different_checkpoints_are_refused():
    with pytest.raises(InputError, match="different checkpoints.*shared disk"):
        hold(None, {}, processes=2, steps=[5, 0], masking="token")


# ---------------------------------------------------------------- clear_output


@pytest.fixture
def used(tmp_path):
    """A folder that a run has used, and in which a user has put files of their own."""
    save(tmp_path, 2, 4, 6)
    for name in ("tmp-checkpoint-8/state.json", "tmp-model/model.safetensors", "model.safetensors", "all_results.json",
                 "README.md", "notes/mine.txt", "checkpoint-best/mine.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "log.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (0, 2, 4, 6)))
    return tmp_path


MINE = {"README.md", "notes", "checkpoint-best"}


@pytest.mark.parametrize(
    ("step", "overwrite", "left", "steps"),
    [
        (0, True, set(), []),  # the run replaces what lay there
        (4, False, {"checkpoint-2", "checkpoint-4", "model.safetensors", "all_results.json"}, [0, 2, 4]),
        (0, False, {"checkpoint-2", "checkpoint-4", "checkpoint-6", "model.safetensors", "all_results.json"}, []),
    ],
)
def test_what_a_run_replaces_is_cleared_and_files_of_the_user_stay(used, step, overwrite, left, steps):
    clear_output(used, step, overwrite)
    assert {path.name for path in used.iterdir()} == left | MINE | {"log.jsonl"}
    assert [json.loads(line)["step"] for line in (used / "log.jsonl").read_text().splitlines()] == steps


def test_an_empty_folder_is_clear(tmp_path):
    clear_output(tmp_path, 0, False)
    clear_output(tmp_path, 0, True)
    assert not any((tmp_path / "log.jsonl").read_bytes() for _ in tmp_path.iterdir())


# ---------------------------------------------------------------- cut_log


@pytest.mark.parametrize(
    ("step", "kept"),
    [(-1, ""), (0, '{"step": 0, "a": 1}\n'), (15, '{"step": 0, "a": 1}\n{"step": 10, "b": {"c": 2}}\n'),
     (20, '{"step": 0, "a": 1}\n{"step": 10, "b": {"c": 2}}\n{"step": 20}\n{"step": 20, "eval_loss": NaN}\n')],
)  # fmt: skip
@pytest.mark.parametrize("torn", ["", '{"step": 5, "a"', '{"step": 5, "b": {"c": 2}', '{"step": 5}', '"a'])
def test_a_log_is_cut_back_to_whole_lines_up_to_the_step(tmp_path, step, kept, torn):
    log = tmp_path / "log.jsonl"
    lines = ['{"step": 0, "a": 1}', '{"step": 10, "b": {"c": 2}}', '{"step": 20}', '{"step": 20, "eval_loss": NaN}',
             '{"step": 30}']  # fmt: skip
    log.write_bytes("".join(f"{line}\n" for line in lines).encode() + torn.encode())
    cut_log(log, step)
    assert log.read_bytes() == kept.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_is_not_there_is_as_good_as_empty(tmp_path):
    cut_log(tmp_path / "log.jsonl", 7)
    assert not (tmp_path / "log.jsonl").exists() or (tmp_path / "log.jsonl").read_text() == ""


@pytest.mark.parametrize("line", ['{"loss": 1.5}', "{{}", '{"step": null}', '{"step": "3"}'])
def test_a_line_that_no_run_has_written_is_no_reason_to_fall(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n{{"step": 3}}\n')
    cut_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
