"""run_mlm.py killed, stopped and resumed: what it ends with is what a run that nobody disturbed ends with."""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import struct
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from helpers import (
    ALIKE,
    ROOT,
    Run,
    assert_ended_alike,
    command_line,
    contents,
    count_changes,
    kill_at,
    names_of_checkpoints,
    read_log,
    read_results,
    run_script,
    signal_at,
    write_manifest,
)  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

UPDATES = 16  # of 8 lines; 57 lines make 8 an epoch, the last of them of a single line
SETTINGS = {
    **ALIKE,
    "line_by_line": True,
    "max_seq_length": 32,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 2,
    "learning_rate": 5e-3,
    "warmup_steps": 3,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 3,
}
NO_DROPOUT = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_bert, prose):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "train.txt").write_text("\n".join(prose[100:157]), encoding="utf-8")
    (folder / "validation.txt").write_text("\n".join(prose[300:330]), encoding="utf-8")
    return {"model": tiny_bert, "train_file": folder / "train.txt", "validation_file": folder / "validation.txt"}


@pytest.fixture
def mlm(files, tmp_path):
    defaults = {**SETTINGS, **files, "output_dir": tmp_path / "out"}
    return partial(run_script, "run_mlm.py", defaults, folder=tmp_path)


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    Run("run_mlm.py", {**SETTINGS, **files, "output_dir": folder / "out"}, folder).wait().checked()
    assert len(read_log(folder / "out", "loss")) == UPDATES
    return folder / "out"


@pytest.fixture(scope="module")
def stopped(files, tmp_path_factory):
    """Output folder of a run that SIGTERM stopped after update 11: checkpoints 9 and 11. Not to be written to."""
    folder = tmp_path_factory.mktemp("stopped")
    settings = {**SETTINGS, **files, "output_dir": folder / "out"}
    done = Run("run_mlm.py", settings, folder, prepare=partial(signal_at, signal.SIGTERM, 10, folder / "out")).wait()
    assert done.status == 128 + signal.SIGTERM
    assert names_of_checkpoints(folder / "out") == ["checkpoint-11", "checkpoint-9"]
    return folder / "out"


# ---------------------------------------------------------------- SIGKILL


def test_killed_while_training_and_again_while_saving_it_ends_bit_identical(mlm, undisturbed, tmp_path):
    out = tmp_path / "out"
    update = random.Random(time.time_ns()).randint(2, UPDATES - 2)
    print(f"killed at update {update}")  # shown if this test fails
    done = mlm(prepare=partial(signal_at, signal.SIGKILL, update, out))
    assert done.status == -signal.SIGKILL
    assert len(read_log(out, "loss")) == update - 1

    saved = (update - 1) // SETTINGS["save_steps"] * SETTINGS["save_steps"]
    done = mlm(resume_from_checkpoint="latest", prepare=partial(kill_at, 3, out, f"checkpoint-{saved + 3}"))
    assert done.status == -signal.SIGKILL
    assert ("starting anew" in done.out) == (saved == 0)
    assert list(out.glob(f"*checkpoint-{saved + 3}"))  # it was in the middle of a save
    assert f"checkpoint-{saved + 3}" not in names_of_checkpoints(out)

    done = mlm(resume_from_checkpoint="latest").checked()
    assert (f"going on from {out / f'checkpoint-{saved}'}" in done.out) == (saved > 0)
    assert_ended_alike(out, undisturbed)


@pytest.fixture(scope="module")
def changes(files, tmp_path_factory):
    """How often an undisturbed run changes something in its output folder."""
    folder = tmp_path_factory.mktemp("counted")
    settings = {**SETTINGS, **files, "output_dir": folder / "out"}
    Run(
        "run_mlm.py", settings, folder, prepare=partial(count_changes, folder / "out", folder / "count")
    ).wait().checked()
    return int((folder / "count").read_bytes())


def assert_survives_a_kill_at(moment, mlm, undisturbed, out):
    assert mlm(output_dir=out, prepare=partial(kill_at, moment, out)).status == -signal.SIGKILL
    finished = (out / "model.safetensors").exists()  # killed after its last update, while it left its results
    mlm(output_dir=out, resume_from_checkpoint="latest").checked()
    assert_ended_alike(out, undisturbed)
    return finished


