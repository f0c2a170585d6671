"""run_ner.py killed, stopped and resumed: what it ends with is what a run that nobody disturbed ends with."""

import re
import shutil
import signal
import sys
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
    read_results,
    run_script,
    signal_at,
    tagged,
    write_conll,
)  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

SETTINGS = {  # with dropout; five updates an epoch, the last of them smaller
    **ALIKE,
    "max_seq_length": 48,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "learning_rate": 3e-3,
    "warmup_steps": 3,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_total_limit": 20,
}


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("given")
    return {
        "model": tiny_bert,
        "train_file": write_conll(folder / "train.conll", tagged(37, seed=0)),
        "validation_file": write_conll(folder / "dev.conll", tagged(15, seed=1)),
    }


@pytest.fixture
def ner(given, tmp_path):
    defaults = {**SETTINGS, **given, "output_dir": tmp_path / "out"}
    return partial(run_script, "run_ner.py", defaults, folder=tmp_path)


@pytest.fixture(scope="module")
def undisturbed(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = {**SETTINGS, **given, "test_file": given["validation_file"], "output_dir": folder / "out"}
    Run("run_ner.py", settings, folder).wait().checked()
    return folder / "out"


@pytest.fixture(scope="module")
def killed(given, tmp_path_factory):
    """Output folder of a run that SIGKILL ended in its third epoch, two checkpoints in it. Not to be written to."""
    folder = tmp_path_factory.mktemp("killed")
    trap = partial(signal_at, signal.SIGKILL, 12, folder / "out")
    settings = {**SETTINGS, **given, "test_file": given["validation_file"], "output_dir": folder / "out"}
    assert Run("run_ner.py", settings, folder, prepare=trap).wait().status == -signal.SIGKILL
    assert names_of_checkpoints(folder / "out") == ["checkpoint-10", "checkpoint-5"]
    return folder / "out"


def assert_resumed(done, out, step):
    done.checked()
    assert str(out / f"checkpoint-{step}") in re.search(r"^Model .*", done.out, re.MULTILINE)[0]
    assert [entry["step"] for entry in read_log(out, "loss")] == list(range(1, len(read_log(out, "loss")) + 1))


# ---------------------------------------------------------------- killed and stopped


@pytest.mark.parametrize("missing", [None, "optimizer.pt"])
def test_killed_in_training_it_ends_bit_identical_even_if_the_newest_checkpoint_is_half_a_one(
    ner, given, undisturbed, killed, tmp_path, missing
):
    shutil.copytree(killed, tmp_path / "out")
    if missing:
        (tmp_path / "out" / "checkpoint-10" / missing).unlink()
    done = ner(resume_from_checkpoint="latest", test_file=given["validation_file"])
    assert_resumed(done, tmp_path / "out", 5 if missing else 10)
    warned = re.findall(r"^Warning .*checkpoint-10 is passed over: (.*)", done.out, re.MULTILINE)
    assert len(warned) == bool(missing) and all(missing in line for line in warned)
    assert_ended_alike(tmp_path / "out", undisturbed)
    for name in ("predictions.conll", "predictions.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_killed_in_the_middle_of_a_save_it_ends_bit_identical(ner, given, undisturbed, tmp_path):
    out = tmp_path / "out"
    assert ner(prepare=partial(kill_at, 3, out, "checkpoint-10")).status == -signal.SIGKILL
    assert names_of_checkpoints(out) == ["checkpoint-5"] and list(out.glob("tmp-*"))
    assert_resumed(ner(resume_from_checkpoint="latest", test_file=given["validation_file"]), out, 5)
    assert_ended_alike(out, undisturbed)


def test_stopped_by_sigterm_at_the_end_of_an_epoch_it_saves_and_ends_bit_identical(ner, given, undisturbed, tmp_path):
    out, update = tmp_path / "out", 5
    done = ner(prepare=partial(signal_at, signal.SIGTERM, update, out))
    assert done.status == 128 + signal.SIGTERM
    assert "Traceback" not in done.err
    (line,) = [line for line in done.out.splitlines() if "SIGTERM" in line]
    assert "--resume_from_checkpoint latest" in line
    step = int(re.search(r"update (\d+)", line)[1])
    assert update <= step <= update + 1 and f"checkpoint-{step}" in names_of_checkpoints(out)
    assert not (out / "model.safetensors").exists()
    assert_resumed(ner(resume_from_checkpoint="latest", test_file=given["validation_file"]), out, step)
    assert_ended_alike(out, undisturbed)


def test_two_processes_stopped_and_resumed_end_bit_identical(ner, tmp_path):
    ner(output_dir=tmp_path / "undisturbed", **HALVES).checked()
    assert ner(prepare=partial(signal_at, signal.SIGTERM, 7, tmp_path / "out"), **HALVES).status == 128 + signal.SIGTERM
    ner(resume_from_checkpoint="latest", **HALVES).checked()
    assert_ended_alike(tmp_path / "out", tmp_path / "undisturbed")


# ---------------------------------------------------------------- stopped early, or finished


@pytest.fixture(scope="module")
def stopped_early(given, tmp_path_factory):
    """(flags, output folder) of a run that stops after two epochs without a better model. Not to be written to."""
    folder = tmp_path_factory.mktemp("stopped_early")
    flags = {"early_stopping_patience": 2, "learning_rate": 1e-7, "num_train_epochs": 6}  # no model is better
    settings = {**SETTINGS, **given, **flags, "output_dir": folder / "out"}
    Run("run_ner.py", settings, folder).wait().checked()
    assert [entry["step"] for entry in read_log(folder / "out", "eval_f1")] == [5, 10, 15]
    return flags, folder / "out"


def test_early_stopping_goes_on_counting_after_a_resume(ner, stopped_early, tmp_path):
    flags, expected = stopped_early
    assert ner(prepare=partial(signal_at, signal.SIGKILL, 12, tmp_path / "out"), **flags).status == -signal.SIGKILL
    assert_resumed(ner(resume_from_checkpoint="latest", **flags), tmp_path / "out", 10)
    assert_ended_alike(tmp_path / "out", expected)


def test_a_run_that_stopped_early_does_not_train_on_when_it_is_resumed(ner, stopped_early, tmp_path):
    flags, expected = stopped_early
    shutil.copytree(expected, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()  # as if it had been killed just before it left its model
    ner(resume_from_checkpoint="latest", **flags).checked()
    assert_ended_alike(tmp_path / "out", expected)


def test_a_finished_run_that_is_resumed_leaves_all_as_it_was(ner, given, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "out")
    for name in ("all_results.json", "predictions.jsonl", "predictions.conll"):
        (tmp_path / "out" / name).unlink()
    ner(resume_from_checkpoint="latest", test_file=given["validation_file"]).checked()
    results, expected = read_results(tmp_path / "out"), read_results(undisturbed)
    of_training = {"train_runtime", "train_samples_per_second"}
    assert results == {name: value for name, value in expected.items() if name not in of_training}
    for name in ("model.safetensors", "log.jsonl", "predictions.jsonl", "predictions.conll"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name
    tables = [re.findall(r"^\|.*", (out / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
              for out in (tmp_path / "out", undisturbed)]  # fmt: skip
    assert tables[0] == tables[1]


# ---------------------------------------------------------------- rounds of pseudo-labelling


def test_killed_in_the_second_round_of_pseudo_labelling_it_ends_bit_identical(given, tmp_path):
    words = [" ".join(word for word, _ in sentence) for sentence in tagged(30, seed=7, longest=5)]
    (tmp_path / "unlabelled.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    flags = {"unlabeled_file": tmp_path / "unlabelled.txt", "pseudo_label_threshold": 0.3, "num_train_epochs": 12}
    flags |= {"early_stopping_patience": 1, "metric_for_best_model": "loss", "learning_rate": 0.05}
    settings = {**SETTINGS, **given, **flags, "save_total_limit": 2}
    Run("run_ner.py", settings | {"output_dir": tmp_path / "undisturbed"}, tmp_path).wait().checked()
    assert len(read_log(tmp_path / "undisturbed" / "round-0", "eval_f1")) < 12  # it stopped early

    out = tmp_path / "out"
    trap = partial(signal_at, signal.SIGKILL, 12, out / "round-1")
    assert Run("run_ner.py", settings | {"output_dir": out}, tmp_path, prepare=trap).wait().status == -signal.SIGKILL
    assert names_of_checkpoints(out / "round-1")
    resumed = settings | {"output_dir": out, "resume_from_checkpoint": "latest"}
    done = Run("run_ner.py", resumed, tmp_path).wait().checked()
    assert f"{out / 'round-1' / 'checkpoint-'}" in done.out and "starting anew" not in done.out
    for name in ("round-0/log.jsonl", "round-1/pseudo_labelled.conll", "round-1/log.jsonl", "model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    for name in ("pseudo_label_rounds", "eval_f1", "eval_loss", "per_entity"):
        assert read_results(out)[name] == read_results(tmp_path / "undisturbed")[name]
    before = (out / "model.safetensors").read_bytes()
    Run("run_ner.py", resumed, tmp_path).wait().checked()  # it is finished
    assert (out / "model.safetensors").read_bytes() == before


# ---------------------------------------------------------------- what a resume may not change


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ({"per_device_train_batch_size": 4}, ["global batch was 8", "now 4"]),
        ({"class_weights": "balanced"}, ["--class_weights was None", "now balanced"]),
        ({"freeze_layers": 1}, ["--freeze_layers was 0", "now 1"]),
        ({"max_train_samples": 20}, ["train was"]),
    ],
    ids=str,
)
def test_a_resume_with_other_settings_is_refused(ner, killed, tmp_path, flags, fragments):
    shutil.copytree(killed, tmp_path / "out")
    done = ner(resume_from_checkpoint="latest", **flags)
    assert done.status == 2
    assert "Traceback" not in done.err and done.err.count("error:") == 1
    message = done.err.rstrip().splitlines()[-1]
    for fragment in ["checkpoint-10", *fragments]:
        assert fragment in message
    assert contents(tmp_path / "out") == contents(killed)
