"""What surrounds a training loop: settings from YAML, processes, signals, precision, threads."""

import ctypes
import os
import re
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
import yaml

from utils.reading import InputError


def read_config(path, flags):
    """Turn a YAML file of flags into command-line arguments, which the parser then checks like any others.

    Args:
        path: YAML file, a flag a line: `learning_rate: 5e-5`, `train_file: [a.txt, b.txt]`, `line_by_line: true`.
        flags: names of the flags that may stand there, without the dashes.

    Returns:
        list of strings to stand before the arguments that the user typed, so that those win.

    Raises:
        InputError: no such file, not a YAML mapping (line named), or a key that is no flag.
    """
    try:
        # Every value as the text that stands there: `no` is a strategy here, not False, and 5e-5 is a number.
        settings = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise InputError(f"--config {path}: expected one `flag: value` a line, found {str(settings)[:40]!r}")
    arguments = []
    for key, value in settings.items():
        if key not in flags:
            raise InputError(f"--config {path}: {key!r} is not a flag of this script; see --help for those that are")
        if isinstance(value, dict):
            value = ",".join(f"{name}={part}" for name, part in value.items())
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            raise InputError(f"--config {path}: {key!r} holds more than a list of values; put each one in quotes")
        if value not in ("", "null", "~"):
            arguments += [f"--{key}", *value] if isinstance(value, list) else [f"--{key}={value}"]
    return arguments


def pick_precision(wanted, launcher, device_type):
    """Choose "bf16", "fp16" or "no" (float32).

    "auto" leaves it to the launcher, and where that says "no", as it does when told nothing, to the hardware: bfloat16
    where the device (its type: "cpu", "cuda" …) computes it natively. Emulated, it is slower than float32.
    """
    if wanted != "auto":
        return wanted
    if launcher in ("bf16", "fp16"):
        return launcher
    native = {"cpu": lambda: any(torch.cpu.get_capabilities().get(k) for k in ("amx_bf16", "avx512_bf16", "bf16")),
              "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
              "xpu": torch.xpu.is_bf16_supported}
    return "bf16" if native.get(device_type, bool)() else "no"


def set_cpu_threads(wanted, local_processes):
    """Set torch's threads: `wanted`, or physical cores / processes of this machine. Returns their number.

    `accelerate launch` leaves one thread on a CPU, which halves the speed of two cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(torch.cpu.get_capabilities().get("num_physical_cores", allowed), allowed)
    torch.set_num_threads(wanted or max(1, cores // local_processes))
    return torch.get_num_threads()


def keep_freed_memory():
    """Have the C library keep what is freed for the next update. To give it back and fetch it anew costs a tenth of it.

    For training on a CPU with glibc; elsewhere there is no such setting, and nothing is done.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX: no memory map of its own for a large tensor
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes
    except (OSError, AttributeError, TypeError):
        pass


class Processes:
    """What the processes of a run tell each other on the CPU: sums of counts, and whose turn it is.

    Over gloo: with NCCL the CPU would wait for the GPU, and whoever waits for more than ten minutes is given up.
    """

    def __init__(self, num_processes, rank, local_rank):
        self.num_processes, self.rank, self.local_rank, self.group = num_processes, rank, local_rank, None
        if num_processes > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))

    def sum(self, *values):
        """Add up numbers over all processes, in float64: a list of as many floats."""
        totals = torch.tensor(values, dtype=torch.float64)
        if self.group is not None:
            torch.distributed.all_reduce(totals, group=self.group)
        return totals.tolist()

    def add(self, *arrays):
        """Add up arrays of numbers over all processes, each in its place."""
        for numbers in arrays if self.group is not None else ():
            torch.distributed.all_reduce(torch.from_numpy(numbers), group=self.group)

    def main_first(self, function):
        """Call function on the first process, then on the first of each machine, then on the others.

        What one has cached, the next find. Where it raises InputError, that process says why and all end.
        """
        result = failure = None
        for turn in range(3):
            if turn == (0 if self.rank == 0 else 1 if self.local_rank == 0 else 2):
                try:
                    result = function()
                except InputError as error:
                    failure = error
                    failure.only_here = True
            failures = self.sum(failure is not None)[0]
            if failure:
                raise failure
            if failures:
                time.sleep(10)  # the launcher ends all as soon as one is gone: let the other speak first
                sys.exit(2)
        return result


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


class StopSignal:
    """Notes SIGTERM or Ctrl-C in `number`, for the loop to finish its update and save. A second Ctrl-C ends at once."""

    def __enter__(self):
        self.number, self.since = 0, 0.0
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, _frame):
        # Launchers pass a Ctrl-C on to processes that had it from the terminal already: that is not a second one.
        if self.number and number == signal.SIGINT and time.monotonic() - self.since > 2:
            raise KeyboardInterrupt
        self.number, self.since = self.number or number, self.since or time.monotonic()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_interrupts(_worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loop, which still needs the data of its update


def cut_log(path, step):
    """Cut a log.jsonl back to the lines up to an update, when a run goes on from there; a missing file is fine."""
    kept = []
    for line in Path(path).read_text(encoding="utf-8").splitlines(True) if os.path.exists(path) else ():
        # A kill can leave the last line half written, without its end.
        found = re.fullmatch(r'\{"step": (\d+)(, .*)?\}\n', line)
        if found and int(found[1]) <= step:
            kept.append(line)
    Path(f"{path}.tmp").write_text("".join(kept), encoding="utf-8")
    os.replace(f"{path}.tmp", path)


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