@pytest.mark.parametrize("part", range(6))
def test_killed_between_any_two_changes_to_its_files_it_ends_bit_identical(mlm, undisturbed, changes, tmp_path, part):
    assert changes > 50
    moment = random.Random(time.time_ns()).randint(changes * part // 6 + 1, changes * (part + 1) // 6)
    print(f"killed before change {moment} of {changes}")
    assert_survives_a_kill_at(moment, mlm, undisturbed, tmp_path / "out")


@pytest.mark.slow
def test_killed_before_each_change_to_its_files_it_ends_bit_identical(mlm, undisturbed, changes, tmp_path):
    for moment in range(1, changes + 1):
        print(f"killed before change {moment} of {changes}")
        assert_survives_a_kill_at(moment, mlm, undisturbed, tmp_path / str(moment))
        shutil.rmtree(tmp_path / str(moment))


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments_it_ends_bit_identical(files, undisturbed, tmp_path):
    chance, kills = random.Random(time.time_ns()), 0
    for attempt in range(8):
        settings = {**SETTINGS, **files, "output_dir": tmp_path / str(attempt), "resume_from_checkpoint": "latest"}
        status = None
        while status != 0:
            run = Run("run_mlm.py", settings, tmp_path)
            time.sleep(chance.uniform(0.2, 0.7))
            if run.is_alive():
                run.send(signal.SIGKILL)
            status = run.wait().status
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        assert_ended_alike(tmp_path / str(attempt), undisturbed)
    assert kills


def test_two_processes_killed_and_resumed_end_bit_identical(mlm, tmp_path):
    halves = {"processes": 2, "per_device_train_batch_size": 4}
    mlm(output_dir=tmp_path / "undisturbed", **halves).checked()
    done = mlm(prepare=partial(signal_at, signal.SIGKILL, 8, tmp_path / "out"), **halves)
    assert done.status == -signal.SIGKILL
    assert names_of_checkpoints(tmp_path / "out") == ["checkpoint-3", "checkpoint-6"]
    mlm(resume_from_checkpoint="latest", **halves).checked()
    assert_ended_alike(tmp_path / "out", tmp_path / "undisturbed")


def test_a_logged_mean_reaches_back_over_a_resume(mlm, tmp_path):
    # A line is the mean over five updates: when the run goes on from update 9, that of 10 needs the losses of 6 to 9.
    mlm(logging_steps=5, output_dir=tmp_path / "undisturbed").checked()
    assert (
        mlm(logging_steps=5, prepare=partial(kill_at, 1, tmp_path / "out", "checkpoint-12")).status == -signal.SIGKILL
    )
    done = mlm(logging_steps=5, resume_from_checkpoint="latest").checked()
    assert f"going on from {tmp_path / 'out' / 'checkpoint-9'}" in done.out
    assert_ended_alike(tmp_path / "out", tmp_path / "undisturbed")


def test_begun_on_two_processes_it_goes_on_on_one(mlm, tmp_path):
    halves = {"processes": 2, "per_device_train_batch_size": 4, **NO_DROPOUT}
    mlm(output_dir=tmp_path / "undisturbed", **halves).checked()
    done = mlm(prepare=partial(signal_at, signal.SIGTERM, 7, tmp_path / "out"), **halves)
    assert done.status == 128 + signal.SIGTERM  # both stopped after the same update, though one had the signal
    done = mlm(
        resume_from_checkpoint="latest", per_device_train_batch_size=4, gradient_accumulation_steps=2, **NO_DROPOUT
    )
    assert "going on from" in done.checked().out
    log, expected = read_log(tmp_path / "out"), read_log(tmp_path / "undisturbed")
    assert [(entry["step"], sorted(entry)) for entry in log] == [(entry["step"], sorted(entry)) for entry in expected]
    for name in ("loss", "eval_loss"):
        curves = [[entry[name] for entry in lines if name in entry] for lines in (log, expected)]
        np.testing.assert_allclose(*curves, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- SIGTERM and Ctrl-C


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize(
    "flags", [{}, {"dataloader_num_workers": 2}, {"processes": 2, "per_device_train_batch_size": 4}], ids=str
)
def test_a_signal_saves_and_says_how_to_resume(mlm, undisturbed, tmp_path, number, flags):
    out = tmp_path / "out"
    done = mlm(prepare=partial(signal_at, number, 10, out), **flags)
    assert done.status == 128 + number
    assert "Traceback" not in done.err
    (line,) = [line for line in done.out.splitlines() if number.name in line]
    assert "--resume_from_checkpoint latest" in line
    step = int(re.search(r"update (\d+)", line)[1])
    assert step in (10, 11)  # the update in which it came, or the next where all processes have to agree
    assert names_of_checkpoints(out)[0] == f"checkpoint-{step}"
    assert [entry["step"] for entry in read_log(out, "loss")] == list(range(1, step + 1))
    assert not (out / "model.safetensors").exists()

    assert f"going on from {out / f'checkpoint-{step}'}" in mlm(resume_from_checkpoint="latest", **flags).checked().out
    if "processes" not in flags:
        assert_ended_alike(out, undisturbed)
    assert [entry["step"] for entry in read_log(out, "loss")] == list(range(1, UPDATES + 1))


def test_a_signal_saves_where_nothing_was_to_be_saved(mlm, undisturbed, tmp_path):
    done = mlm(prepare=partial(signal_at, signal.SIGTERM, 4, tmp_path / "out"), save_strategy="no")
    assert done.status == 128 + signal.SIGTERM
    (name,) = names_of_checkpoints(tmp_path / "out")
    mlm(resume_from_checkpoint="latest", save_strategy="no").checked()
    for name in ("model.safetensors", "log.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_signal_in_the_last_update_lets_the_run_finish(mlm, undisturbed, tmp_path):
    mlm(prepare=partial(signal_at, signal.SIGTERM, UPDATES, tmp_path / "out")).checked()
    assert_ended_alike(tmp_path / "out", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_in_a_terminal_stops_a_launched_run_with_everything_saved(files, tmp_path, processes):
    import subprocess

    several = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"] if processes > 1 else []
    settings = {**SETTINGS, **files, "num_train_epochs": 500, "save_strategy": "no", "output_dir": "out"}
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *several,
        str(ROOT / "run_mlm.py"),
        *command_line(**settings),
    ]
    run = subprocess.Popen(
        words,
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "log.jsonl").exists() or len(read_log(tmp_path / "out", "loss")) < 20:
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)  # a terminal sends it to the launcher and to all that it started
        output = run.communicate(timeout=120)[0]
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode
    (name,) = names_of_checkpoints(tmp_path / "out")
    step = int(name.split("-")[1])
    assert f"Stopped by SIGINT after update {step}" in output
    assert output.count("--resume_from_checkpoint latest") == 1
    assert [entry["step"] for entry in read_log(tmp_path / "out", "loss")] == list(range(1, step + 1))


# ---------------------------------------------------------------- checkpoints that are not whole, and other ones


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", cut),
        ("model.safetensors", flip),
        ("model.safetensors", os.remove),
        ("optimizer.pt", cut),
        ("optimizer.pt", os.remove),
        ("state.json", cut),
        ("manifest.json", cut),
        ("manifest.json", os.remove),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(mlm, undisturbed, stopped, tmp_path, name, damage):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    damage(out / "checkpoint-11" / name)
    done = mlm(resume_from_checkpoint="latest").checked()
    (warning,) = [line for line in done.out.splitlines() if "passed over" in line]
    assert str(out / "checkpoint-11") in warning
    assert name in warning or name == "manifest.json"
    assert f"going on from {out / 'checkpoint-9'}" in done.out
    assert_ended_alike(out, undisturbed)


def test_latest_without_any_whole_checkpoint_starts_anew_and_says_so(mlm, undisturbed, stopped, tmp_path):
    done = mlm(resume_from_checkpoint="latest").checked()
    assert "starting anew" in done.out
    assert_ended_alike(tmp_path / "out", undisturbed)

    shutil.copytree(stopped, tmp_path / "all damaged")
    for name in names_of_checkpoints(stopped):
        cut(tmp_path / "all damaged" / name / "optimizer.pt")
    done = mlm(resume_from_checkpoint="latest", output_dir=tmp_path / "all damaged").checked()
    assert done.out.count("passed over") == 2
    assert "starting anew" in done.out
    assert (tmp_path / "all damaged" / "model.safetensors").read_bytes() == (
        undisturbed / "model.safetensors"
    ).read_bytes()


def test_a_named_checkpoint_is_taken_also_from_another_folder(mlm, undisturbed, stopped, tmp_path):
    done = mlm(resume_from_checkpoint=stopped / "checkpoint-9").checked()
    assert f"going on from {stopped / 'checkpoint-9'}" in done.out
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert [entry["step"] for entry in read_log(tmp_path / "out", "loss")] == list(range(10, UPDATES + 1))


def test_latest_is_the_newest_of_the_run_that_was_resumed_further_back(mlm, undisturbed, tmp_path):
    out = tmp_path / "out"
    mlm(save_total_limit=9).checked()
    assert (out / "checkpoint-15").exists()
    (out / "model.safetensors").unlink()
    done = mlm(
        resume_from_checkpoint=out / "checkpoint-3",
        save_total_limit=9,
        prepare=partial(signal_at, signal.SIGKILL, 8, out),
    )
    assert done.status == -signal.SIGKILL
    done = mlm(resume_from_checkpoint="latest", save_total_limit=9).checked()
    assert f"going on from {out / 'checkpoint-6'}" in done.out
    assert_ended_alike(out, undisturbed)


def test_the_best_model_may_lie_behind_a_resume_in_another_folder(mlm, prose, tmp_path):
    # Eight lines learned by heart: the score on others gets better first, then worse.
    (tmp_path / "eight.txt").write_text("\n".join(prose[100:108]), encoding="utf-8")
    settings = {"train_file": "eight.txt", "max_steps": 25, "learning_rate": 0.01, "lr_scheduler_type": "constant"}
    settings |= {"save_steps": 5, "save_total_limit": 9, "load_best_model_at_end": True, **NO_DROPOUT}
    mlm(output_dir=tmp_path / "first", **settings).checked()
    losses = {entry["step"]: entry["eval_loss"] for entry in read_log(tmp_path / "first", "eval_loss")}
    assert min(losses, key=losses.get) < 20
    mlm(resume_from_checkpoint=tmp_path / "first" / "checkpoint-20", **settings).checked()
    kept = read_results(tmp_path / "out")["eval_loss"]
    assert kept <= min(entry["eval_loss"] for entry in read_log(tmp_path / "out", "eval_loss"))
    mlm(model=tmp_path / "out", train_file=None, output_dir=tmp_path / "again").checked()
    assert read_results(tmp_path / "again")["eval_loss"] == pytest.approx(kept, rel=1e-6)


class Trap:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_from_a_stranger_runs_no_code(mlm, stopped, tmp_path):
    shutil.copytree(stopped / "checkpoint-11", tmp_path / "checkpoint-11")
    state = torch.load(tmp_path / "checkpoint-11" / "optimizer.pt", weights_only=True)
    torch.save(state | {"trap": Trap(tmp_path / "sprung")}, tmp_path / "checkpoint-11" / "optimizer.pt")
    write_manifest(tmp_path / "checkpoint-11")
    done = mlm(resume_from_checkpoint=tmp_path / "checkpoint-11")
    assert done.status > 0
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ({"per_device_train_batch_size": 4}, ["global batch", "8", "4"]),
        ({"gradient_accumulation_steps": 2}, ["global batch", "8", "16"]),
        ({"processes": 2}, ["global batch", "8", "16"]),
        ({"train_file": "other"}, ["data", "text"]),
        ({"max_seq_length": 24}, ["text"]),
        ({"line_by_line": False}, ["text"]),
        ({"max_train_samples": 20}, ["20"]),
        ({"seed": 7}, ["seed", "42", "7"]),
        ({"config_overrides": "hidden_dropout_prob=0.3"}, ["--config_overrides was", "now hidden_dropout_prob=0.3"]),
    ],
    ids=str,
)
def test_a_resume_with_another_batch_or_other_data_is_refused(mlm, files, stopped, tmp_path, flags, fragments):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    if "train_file" in flags:
        lines = files["train_file"].read_text(encoding="utf-8").splitlines()
        (tmp_path / "other.txt").write_text("\n".join(reversed(lines)), encoding="utf-8")
        flags = {"train_file": tmp_path / "other.txt"}
    done = mlm(resume_from_checkpoint="latest", **flags)
    assert done.status == 2
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    message = done.err.rstrip().splitlines()[-1]
    assert "checkpoint-11" in message
    assert any(fragment in message for fragment in fragments[:2])
    assert contents(out) == contents(stopped)


