"""run_nsp.py killed, stopped and resumed: what it ends with is what a run that nobody disturbed ends with."""

import random
import re
import shutil
import signal
import sys
import time
from functools import partial

import numpy as np
import pytest
from helpers import (
    ALIKE,
    HALVES,
    Run,
    assert_ended_alike,
    contents,
    kill_at,
    names_of_checkpoints,
    read_log,
    read_results,
    run_script,
    signal_at,
)  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

SETTINGS = {  # with dropout
    **ALIKE,
    "max_seq_length": 48,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "learning_rate": 2e-3,
    "warmup_steps": 3,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 20,
}


@pytest.fixture
def nsp(pair_files, tmp_path):
    defaults = {**SETTINGS, **pair_files, "output_dir": tmp_path / "out"}
    return partial(run_script, "run_nsp.py", defaults, folder=tmp_path)


@pytest.fixture(scope="module")
def undisturbed(pair_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    Run("run_nsp.py", {**SETTINGS, **pair_files, "output_dir": folder / "out"}, folder).wait().checked()
    return folder / "out"


@pytest.fixture(scope="module")
def ends(undisturbed):
    """The last update of each epoch."""
    ends = [entry["step"] for entry in read_log(undisturbed, "eval_loss")]
    assert len(ends) == 3 and ends[0] >= 6
    return ends


@pytest.fixture(scope="module")
def stopped(pair_files, ends, tmp_path_factory):
    """Output folder of a run that SIGTERM stopped in its second epoch. Not to be written to."""
    folder = tmp_path_factory.mktemp("stopped")
    trap = partial(signal_at, signal.SIGTERM, ends[0] + 3, folder / "out")
    done = Run("run_nsp.py", {**SETTINGS, **pair_files, "output_dir": folder / "out"}, folder, prepare=trap).wait()
    assert done.status == 128 + signal.SIGTERM
    return folder / "out"


# ---------------------------------------------------------------- stopped and killed


@pytest.mark.parametrize(
    ("offset", "flags"), [(-2, {}), (-1, {}), (0, {}), (3, {"dataloader_num_workers": 2})], ids=str
)
def test_stopped_near_the_end_of_an_epoch_and_resumed_it_ends_bit_identical(
    nsp, undisturbed, ends, tmp_path, offset, flags
):
    out = tmp_path / "out"
    done = nsp(prepare=partial(signal_at, signal.SIGTERM, ends[0] + offset, out), **flags)
    assert done.status == 128 + signal.SIGTERM
    assert "Traceback" not in done.err
    (line,) = [line for line in done.out.splitlines() if "SIGTERM" in line]
    assert "--resume_from_checkpoint latest" in line
    step = int(re.search(r"update (\d+)", line)[1])
    assert ends[0] + offset <= step <= ends[0] + offset + 1
    assert f"checkpoint-{step}" in names_of_checkpoints(out)
    assert not (out / "model.safetensors").exists()

    done = nsp(resume_from_checkpoint="latest").checked()
    assert f"going on from {out / f'checkpoint-{step}'}" in done.out
    assert_ended_alike(out, undisturbed)


def test_two_processes_stopped_and_resumed_end_bit_identical(nsp, ends, tmp_path):
    nsp(output_dir=tmp_path / "undisturbed", **HALVES).checked()
    trap = partial(signal_at, signal.SIGTERM, ends[0], tmp_path / "out")
    assert nsp(prepare=trap, **HALVES).status == 128 + signal.SIGTERM
    nsp(resume_from_checkpoint="latest", **HALVES).checked()
    assert_ended_alike(tmp_path / "out", tmp_path / "undisturbed")


def test_begun_on_two_processes_it_goes_on_on_one(nsp, ends, tmp_path):
    no_dropout = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
    nsp(output_dir=tmp_path / "undisturbed", **no_dropout).checked()
    trap = partial(signal_at, signal.SIGTERM, ends[0] - 1, tmp_path / "out")
    assert nsp(prepare=trap, **HALVES, **no_dropout).status == 128 + signal.SIGTERM
    nsp(resume_from_checkpoint="latest", **no_dropout).checked()
    log, expected = read_log(tmp_path / "out"), read_log(tmp_path / "undisturbed")
    assert [(entry["step"], sorted(entry)) for entry in log] == [(entry["step"], sorted(entry)) for entry in expected]
    for name in ("loss", "eval_loss"):
        curves = [[entry[name] for entry in lines if name in entry] for lines in (log, expected)]
        np.testing.assert_allclose(*curves, rtol=0, atol=1e-4)


def test_killed_in_the_middle_of_a_save_it_ends_bit_identical(nsp, undisturbed, ends, tmp_path):
    name = f"checkpoint-{ends[0] // 3 * 3 + 3}"  # the first in the second epoch
    assert nsp(prepare=partial(kill_at, 3, tmp_path / "out", name)).status == -signal.SIGKILL
    assert name not in names_of_checkpoints(tmp_path / "out")
    assert "going on from" in nsp(resume_from_checkpoint="latest").checked().out
    assert_ended_alike(tmp_path / "out", undisturbed)


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments_it_ends_bit_identical(pair_files, undisturbed, tmp_path):
    chance, kills = random.Random(time.time_ns()), 0
    for attempt in range(6):
        settings = {**SETTINGS, **pair_files, "output_dir": tmp_path / str(attempt), "resume_from_checkpoint": "latest"}
        status = None
        while status != 0:
            run = Run("run_nsp.py", settings, tmp_path)
            time.sleep(chance.uniform(0.2, 0.9))
            if run.is_alive():
                run.send(signal.SIGKILL)
            status = run.wait().status
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        assert_ended_alike(tmp_path / str(attempt), undisturbed)
    assert kills


# ---------------------------------------------------------------- what a resume may not change


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ({"objective": "sop"}, ["--objective was nsp", "now sop"]),
        ({"seed": 7}, ["--seed was 42", "now 7"]),
        ({"max_seq_length": 40}, ["--max_seq_length was 48", "now 40"]),
        ({"max_train_samples": 20}, ["--max_train_samples was None", "now 20"]),
        ({"max_eval_samples": 2}, ["--max_eval_samples was None", "now 2"]),
        ({"config_overrides": "hidden_dropout_prob=0.3"}, ["--config_overrides was", "now hidden_dropout_prob=0.3"]),
        ({"per_device_train_batch_size": 4}, ["global batch was 8", "now 4"]),
        (HALVES | {"per_device_train_batch_size": 8}, ["global batch was 8", "now 16"]),
        ({"sentences_per_document": 3}, ["train was"]),
        ({"sentence_per_line": True}, ["train was"]),
        ({"document_separator": "line"}, ["train was"]),
        ({"language": "de"}, ["train was"]),
    ],
    ids=str,
)
def test_a_resume_with_other_pairs_is_refused(nsp, stopped, tmp_path, flags, fragments):
    shutil.copytree(stopped, tmp_path / "out")
    done = nsp(resume_from_checkpoint="latest", **flags)
    assert done.status == 2
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    message = done.err.rstrip().splitlines()[-1]
    for fragment in ["checkpoint-", *fragments]:
        assert fragment in message
    assert contents(tmp_path / "out") == contents(stopped)


@pytest.mark.parametrize("asked", ["latest", "checkpoint"])
def test_a_checkpoint_can_be_scored_alone(nsp, undisturbed, ends, tmp_path, asked):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    checkpoint = out / f"checkpoint-{ends[-1] // 3 * 3}"
    asked = checkpoint if asked == "checkpoint" else asked
    done = nsp(train_file=None, do_eval=True, resume_from_checkpoint=asked).checked()
    assert f"Model       {checkpoint}, " in done.out
    nsp(train_file=None, model=checkpoint, output_dir=tmp_path / "scored").checked()
    assert read_results(out / "eval-1") == read_results(tmp_path / "scored")


def test_a_finished_run_may_go_on_for_longer(nsp, undisturbed, ends, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "out")
    nsp(resume_from_checkpoint="latest", num_train_epochs=4).checked()
    steps = [entry["step"] for entry in read_log(tmp_path / "out", "loss")]
    assert steps == list(range(1, steps[-1] + 1))
    assert [entry["step"] for entry in read_log(tmp_path / "out", "eval_loss")] == [*ends, steps[-1]]
