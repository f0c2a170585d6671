"""run_pretraining.py killed, stopped and resumed: it ends with what a run that nobody disturbed ends with."""

import random
import re
import shutil
import signal
import sys
import time
from functools import partial

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
    run_script,
    signal_at,
)  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

SETTINGS = {  # with dropout; pairs are packed anew each epoch, in which there are more or fewer of them
    **ALIKE,
    "masking": "whole_word",
    "nsp_weight": 0.5,
    "max_seq_length": 48,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "learning_rate": 2e-3,
    "warmup_steps": 3,
    "logging_steps": 2,  # means of two updates, which a stop can part
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 20,
}


@pytest.fixture
def pretraining(pair_files, tmp_path):
    defaults = {**SETTINGS, **pair_files, "output_dir": tmp_path / "out"}
    return partial(run_script, "run_pretraining.py", defaults, folder=tmp_path)


@pytest.fixture(scope="module")
def undisturbed(pair_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    Run("run_pretraining.py", {**SETTINGS, **pair_files, "output_dir": folder / "out"}, folder).wait().checked()
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
    trap = partial(signal_at, signal.SIGTERM, ends[0] // 2 + 3, folder / "out")
    settings = {**SETTINGS, **pair_files, "output_dir": folder / "out"}
    assert Run("run_pretraining.py", settings, folder, prepare=trap).wait().status == 128 + signal.SIGTERM
    return folder / "out"


@pytest.mark.parametrize("line", [0, 1, 2], ids=lambda line: f"line {line:+} from the end of the epoch")
def test_stopped_and_resumed_it_ends_bit_identical(pretraining, undisturbed, ends, tmp_path, line):
    out = tmp_path / "out"
    done = pretraining(prepare=partial(signal_at, signal.SIGTERM, ends[0] // 2 + line, out))
    assert done.status == 128 + signal.SIGTERM
    step = int(re.search(r"Stopped by SIGTERM after update (\d+)", done.out)[1])
    assert f"checkpoint-{step}" in names_of_checkpoints(out)
    assert f"going on from {out / f'checkpoint-{step}'}" in pretraining(resume_from_checkpoint="latest").checked().out
    assert_ended_alike(out, undisturbed)


def test_two_processes_stopped_and_resumed_end_bit_identical(pretraining, ends, tmp_path):
    pretraining(output_dir=tmp_path / "undisturbed", **HALVES).checked()
    trap = partial(signal_at, signal.SIGTERM, ends[0] // 2, tmp_path / "out")
    assert pretraining(prepare=trap, **HALVES).status == 128 + signal.SIGTERM
    pretraining(resume_from_checkpoint="latest", **HALVES).checked()
    assert_ended_alike(tmp_path / "out", tmp_path / "undisturbed")


def test_killed_in_the_middle_of_a_save_it_ends_bit_identical(pretraining, undisturbed, ends, tmp_path):
    name = f"checkpoint-{ends[0] // 3 * 3 + 3}"  # the first in the second epoch
    assert pretraining(prepare=partial(kill_at, 3, tmp_path / "out", name)).status == -signal.SIGKILL
    assert name not in names_of_checkpoints(tmp_path / "out")
    assert "going on from" in pretraining(resume_from_checkpoint="latest").checked().out
    assert_ended_alike(tmp_path / "out", undisturbed)


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments_it_ends_bit_identical(pair_files, undisturbed, tmp_path):
    chance, kills = random.Random(time.time_ns()), 0
    for attempt in range(6):
        settings = {**SETTINGS, **pair_files, "output_dir": tmp_path / str(attempt), "resume_from_checkpoint": "latest"}
        status = None
        while status != 0:
            run = Run("run_pretraining.py", settings, tmp_path)
            time.sleep(chance.uniform(0.2, 0.9))
            if run.is_alive():
                run.send(signal.SIGKILL)
            status = run.wait().status
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        assert_ended_alike(tmp_path / str(attempt), undisturbed)
    assert kills


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ({"objective": "sop"}, ["--objective was nsp", "now sop"]),
        ({"pair_unit": "sentence"}, ["--pair_unit was segment", "now sentence"]),
        ({"short_seq_prob": 0.2}, ["--short_seq_prob was 0.1", "now 0.2"]),
        ({"seed": 7}, ["--seed was 42", "now 7"]),
        ({"masking": "token"}, ["--masking was whole_word", "now token"]),
        ({"mlm_probability": 0.2}, ["--mlm_probability was 0.15", "now 0.2"]),
        ({"mask_replace_prob": 0.9}, ["--mask_replace_prob was 0.8", "now 0.9"]),
        ({"random_replace_prob": 0}, ["--random_replace_prob was 0.1", "now 0"]),
        ({"mlm_weight": 2}, ["--mlm_weight was 1.0", "now 2"]),
        ({"nsp_weight": 1}, ["--nsp_weight was 0.5", "now 1"]),
        ({"max_eval_samples": 2}, ["--max_eval_samples was None", "now 2"]),
        ({"config_overrides": "hidden_dropout_prob=0.3"}, ["--config_overrides was", "now hidden_dropout_prob=0.3"]),
        ({"processes": 2}, ["global batch was 8", "now 16"]),
        ({"sentences_per_document": 3}, ["train was"]),
    ],
    ids=str,
)
def test_a_resume_with_another_task_is_refused(pretraining, stopped, tmp_path, flags, fragments):
    shutil.copytree(stopped, tmp_path / "out")
    done = pretraining(resume_from_checkpoint="latest", **flags)
    assert done.status == 2
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    message = done.err.rstrip().splitlines()[-1]
    for fragment in ["checkpoint-", *fragments]:
        assert fragment in message
    assert contents(tmp_path / "out") == contents(stopped)
