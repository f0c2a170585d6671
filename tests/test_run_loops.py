"""What the three loops do alike: the product of a training is saved first, and nothing is lost that was there."""

import json
import os
import resource
import signal
import sys
from functools import partial

import pytest
from helpers import ALIKE, add_pair_head, contents, read_log, read_results, run_script, write_documents
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals and limits")

SCRIPTS = ("run_mlm.py", "run_nsp.py", "run_pretraining.py")


@pytest.fixture(scope="module")
def text(tmp_path_factory, prose):
    """A file of 30 documents of four lines."""
    documents = [prose[start : start + 4] for start in range(100, 220, 4)]
    return write_documents(tmp_path_factory.mktemp("text") / "text.txt", documents)


@pytest.fixture(scope="module")
def pair_bert(tmp_path_factory, tiny_bert):
    return add_pair_head(tmp_path_factory.mktemp("pair_bert"), tiny_bert)


@pytest.fixture(params=SCRIPTS)
def loop(request, pair_bert, text, tmp_path):
    """One of the three scripts on a tiny model, six updates, as a process of its own: loop(flag=value, …)."""
    settings = {**ALIKE, "model": pair_bert, "train_file": text, "output_dir": tmp_path / "out", "max_seq_length": 32}
    settings |= {"max_train_samples": 48, "max_eval_samples": 16}
    settings |= {"per_device_train_batch_size": 8, "num_train_epochs": 1}
    run = partial(run_script, request.param, settings, folder=tmp_path)
    run.script = request.param
    return run


def assert_one_message(done, script, *fragments):
    assert done.status == 2, done.out + done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.count(".py: error: ") == 1
    message = done.err.rstrip().splitlines()[-1]
    assert message.startswith(f"{script}: error: ")
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

    huggingface_hub.create_repo = lambda name, exist_ok: type("Url", (), {"repo_id": f"someone/{name}"})
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


def test_a_model_is_whole_whose_trackers_fail_at_the_end(loop, tmp_path):
    assert loop(prepare=trackers_fail).status == 1
    assert_whole(tmp_path / "out", 6)


def test_a_model_is_whole_whose_upload_fails(loop, tmp_path):
    done = loop(prepare=upload_fails, push_to_hub=True)
    assert_one_message(done, loop.script, "--push_to_hub", "the step fails", "The model is safe", "hf upload")
    assert_whole(tmp_path / "out", 6)


def test_a_model_is_whole_whose_run_is_killed_before_test_data_are_scored(loop, text, tmp_path):
    out, test_file = tmp_path / "out", text
    if loop.script == "run_nsp.py":
        test_file = tmp_path / "pairs.tsv"
        test_file.write_text("sentence_a\tsentence_b\tlabel\nIt rained.\tThe street was wet.\t0\n", encoding="utf-8")
    done = loop(prepare=partial(killed_once_results_are_written, out), test_file=test_file)
    assert done.status == -signal.SIGKILL
    assert load_file(out / "model.safetensors") and read_results(out)["step"] == 6
    assert not [name for name in read_results(out) if name.startswith("predict_")]
    before = (out / "model.safetensors").read_bytes()
    loop(test_file=test_file, resume_from_checkpoint="latest").checked()  # what is left is done now
    assert [name for name in read_results(out) if name.startswith("predict_")]
    assert "train_samples_per_second" in read_results(out)  # of the run that trained
    assert (out / "model.safetensors").read_bytes() == before


def test_a_model_is_whole_whose_masks_cannot_be_filled_at_the_end(tiny_bert, text, tmp_path):
    settings = {**ALIKE, "model": tiny_bert, "train_file": text, "output_dir": tmp_path / "out", "max_seq_length": 32}
    settings |= {"max_steps": 3, "text": "The [MASK] is here."}
    assert run_script("run_mlm.py", settings, folder=tmp_path, prepare=fills_fail).status == 1
    assert_whole(tmp_path / "out", 3)


# ---------------------------------------------------------------- what was there stays


