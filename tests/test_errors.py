"""Errors: a mistake of the user's, and a full disk, end a run with one message and status 2; ours keep their trace."""

import errno
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from utils.errors import InputError, blame, explain_out_of_memory, run_main

# ---------------------------------------------------------------- run_main


@pytest.fixture
def slept(monkeypatch):
    """Set as the environment of one process; gives the seconds that it waits, which the tests need not."""
    seconds = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["/somewhere/run_x.py", "--flag"])
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def mistake():
    raise InputError("a mistake of the user's")


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("main", "status", "message"),
    [(mistake, 2, "run_x.py: error: a mistake of the user's\n"), (interrupted, 130, "run_x.py: stopped by Ctrl-C")],
)
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_a_mistake_and_ctrl_c_end_with_their_status_and_one_message(
    slept, capsys, monkeypatch, rank, main, status, message
):
    if rank:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == status
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(message) and printed.err.count("\n") == 1
    # The launcher ends the other processes as soon as the first is gone: they wait, so that it alone speaks.
    assert bool(sum(slept) > 5) == (rank == "1")


def test_a_run_that_ends_well_says_nothing(slept, capsys):
    assert run_main(lambda: None) is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError])
def test_a_mistake_of_ours_keeps_its_traceback(slept, error):
    def main():
        raise error("ours")

    with pytest.raises(error, match="ours"):
        run_main(main)


def test_an_exit_status_of_a_scripts_own_stays(slept):
    with pytest.raises(SystemExit) as end:
        run_main(lambda: sys.exit(3))
    assert end.value.code == 3


def test_the_message_of_a_script_names_it_by_its_file_name(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", [str(Path("folder", "run_y.py"))])
    with pytest.raises(SystemExit):
        run_main(mistake)
    assert capsys.readouterr().err.startswith("run_y.py: ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_disk_that_takes_no_more_ends_with_one_message_of_the_process_that_met_it(
    slept, capsys, monkeypatch, rank, number
):
    def main():
        raise OSError(number, os.strerror(number), "out/log.jsonl")

    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 2 and not slept
    said = capsys.readouterr().err
    assert said == f"run_x.py: error: out/log.jsonl cannot be written: {os.strerror(number)}\n"


def test_a_full_disk_that_does_not_name_its_file_is_told_all_the_same(slept, capsys):
    def main():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "run_x.py: error: a file cannot be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_write_to_a_full_disk_ends_with_one_message(slept, capsys):
    def main():
        with open("/dev/full", "w") as file:
            file.write("a line")

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 2 and "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO])
def test_another_failure_of_the_system_keeps_its_traceback(slept, number):
    def main():
        raise OSError(number, os.strerror(number), "file")

    with pytest.raises(OSError, match=os.strerror(number)):
        run_main(main)


def test_what_main_gives_back_is_handed_on(slept):
    assert run_main(lambda: 7) == 7


@pytest.mark.parametrize(("only_here", "waits"), [(False, True), (True, False)])
def test_a_mistake_that_one_process_alone_has_found_is_told_at_once(slept, capsys, monkeypatch, only_here, waits):
    def main():
        error = InputError("it")
        error.only_here = only_here
        raise error

    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        run_main(main)
    assert (sum(slept) > 5) == waits and capsys.readouterr().err == "run_x.py: error: it\n"


# ---------------------------------------------------------------- blame


@pytest.mark.parametrize("error", [OSError("not there"), ValueError("not there"), RuntimeError("not there")])
def test_the_failure_of_a_call_becomes_a_message_of_what_was_asked_what_failed_and_what_to_do(error):
    with pytest.raises(InputError) as refusal, blame("--model x", "Give a folder."):
        raise error
    assert str(refusal.value) == f"--model x: {type(error).__name__}: not there. Give a folder."


def test_a_failure_of_many_lines_becomes_one_line_of_some_hundred_characters():
    with pytest.raises(InputError) as refusal, blame("--model x", "Do."):
        raise ValueError("one\n  two\n" + "word " * 1000)
    message = str(refusal.value)
    assert message.startswith("--model x: ValueError: one two word") and message.endswith(" Do.")
    assert "\n" not in message and len(message) < 400


def test_a_call_that_does_well_is_not_blamed_and_ctrl_c_is_not_its_failure():
    with blame("--model x"):
        pass
    with pytest.raises(KeyboardInterrupt), blame("--model x"):
        raise KeyboardInterrupt


# ---------------------------------------------------------------- explain_out_of_memory


def test_out_of_memory_names_flags_that_give_the_same_result():
    with pytest.raises(InputError) as refusal, explain_out_of_memory(384):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    said = str(refusal.value)
    assert "out of memory at --max_seq_length 384" in said and "the same result" in said.lower()
    for flag in ("--per_device_train_batch_size", "--gradient_accumulation_steps", "--gradient_checkpointing",
                 "--per_device_eval_batch_size"):  # fmt: skip
        assert flag in said


@pytest.mark.parametrize("error", [RuntimeError("ours"), InputError("theirs"), MemoryError("ours")])
def test_what_is_not_a_gpu_out_of_memory_stays_as_it_is(error):
    with pytest.raises(type(error), match=str(error)), explain_out_of_memory(128):
        raise error
