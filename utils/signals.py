"""SIGTERM and Ctrl-C: the update is finished and saved, and then the run ends."""

import os
import signal
import sys
import time

import multiprocess


class StopSignal:
    """Notes SIGTERM or Ctrl-C in `number`, for the loop to finish its update and save.

    A second Ctrl-C ends at once.
    """

    numbers = signal.SIGTERM, signal.SIGINT

    def __enter__(self):
        self.number = 0
        self.before = {number: signal.signal(number, self.note) for number in self.numbers}
        return self

    def note(self, number, _frame):
        if not self.number:
            self.number, self.since = number, time.monotonic()
        # Launchers pass a Ctrl-C on to processes that had it from the terminal already: that is not
        # a second one.
        elif number == signal.SIGINT and time.monotonic() - self.since > 2:
            raise KeyboardInterrupt

    def __exit__(self, *_):
        for handler in self.before.items():
            signal.signal(*handler)


class InterruptEnds(StopSignal):
    """Lets Ctrl-C end the run at once, and the data workers of a library, which hang or talk."""

    numbers = (signal.SIGINT,)

    def note(self, number, _frame):
        if multiprocess.parent_process() is None:  # a worker, forked, has this handler too
            for worker in multiprocess.active_children():
                worker.kill()
            print("\nStopped by Ctrl-C; what was saved stays as it is", file=sys.stderr, flush=True)
            os._exit(128 + number)


def ignore_interrupts(_worker=None):
    """Leave Ctrl-C to the loop, which still needs the data of its update."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
