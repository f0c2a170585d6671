"""SIGTERM and Ctrl-C: the update is finished and saved, and then the run ends."""

import os
import signal
import sys
import time
from contextlib import contextmanager

import multiprocess


class StopSignal:
    """Notes SIGTERM or Ctrl-C in `number`, for the loop to finish its update and save.

    A second Ctrl-C ends at once.
    """

    def __enter__(self):
        self.number, self.since = 0, 0.0
        self.before = {number: signal.signal(number, self.note) for number
                       in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, _frame):
        # Launchers pass a Ctrl-C on to processes that had it from the terminal already: that is not
        # a second one.
        if self.number and number == signal.SIGINT and time.monotonic() - self.since > 2:
            raise KeyboardInterrupt
        self.number, self.since = self.number or number, self.since or time.monotonic()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_interrupts(_worker=None):
    # Ctrl-C is for the loop, which still needs the data of its update
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def end_at_interrupt():
    """Let Ctrl-C end the run at once, with the data workers of a library, which would hang or
    talk.
    """
    main = os.getpid()

    def end(_number, _frame):
        if os.getpid() == main:
            for worker in multiprocess.active_children():
                worker.kill()
            print("\nStopped by Ctrl-C; what was saved stays as it is", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGINT)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_stopped_run(accelerator, number, step, say):
    """End a run that a signal has stopped, whose checkpoint is saved, and say how to go on.

    Status: 128 + number.

    Args:
        number: of the signal; 0 where another process noted it.
    """
    number = number or signal.SIGTERM
    say(f"Stopped by {signal.Signals(number).name} after update {step}, which is saved. To go on, "
        "give the same command with --resume_from_checkpoint latest")
    accelerator.end_training()
    sys.exit(128 + number)
