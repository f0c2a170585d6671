"""Signals: SIGTERM and Ctrl-C are noted, for the update to be finished and saved, and then the run ends."""

import os
import signal
import time
from types import SimpleNamespace

import multiprocess
import pytest

from utils.signals import InterruptEnds, StopSignal, end_stopped_run, ignore_interrupts


@pytest.fixture
def handlers():
    """The handlers from before, which are put back whatever a test leaves."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


class EndedError(Exception):
    """Stands for KeyboardInterrupt, which would end pytest where a test does not expect it."""


def send(number):
    try:
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # Python calls its handlers between two of its own steps
    except KeyboardInterrupt:
        raise EndedError from None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_are_restored(handlers, number):
    with StopSignal() as stop:
        assert not stop.number
        send(number)
        assert stop.number == number
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_the_handlers_are_restored_after_an_error(handlers):
    with pytest.raises(RuntimeError), StopSignal():
        raise RuntimeError
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_the_first_signal_is_the_one_that_counts(handlers):
    with StopSignal() as stop:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert stop.number == signal.SIGTERM


def test_a_ctrl_c_that_comes_twice_at_once_is_one_and_a_later_one_ends(handlers):
    with StopSignal() as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)  # from the terminal, and once more from the launcher
        assert stop.number == signal.SIGINT
        time.sleep(2.1)
        send(signal.SIGTERM)  # however often: only a Ctrl-C is that impatient
        with pytest.raises(EndedError):
            send(signal.SIGINT)


def test_while_data_are_prepared_a_worker_leaves_ctrl_c_to_the_main_process(handlers):
    with InterruptEnds():
        worker = multiprocess.get_context("fork").Process(target=send, args=(signal.SIGINT,))
        worker.start()
        worker.join(60)
    assert worker.exitcode == 0
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_while_data_are_prepared_ctrl_c_ends_at_once_with_the_workers(handlers, monkeypatch, capsys):
    worker, statuses = multiprocess.get_context("fork").Process(target=time.sleep, args=(60,)), []
    worker.start()
    monkeypatch.setattr(os, "_exit", statuses.append)
    with InterruptEnds():
        send(signal.SIGINT)
    worker.join(30)
    assert statuses == [130] and worker.exitcode == -signal.SIGKILL
    assert "Stopped by Ctrl-C" in capsys.readouterr().err


def test_a_data_worker_leaves_ctrl_c_to_the_loop(handlers):
    ignore_interrupts(3)  # as a DataLoader calls it, with the number of the worker
    send(signal.SIGINT)
    ignore_interrupts()
    send(signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "name", "status"),
    [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "SIGINT", 130),
     (0, "SIGTERM", 143)],  # noted by another process alone
)  # fmt: skip
def test_a_stopped_run_says_how_to_go_on_and_ends_with_the_status_of_its_signal(number, name, status):
    told, said = [], []
    accelerator = SimpleNamespace(end_training=lambda: told.append("end"))
    with pytest.raises(SystemExit) as end:
        end_stopped_run(accelerator, number, 7, said.append)
    assert end.value.code == status and told == ["end"]
    assert said[0].startswith(f"Stopped by {name} after update 7, which is saved. ")
    assert "--resume_from_checkpoint latest" in said[0] and len(said) == 1