def test_a_readme_of_the_users_stays_and_one_of_a_run_is_replaced(loop, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("# Notes of my own\n", encoding="utf-8")
    loop().checked()
    assert (out / "README.md").read_text(encoding="utf-8") == "# Notes of my own\n"
    assert "library_name: transformers" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    os.replace(out / "MODEL_CARD.md", out / "README.md")
    loop(overwrite_output_dir=True, learning_rate=1e-3).checked()
    assert "learning_rate: 0.001" in (out / "README.md").read_text(encoding="utf-8")
    assert not (out / "MODEL_CARD.md").exists()


def test_a_run_that_only_evaluates_in_the_folder_of_a_model_writes_into_a_folder_of_its_own(loop, text, tmp_path):
    out = tmp_path / "out"
    loop().checked()
    before = contents(out)
    for number in (1, 2):
        done = loop(model=out, train_file=None, validation_file=text, do_eval=True, processes=number).checked()
        assert f"{out / f'eval-{number}'}" in done.out
        results = json.loads((out / f"eval-{number}" / "all_results.json").read_text(encoding="utf-8"))
        assert "eval_loss" in results and "train_loss" not in results
    assert {path: content for path, content in contents(out).items() if not str(path).startswith("eval-")} == before


# ---------------------------------------------------------------- disks


def test_a_folder_that_cannot_be_written_ends_the_run_before_a_training(loop, tmp_path):
    folder = "/proc/sys/out"  # where even root cannot
    if os.geteuid():
        folder = tmp_path / "read_only"
        folder.mkdir(mode=0o500)
    assert_one_message(loop(output_dir=folder), loop.script, f"--output_dir {folder}", "cannot be written")


def fill_disk_after(checkpoint):
    """From the moment on that a checkpoint is whole, let no file grow beyond 1,000 bytes, as on a full disk."""
    replace = os.replace

    def replace_and_fill(source, target):
        replace(source, target)
        if os.fspath(target) == str(checkpoint):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    os.replace = replace_and_fill


def test_a_full_disk_ends_the_run_in_one_message_and_the_last_checkpoint_is_whole(loop, tmp_path):
    out = tmp_path / "out"
    saving = {"save_strategy": "steps", "save_steps": 2}
    done = loop(prepare=partial(fill_disk_after, out / "checkpoint-2"), **saving)
    assert_one_message(done, loop.script, "cannot be written")
    loop(resume_from_checkpoint="latest", **saving).checked()
    assert [entry["step"] for entry in read_log(out, "eval_loss")] == [6]
    reference = tmp_path / "reference"
    loop(output_dir=reference, **saving).checked()
    assert (out / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- a resume and its settings


@pytest.mark.parametrize(
    "changed",
    [{"lr_scheduler_type": "cosine"}, {"warmup_steps": 2}, {"max_grad_norm": 0.5}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_resume_with_another_schedule_warm_up_or_clipping_is_refused(loop, tmp_path, changed):
    loop().checked()
    before = contents(tmp_path / "out")
    ((name, value),) = changed.items()
    done = loop(resume_from_checkpoint="latest", num_train_epochs=2, **changed)
    assert_one_message(done, loop.script, f"--{name} was ", f"is now {value}")
    assert contents(tmp_path / "out") == before


# ---------------------------------------------------------------- Ctrl-C before the training


def interrupt_while_tokenizing():
    import datasets

    tokenize = datasets.Dataset.map

    def interrupted(self, *arguments, **settings):
        os.kill(os.getpid(), signal.SIGINT)
        return tokenize(self, *arguments, **settings)

    datasets.Dataset.map = interrupted


@pytest.mark.parametrize("workers", [None, 2])
def test_ctrl_c_while_data_are_prepared_ends_without_a_traceback(loop, tmp_path, workers):
    done = loop(prepare=interrupt_while_tokenizing, preprocessing_num_workers=workers)
    assert done.status == 128 + signal.SIGINT
    assert "Traceback" not in done.out + done.err and "Ctrl-C" in done.err
