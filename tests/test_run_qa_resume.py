"""run_qa.py killed, stopped and resumed: what it ends with is what a run that nobody disturbed ends with."""

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
    run_script,
    signal_at,
)  # fmt: skip
from transformers import AutoTokenizer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

SETTINGS = {  # with dropout; the last batch of an epoch is a single window
    **ALIKE,
    "max_seq_length": 48,
    "doc_stride": 8,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "learning_rate": 2e-3,
    "warmup_steps": 3,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 20,
}


@pytest.fixture(scope="session")
def files(qa_files):
    return {name: path for name, path in qa_files.items() if name != "negative"}


@pytest.fixture
def qa(files, tmp_path):
    defaults = {**SETTINGS, **files, "output_dir": tmp_path / "out"}
    return partial(run_script, "run_qa.py", defaults, folder=tmp_path)


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    Run("run_qa.py", {**SETTINGS, **files, "output_dir": folder / "out"}, folder).wait().checked()
    return folder / "out"


@pytest.fixture(scope="module")
def ends(undisturbed):
    """The last update of each epoch."""
    ends = [entry["step"] for entry in read_log(undisturbed, "eval_loss")]
    assert len(ends) == 3 and ends[0] >= 4
    return ends


@pytest.fixture(scope="module")
def stopped(files, ends, tmp_path_factory):
    """Output folder of a run that SIGTERM stopped in its second epoch. Not to be written to."""
    folder = tmp_path_factory.mktemp("stopped")
    trap = partial(signal_at, signal.SIGTERM, ends[0] + 2, folder / "out")
    done = Run("run_qa.py", {**SETTINGS, **files, "output_dir": folder / "out"}, folder, prepare=trap).wait()
    assert done.status == 128 + signal.SIGTERM
    return folder / "out"


