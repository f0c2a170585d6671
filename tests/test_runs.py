"""What the five scripts do alike: the product of a training is saved first, and nothing is lost that was there."""

import json
import os
import resource
import signal
import sys
from functools import partial

import pytest
from helpers import (
    ALIKE,
    QA_SIZES,
    add_pair_head,
    contents,
    read_log,
    read_results,
    run_script,
    signal_at,
    tagged,
    write_conll,
    write_documents,
)  # fmt: skip
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals and limits")

LOOPS = ("run_mlm.py", "run_nsp.py", "run_pretraining.py")
TRAINERS = ("run_ner.py", "run_qa.py")
BETAS = {"adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6, "label_smoothing_factor": 0.1}


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_bert, prose, qa_files):
    """For each script, flags of a model and of data to train on, and a file of test data; six updates in an epoch."""
    folder = tmp_path_factory.mktemp("files")
    documents = [prose[start : start + 4] for start in range(100, 220, 4)]
    loop = {"model": add_pair_head(folder / "pair_bert", tiny_bert), "max_seq_length": 32, "max_eval_samples": 16}
    loop |= {"train_file": write_documents(folder / "text.txt", documents), "max_train_samples": 48}
    pairs = folder / "pairs.tsv"
    pairs.write_text("sentence_a\tsentence_b\tlabel\nIt rained.\tThe street was wet.\t0\n", encoding="utf-8")
    ner = {"model": tiny_bert, "train_file": write_conll(folder / "train.conll", tagged(60, seed=0))}
    qa = {"model": qa_files["model"], "train_file": qa_files["train_file"], **QA_SIZES}
    qa |= {"validation_file": qa_files["validation_file"], "max_steps": 6}
    return {
        "run_mlm.py": (loop, loop["train_file"]),
        "run_nsp.py": (loop, pairs),
        "run_pretraining.py": (loop, loop["train_file"]),
        "run_ner.py": (ner | {"max_seq_length": 32, "max_steps": 6}, ner["train_file"]),
        "run_qa.py": (qa, qa["validation_file"]),
    }


# The loops share the sections that this is about: one of them is enough here, `pytest -m slow` tries the others.
SCRIPTS = ["run_mlm.py", *TRAINERS, *(pytest.param(script, marks=pytest.mark.slow) for script in LOOPS[1:])]


@pytest.fixture(params=SCRIPTS)
def script(request, files, tmp_path):
    """One of the scripts on a tiny model, six updates, as a process of its own: script(flag=value, …)."""
    flags, test_file = files[request.param]
    settings = {**ALIKE, **flags, "output_dir": tmp_path / "out", "num_train_epochs": 1}
    settings["per_device_train_batch_size"] = 8
    run = partial(run_script, request.param, settings, folder=tmp_path)
    run.name, run.data, run.test_file = request.param, flags.get("validation_file", flags["train_file"]), test_file
    return run


def assert_one_message(done, name, *fragments):
    assert done.status == 2, done.out + done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.count(".py: error: ") == 1
    message = done.err.rstrip().splitlines()[-1]
    assert message.startswith(f"{name}: error: ")
    for fragment in fragments:
        assert fragment in message


# ---------------------------------------------------------------- the product of a training is saved first


def fail(*_, **__):
    raise RuntimeError("the step fails")


def trackers_fail():
    from accelerate import Accelerator

    Accelerator.end_training = fail


def upload_fails():
    import huggingface_hub

    huggingface_hub.create_repo = lambda name, **_: type("Url", (), {"repo_id": f"someone/{name}"})
    huggingface_hub.upload_folder = fail


def killed_once_results_are_written(out):
    """Kill the process as soon as all_results.json stands in its folder: whatever comes later is never done."""
    replace = os.replace

    def replace_and_die(source, target):
        replace(source, target)
        if os.fspath(target) == str(out / "all_results.json"):
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die


def fills_fail():
    import transformers

    pipeline, calls = transformers.pipeline, []

    def fail_after_training(*arguments, **settings):
        calls.append(1)
        return pipeline(*arguments, **settings) if len(calls) == 1 else fail()

    transformers.pipeline = fail_after_training


def assert_whole(out, steps):
    assert load_file(out / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "README.md"):
        assert (out / name).stat().st_size > 100
    assert read_results(out)["step"] == steps
    assert "eval_loss" in read_results(out) and "initial_eval_loss" in read_results(out)


def test_a_model_is_whole_whose_trackers_fail_at_the_end(script, tmp_path):
    assert script(prepare=trackers_fail).status == 1
    assert_whole(tmp_path / "out", 6)


def test_a_model_is_whole_whose_upload_fails(script, tmp_path):
    done = script(prepare=upload_fails, push_to_hub=True)
    assert_one_message(done, script.name, "--push_to_hub", "the step fails", "The model is safe", "hf upload")
    assert_whole(tmp_path / "out", 6)