@pytest.mark.parametrize("damage", [cut, os.remove])
def test_a_named_checkpoint_that_is_not_whole_is_refused(mlm, stopped, tmp_path, damage):
    shutil.copytree(stopped, tmp_path / "out")
    damage(tmp_path / "out" / "checkpoint-11" / "optimizer.pt")
    before = contents(tmp_path / "out")
    done = mlm(resume_from_checkpoint=tmp_path / "out" / "checkpoint-11")
    assert done.status == 2
    assert "optimizer.pt" in done.err
    assert contents(tmp_path / "out") == before


def test_a_finished_run_resumed_stays_as_it_is(mlm, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "out")
    mlm(resume_from_checkpoint="latest", save_total_limit=3).checked()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    results, expected = read_results(tmp_path / "out"), read_results(undisturbed)
    assert all(results[name] == expected[name] for name in expected if not name.startswith("train_"))


def test_a_resume_may_go_on_for_longer(mlm, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "out")
    mlm(resume_from_checkpoint="latest", num_train_epochs=3).checked()
    assert [entry["step"] for entry in read_log(tmp_path / "out", "loss")] == list(range(1, 25))


def test_overwrite_output_dir_begins_anew(mlm, undisturbed, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "out")
    mlm(overwrite_output_dir=True).checked()
    assert_ended_alike(tmp_path / "out", undisturbed)