@pytest.mark.parametrize(("offset", "flags"), [(-1, {}), (2, {"dataloader_num_workers": 2})], ids=str)
def test_stopped_near_the_end_of_an_epoch_and_resumed_it_ends_bit_identical(
    qa, undisturbed, ends, tmp_path, offset, flags
):
    done = qa(prepare=partial(signal_at, signal.SIGTERM, ends[0] + offset, tmp_path / "out"), **flags)
    assert done.status == 128 + signal.SIGTERM
    assert "Traceback" not in done.err
    (line,) = [line for line in done.out.splitlines() if "SIGTERM" in line]
    assert "--resume_from_checkpoint latest" in line
    step = int(re.search(r"update (\d+)", line)[1])
    assert f"checkpoint-{step}" in names_of_checkpoints(tmp_path / "out")
    qa(resume_from_checkpoint="latest").checked()
    assert_ended_alike(tmp_path / "out", undisturbed)
    for name in ("predictions.json", "nbest_predictions.json"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_killed_in_the_middle_of_a_save_it_ends_bit_identical(qa, undisturbed, ends, tmp_path):
    name = f"checkpoint-{ends[0] // 2 * 2 + 2}"  # the first in the second epoch
    assert qa(prepare=partial(kill_at, 3, tmp_path / "out", name)).status == -signal.SIGKILL
    assert name not in names_of_checkpoints(tmp_path / "out")
    qa(resume_from_checkpoint="latest").checked()
    assert_ended_alike(tmp_path / "out", undisturbed)


def test_two_processes_stopped_and_resumed_end_bit_identical(qa, ends, tmp_path):
    qa(output_dir=tmp_path / "undisturbed", **HALVES).checked()
    trap = partial(signal_at, signal.SIGTERM, ends[0], tmp_path / "out")
    assert qa(prepare=trap, **HALVES).status == 128 + signal.SIGTERM
    qa(resume_from_checkpoint="latest", **HALVES).checked()
    assert_ended_alike(tmp_path / "out", tmp_path / "undisturbed")


def test_begun_on_two_processes_it_goes_on_on_one(qa, ends, tmp_path):
    no_dropout = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
    qa(output_dir=tmp_path / "undisturbed", **no_dropout).checked()
    trap = partial(signal_at, signal.SIGTERM, ends[0] - 1, tmp_path / "out")
    assert qa(prepare=trap, **HALVES, **no_dropout).status == 128 + signal.SIGTERM
    qa(resume_from_checkpoint="latest", **no_dropout).checked()
    log, expected = read_log(tmp_path / "out"), read_log(tmp_path / "undisturbed")
    assert [(entry["step"], sorted(entry)) for entry in log] == [(entry["step"], sorted(entry)) for entry in expected]
    for name in ("loss", "eval_loss"):
        curves = [[entry[name] for entry in lines if name in entry] for lines in (log, expected)]
        np.testing.assert_allclose(*curves, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments_it_ends_bit_identical(files, undisturbed, tmp_path):
    chance, kills = random.Random(time.time_ns()), 0
    for attempt in range(6):
        settings = {**SETTINGS, **files, "output_dir": tmp_path / str(attempt), "resume_from_checkpoint": "latest"}
        status = None
        while status != 0:
            run = Run("run_qa.py", settings, tmp_path)
            time.sleep(chance.uniform(0.3, 1.2))
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
        ({"doc_stride": 9}, ["--doc_stride was 8", "now 9"]),
        ({"max_seq_length": 60}, ["--max_seq_length was 48", "now 60"]),
        ({"seed": 7}, ["--seed was 42", "now 7"]),
        ({"version_2_with_negative": True}, ["SQuAD 2.0 was False", "now True"]),
        ({"max_train_samples": 9}, ["train was", "now 9 questions"]),
        ({"tokenizer_name": "other"}, ["tokenizer was 600 tokens", "now 601 tokens"]),
        ({"optim": "sgd"}, ["--optim was adamw_torch_fused", "now sgd"]),
        ({"max_eval_samples": 2}, ["validation was"]),
        ({"per_device_train_batch_size": 4},
         ["global batch was 8", "now 4", "x --gradient_accumulation_steps, now with 1 processes"]),
        ({"config_overrides": "hidden_dropout_prob=0.3"}, ["--config_overrides was", "now hidden_dropout_prob=0.3"]),
        ({"label_smoothing_factor": 0.1}, ["--label_smoothing_factor was 0", "now 0.1"]),
    ],
    ids=str,
)
def test_a_resume_with_other_settings_is_refused(qa, stopped, answering_bert, tmp_path, flags, fragments):
    shutil.copytree(stopped, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(answering_bert)
    tokenizer.add_tokens("zzz")
    tokenizer.save_pretrained(tmp_path / "other")
    done = qa(resume_from_checkpoint="latest", **flags)
    assert done.status == 2
    assert done.err.count("error:") == 1
    assert "Traceback" not in done.err
    message = done.err.rstrip().splitlines()[-1]
    for fragment in ["checkpoint-", *fragments]:
        assert fragment in message
    assert contents(tmp_path / "out") == contents(stopped)


def test_a_finished_run_that_is_resumed_leaves_what_is_there(qa, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "out")
    qa(resume_from_checkpoint="latest").checked()
    assert_ended_alike(tmp_path / "out", undisturbed)
    for name in ("predictions.json", "nbest_predictions.json"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_training_stops_early_and_a_resume_leaves_it_at_that(qa, tmp_path):
    flags = {"learning_rate": 0.0, "num_train_epochs": 6, "early_stopping_patience": 2, "eval_strategy": "epoch",
             "save_strategy": "epoch"}  # fmt: skip
    qa(**flags).checked()
    before = contents(tmp_path / "out")
    assert len(read_log(tmp_path / "out", "eval_f1")) < 6
    qa(resume_from_checkpoint="latest", **flags).checked()
    after = contents(tmp_path / "out")
    assert {name: data for name, data in after.items() if name.suffix == ".safetensors"} == {
        name: data for name, data in before.items() if name.suffix == ".safetensors"}  # fmt: skip
