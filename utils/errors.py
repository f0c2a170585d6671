"""Mistakes of the user, and what else is no fault of the program: one message, exit status 2."""

import errno
import os
import sys
import time
from contextlib import contextmanager

import torch
import torch.distributed


class InputError(ValueError):
    """A mistake in what the user gave. Its message is all they are shown; the exit status is 2."""

    only_here = False  # True where the other processes know that this one has something to say


@contextmanager
def blame(what, advice=""):
    """Turn the failure of a library's call into an InputError: what was asked, why not, a cure.

    An InputError passes as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        fault = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"{what}: {type(error).__name__}: {fault}. {advice}") from None


@contextmanager
def explain_out_of_memory(max_seq_length):
    """Turn running out of a GPU's memory into an InputError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(f"the GPU ran out of memory at --max_seq_length {max_seq_length}. The "
                         "same result in less: in training, divide --per_device_train_batch_size "
                         "by a number that divides it, and multiply --gradient_accumulation_steps "
                         "by the same, or give --gradient_checkpointing; in evaluation, give a "
                         "smaller --per_device_eval_batch_size.") from None


def run_main(main):
    """Call main; a user's mistake, or a full disk, ends it with one message and status 2.

    Of several processes that find the same mistake the first speaks, and the launcher ends the
    others meanwhile.
    """
    sys.stdout.reconfigure(errors="replace")  # what a terminal of another encoding cannot show
    status, waits = 2, int(os.environ.get("RANK", 0)) > 0
    try:
        return main()
    except InputError as error:
        message = f"error: {error}"
        waits = waits and not error.only_here
    except KeyboardInterrupt:
        status, message = 130, "stopped by Ctrl-C; what was saved stays as it is"
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        message = f"error: {error.filename or 'a file'} cannot be written: {error.strerror}"
        waits = False
    if waits:
        time.sleep(10)
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        os._exit(status)  # to take down what the others wait for can abort, and lose the status
    sys.exit(status)
