"""Mistakes of the user: one message, and exit status 2."""

import os
import sys
import time

import torch
import torch.distributed


class InputError(ValueError):
    """A mistake in what the user gave. Its message is all they are shown; the exit status is 2."""

    only_here = False  # True where the other processes of the run know that this one has something to say


def out_of_memory(batch_size, max_seq_length, accumulation_steps=None):
    """Make the InputError for a GPU that is too small: batch, length, and what gives the same result in less memory.

    accumulation_steps: None where the run does not train.
    """
    said = f"the GPU ran out of memory at {batch_size} examples of {max_seq_length} tokens per pass."
    if accumulation_steps is None:
        return InputError(f"{said} The same scores in less: --per_device_eval_batch_size {max(1, batch_size // 2)}; a "
                          "smaller --max_seq_length helps, too.")
    parts = next((n for n in range(2, batch_size + 1) if batch_size % n == 0), 1)  # into which the batch divides
    same = (f" The same result in less: --per_device_train_batch_size {batch_size // parts} "
            f"--gradient_accumulation_steps {accumulation_steps * parts}." if parts > 1 else "")
    return InputError(f"{said}{same} --gradient_checkpointing and a smaller --max_seq_length help, too.")


def run_main(main):
    """Call main; a mistake of the user's ends it with one message on stderr and exit status 2.

    Of several processes that find the same mistake the first speaks, and the launcher ends the others meanwhile.
    """
    rank = int(os.environ.get("RANK", 0))
    sys.stdout.reconfigure(errors="replace")  # a word that a terminal of another encoding cannot show
    try:
        main()
    except (InputError, KeyboardInterrupt) as error:
        if rank and not getattr(error, "only_here", False):
            time.sleep(10)
        status, message = 130, "stopped by Ctrl-C; what was saved stays as it is"
        if isinstance(error, InputError):
            status, message = 2, f"error: {error}"
        print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr, flush=True)
        if torch.distributed.is_initialized():  # to take it down while others wait in it can abort, and lose the status
            sys.stdout.flush()
            os._exit(status)
        sys.exit(status)