# ---------------------------------------------------------------- trackers


def wandb_records(path):
    """Read the records of an offline run: LevelDB's log format, in blocks of 32 KiB, around protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part = (part if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a record as a whole, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record


@pytest.fixture(scope="module")
def tracked(files, tmp_path_factory):
    """Folder of a run with all trackers that was stopped in update 7, and resumed."""
    folder = tmp_path_factory.mktemp("tracked")
    settings = {
        **SETTINGS,
        **files,
        "output_dir": folder / "out",
        "report_to": ["tensorboard", "trackio", "wandb"],
        "run_name": "a run",
    }
    env = {"TRACKIO_DIR": folder / "trackio", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    trap = partial(signal_at, signal.SIGTERM, 7, folder / "out")
    assert Run("run_mlm.py", settings, folder, env=env, prepare=trap).wait().status == 128 + signal.SIGTERM
    Run("run_mlm.py", settings | {"resume_from_checkpoint": "latest"}, folder, env=env).wait().checked()
    return folder


def test_tensorboard_shows_each_update_once_and_the_final_scores(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = {}
    for folder in {path.parent for path in (tracked / "out").rglob("events.out.tfevents.*")}:
        accumulator = EventAccumulator(str(folder), {"scalars": 0}).Reload()
        for tag in accumulator.Tags()["scalars"]:
            events.setdefault(tag, []).extend((event.step, event.value) for event in accumulator.Scalars(tag))
    expected = [(entry["step"], entry["loss"]) for entry in read_log(tracked / "out", "loss")]
    assert [step for step, _ in events["loss"]] == [step for step, _ in expected] == list(range(1, UPDATES + 1))
    np.testing.assert_allclose([loss for _, loss in events["loss"]], [loss for _, loss in expected], rtol=1e-6)
    assert events["perplexity"][-1] == (UPDATES, pytest.approx(read_results(tracked / "out")["perplexity"], rel=1e-6))


def test_trackio_goes_on_with_the_same_run(tracked):
    (path,) = (tracked / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        configs = database.execute("SELECT config FROM configs").fetchall()
    assert len({run_id for run_id, *_ in rows}) == 1
    assert {name for _, name, *_ in rows} == {"a run"}
    logged = [(step, json.loads(metrics)) for _, _, step, metrics in rows]
    assert [step for step, metrics in logged if "loss" in metrics] == list(range(1, UPDATES + 1))
    assert logged[-1][1]["perplexity"] == pytest.approx(read_results(tracked / "out")["perplexity"])
    assert json.loads(configs[-1][0])["learning_rate"] == SETTINGS["learning_rate"]


def test_wandb_offline_goes_on_with_the_same_run(tracked):
    paths = sorted((tracked / "out" / "wandb").glob("offline-run-*/run-*.wandb"))
    records = [list(wandb_records(path)) for path in paths]
    runs = [record.run for part in records for record in part if record.WhichOneof("record_type") == "run"]
    assert len(runs) == 2
    assert len({run.run_id for run in runs}) == 1
    assert {run.display_name for run in runs} == {"a run"}
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for part in records
        for record in part
        if record.WhichOneof("record_type") == "history"
    ]
    assert [entry["_step"] for entry in history if "loss" in entry] == list(range(1, UPDATES + 1))
    assert history[-1]["perplexity"] == pytest.approx(read_results(tracked / "out")["perplexity"])