def test_a_model_is_whole_whose_run_is_killed_before_test_data_are_scored(script, tmp_path):
    out, test_file = tmp_path / "out", script.test_file
    done = script(prepare=partial(killed_once_results_are_written, out), test_file=test_file)
    assert done.status == -signal.SIGKILL
    assert load_file(out / "model.safetensors") and read_results(out)["step"] == 6
    assert not [name for name in read_results(out) if name.startswith("predict_")]
    before = (out / "model.safetensors").read_bytes()
    script(test_file=test_file, resume_from_checkpoint="latest").checked()  # what is left is done now
    assert [name for name in read_results(out) if name.startswith("predict_")]
    assert "train_samples_per_second" in read_results(out)  # of the run that trained
    assert (out / "model.safetensors").read_bytes() == before


def test_a_model_is_whole_whose_masks_cannot_be_filled_at_the_end(files, tmp_path):
    flags, _ = files["run_mlm.py"]
    settings = {**ALIKE, **flags, "output_dir": tmp_path / "out", "max_steps": 3, "text": "The [MASK] is here."}
    assert run_script("run_mlm.py", settings, folder=tmp_path, prepare=fills_fail).status == 1
    assert_whole(tmp_path / "out", 3)


# ---------------------------------------------------------------- what was there stays


def test_a_readme_of_the_users_stays_and_one_of_a_run_is_replaced(script, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("# Notes of my own\n", encoding="utf-8")
    script().checked()
    assert (out / "README.md").read_text(encoding="utf-8") == "# Notes of my own\n"
    assert "library_name: transformers" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    os.replace(out / "MODEL_CARD.md", out / "README.md")
    script(overwrite_output_dir=True, learning_rate=1e-3).checked()
    assert "learning_rate: 0.001" in (out / "README.md").read_text(encoding="utf-8")
    assert not (out / "MODEL_CARD.md").exists()


def test_where_readme_and_model_card_are_the_users_neither_is_touched(script, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("README.md", "MODEL_CARD.md"):
        (tmp_path / "out" / name).write_text("mine, Ä\n", encoding="utf-8")
    script(max_steps=1).checked()
    for name in ("README.md", "MODEL_CARD.md"):
        assert (tmp_path / "out" / name).read_text(encoding="utf-8") == "mine, Ä\n"
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_run_that_only_evaluates_in_the_folder_of_a_model_writes_into_a_folder_of_its_own(script, tmp_path):
    out = tmp_path / "out"
    script().checked()
    before = contents(out)
    for number in (1, 2):
        done = script(model=out, train_file=None, validation_file=script.data, do_eval=True, processes=number).checked()
        assert f"{out / f'eval-{number}'}" in done.out
        results = json.loads((out / f"eval-{number}" / "all_results.json").read_text(encoding="utf-8"))
        assert "eval_loss" in results and "train_loss" not in results
    assert {path: content for path, content in contents(out).items() if not str(path).startswith("eval-")} == before


def claim_fails():
    import huggingface_hub

    huggingface_hub.create_repo = fail


def test_what_cannot_start_is_found_before_anything_is_replaced(script, tmp_path):
    script().checked()
    before = contents(tmp_path / "out")
    done = script(prepare=claim_fails, push_to_hub=True, overwrite_output_dir=True)
    assert_one_message(done, script.name, "--push_to_hub: cannot start", "the step fails")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("best", [True, "false"])
def test_one_checkpoint_is_enough(script, tmp_path, best):
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    script(**steps, save_total_limit=1, load_best_model_at_end=best, learning_rate=0.0).checked()
    assert_whole(tmp_path / "out", 6)
    assert len([*(tmp_path / "out").glob("checkpoint-*")]) == (2 if best is True else 1)  # the best one, too


# ---------------------------------------------------------------- disks


def test_a_folder_that_cannot_be_written_ends_the_run_before_a_training(script, tmp_path):
    folder = "/proc/sys/out"  # where even root cannot
    if os.geteuid():
        folder = tmp_path / "read_only"
        folder.mkdir(mode=0o500)
    assert_one_message(script(output_dir=folder), script.name, f"--output_dir {folder}", "cannot be written")


def fill_disk_after(checkpoint):
    """From the moment on that a checkpoint is whole, let no file grow beyond 20,000 bytes, as on a full disk."""
    replace = os.replace

    def replace_and_fill(source, target):
        replace(source, target)
        if os.fspath(target) == str(checkpoint):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    os.replace = replace_and_fill


def test_a_full_disk_ends_the_run_in_one_message_and_the_last_checkpoint_is_whole(script, tmp_path):
    out = tmp_path / "out"
    saving = {"save_strategy": "steps", "save_steps": 2}
    done = script(prepare=partial(fill_disk_after, out / "checkpoint-2"), **saving)
    assert_one_message(done, script.name, "cannot be written")
    script(resume_from_checkpoint="latest", **saving).checked()
    assert [entry["step"] for entry in read_log(out, "eval_loss")] == [6]
    reference = tmp_path / "reference"
    script(output_dir=reference, **saving).checked()
    assert (out / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- a resume and its settings


@pytest.mark.parametrize(
    "changed",
    [{"lr_scheduler_type": "cosine"}, {"warmup_steps": 2}, {"max_grad_norm": 0.5}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_resume_with_another_schedule_warm_up_or_clipping_is_refused(script, tmp_path, changed):
    script().checked()
    before = contents(tmp_path / "out")
    ((name, value),) = changed.items()
    done = script(resume_from_checkpoint="latest", num_train_epochs=2, **changed)
    assert_one_message(done, script.name, f"--{name} was ", f"is now {value}")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("script", TRAINERS, indirect=True)
def test_a_resume_with_other_betas_or_smoothing_is_refused(script, tmp_path):
    script(max_steps=1).checked()
    before = contents(tmp_path / "out")
    for name, value in BETAS.items():
        done = script(resume_from_checkpoint="latest", max_steps=2, **{name: value})
        assert_one_message(done, script.name, f"--{name} was ", f"is now {value}")
    assert contents(tmp_path / "out") == before


def test_a_resume_without_its_validation_data_is_refused(script, tmp_path):
    script(load_best_model_at_end="false").checked()
    before = contents(tmp_path / "out")
    lacking = {"validation_file": None, "validation_split_percentage": 0, "load_best_model_at_end": "false"}
    done = script(resume_from_checkpoint="latest", **lacking)
    assert_one_message(done, script.name, " was ", "is now ")
    assert contents(tmp_path / "out") == before


def test_scores_of_an_earlier_model_are_not_taken_for_those_of_a_later(script, tmp_path):
    script(test_file=script.test_file, max_steps=4).checked()
    earlier = read_results(tmp_path / "out")
    assert [name for name in earlier if name.startswith("predict_")]
    script(resume_from_checkpoint="latest", max_steps=6).checked()
    later = read_results(tmp_path / "out")
    assert later["step"] == 6 and not [name for name in later if name.startswith("predict_")]
    assert "initial_eval_loss" in later


@pytest.mark.parametrize("script", TRAINERS, indirect=True)
def test_stopped_in_the_update_at_which_its_patience_ends_it_trains_no_more(script, tmp_path):
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    flags = {**every, "logging_steps": 1, "learning_rate": 0.0, "early_stopping_patience": 2, "max_steps": 12}
    flags |= {"metric_for_best_model": "loss", "greater_is_better": "false"}
    script(output_dir=tmp_path / "undisturbed", **flags).checked()
    assert read_results(tmp_path / "undisturbed")["step"] == 3
    trap = partial(signal_at, signal.SIGTERM, 3, tmp_path / "out")
    assert script(prepare=trap, **flags).status == 128 + signal.SIGTERM
    script(resume_from_checkpoint="latest", **flags).checked()
    assert read_results(tmp_path / "out")["step"] == 3


# ---------------------------------------------------------------- Ctrl-C before the training


def interrupt_while_tokenizing():
    import datasets

    tokenize = datasets.Dataset.map

    def interrupted(self, *arguments, **settings):
        os.kill(os.getpid(), signal.SIGINT)
        return tokenize(self, *arguments, **settings)

    datasets.Dataset.map = interrupted


@pytest.mark.parametrize("workers", [None, 2])
def test_ctrl_c_while_data_are_prepared_ends_without_a_traceback(script, tmp_path, workers):
    flags = {"preprocessing_num_workers": workers, "overwrite_cache": True}
    done = script(prepare=interrupt_while_tokenizing, **flags)
    assert done.status == 128 + signal.SIGINT
    assert "Traceback" not in done.out + done.err and "Ctrl-C" in done.err


# ---------------------------------------------------------------- flags of Trainer


@pytest.mark.parametrize("script", TRAINERS, indirect=True)
@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_no_flag_takes_away_the_evaluations_before_the_first_update_and_after_the_last(script, tmp_path, strategy):
    flags = {"eval_strategy": strategy, "eval_steps": 4, "eval_delay": 100, "save_strategy": "no"}
    script(**flags, load_best_model_at_end="false").checked()
    assert [entry["step"] for entry in read_log(tmp_path / "out", "initial_eval_loss")] == [0]
    assert [entry["step"] for entry in read_log(tmp_path / "out", "eval_loss")] == [6]
    assert {"eval_loss", "initial_eval_loss"} <= read_results(tmp_path / "out").keys()


@pytest.mark.parametrize("script", TRAINERS, indirect=True)
@pytest.mark.parametrize(
    ("flag", "value", "advice"),
    [("bf16_full_eval", True, "--mixed_precision"), ("fp16_full_eval", True, "--mixed_precision"),
     ("hub_token", "secret", "hf auth login"), ("hub_strategy", "checkpoint", "at the end")],
)  # fmt: skip
def test_flags_that_would_have_no_effect_are_refused(script, flag, value, advice):
    done = script(**{flag: value})
    assert_one_message(done, script.name, f"--{flag} is not for this script", advice)
    assert "secret" not in done.out + done.err


@pytest.mark.parametrize("script", TRAINERS, indirect=True)
def test_saving_the_best_alone_is_refused(script):
    assert_one_message(script(save_strategy="best"), script.name, "--save_strategy best", "--load_best_model_at_end")
