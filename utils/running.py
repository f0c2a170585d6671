"""What surrounds a training loop: settings from YAML, processes, signals, precision, threads."""

import json
import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed
import yaml

from utils.reading import InputError


def read_config(path, parser):
    """Turn a YAML file of flags into command-line arguments, for the parser to check like any others.

    Args:
        path: YAML file, a flag a line: `learning_rate: 5e-5`, `train_file: [a.txt, b.txt]`, `line_by_line: true`.
        parser: the argparse parser; its long options are the keys allowed.

    Returns:
        list of strings to stand before the arguments typed by the user, so that those win.

    Raises:
        InputError: no such file, not YAML (line named), not a mapping, or a key that is no flag.
    """
    try:
        with open(path, encoding="utf-8") as file:
            # Every value as the text that stands there: `no` is a strategy here, not False, and 5e-5 not a string.
            settings = yaml.load(file, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict | None):
        raise InputError(f"--config {path}: expected one `flag: value` a line, found {str(settings)[:40]!r}")
    flags = {option[2:] for action in parser._actions for option in action.option_strings} - {"config", "help", ""}
    arguments = []
    for key, value in (settings or {}).items():
        if key not in flags:
            raise InputError(f"--config {path}: {key!r} is not a flag of this script; see --help for those that are")
        if isinstance(value, dict):
            value = ",".join(f"{name}={part}" for name, part in value.items())
        if isinstance(value, list):
            arguments += [f"--{key}", *value]
        elif value not in ("", "null", "~"):
            arguments.append(f"--{key}={value}")
    return arguments


def pick_precision(wanted, launcher, device_type):
    """Choose the mixed precision of a run: "bf16", "fp16" or "no" (float32).

    Args:
        wanted: what the user asked for; "auto" leaves it to the launcher, and where that says nothing to the hardware.
        launcher: what `accelerate launch` was told, which is "no" also when it was told nothing.
        device_type: "cpu", "cuda" and so on. bfloat16 is taken where the device computes it natively.
    """
    if wanted != "auto":
        return wanted
    if launcher in ("bf16", "fp16"):
        return launcher
    if device_type == "cpu":  # elsewhere bfloat16 is slower than float32, though it is called available
        native = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    elif device_type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device_type == "xpu" and torch.xpu.is_bf16_supported()
    return "bf16" if native else "no"


def set_cpu_threads(wanted, local_processes):
    """Set torch's threads and return their number: `wanted`, or else physical cores / processes on this machine.

    `accelerate launch` sets OMP_NUM_THREADS to 1 on a CPU, which halves the speed of two cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(torch.cpu.get_capabilities().get("num_physical_cores", allowed), allowed)
    threads = wanted or max(1, cores // local_processes)
    torch.set_num_threads(threads)
    return threads


class Processes:
    """What the processes of a run tell each other on the CPU: sums of counts, and whose turn it is.

    They do so over gloo: NCCL would make the CPU wait for the GPU, and gives up on whoever waits over ten minutes.

    Args:
        num_processes: processes of the run; torch.distributed is initialised where there are several.
        rank: which of them this is. local_rank: which of those on this machine.
    """

    def __init__(self, num_processes, rank, local_rank):
        self.num_processes, self.rank, self.local_rank = num_processes, rank, local_rank
        several = num_processes > 1
        self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7)) if several else None

    def sum(self, *values):
        """Add up numbers over all processes, in float64: a list of as many floats."""
        totals = torch.tensor(values, dtype=torch.float64)
        if self.group is not None:
            torch.distributed.all_reduce(totals, group=self.group)
        return totals.tolist()

    def main_first(self, function):
        """Call function on the first process, then on the first of each machine, then on all others.

        What one has cached, the next find. Where it raises InputError, all processes end and that one says why.
        """
        result = None
        for turn in range(3):
            failure = None
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
                time.sleep(10)  # a launcher ends all processes as soon as one is gone: the other speaks first
                sys.exit(2)
        return result


class StopSignal:
    """Notes SIGTERM and Ctrl-C, for the loop to finish its update and save; a second Ctrl-C ends at once.

    `number` is the signal that came, 0 before one does.
    """

    def __enter__(self):
        self.number, self.since = 0, 0.0
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, _frame):
        # Launchers pass a Ctrl-C on to processes that had it from the terminal already: that is not a second one.
        if self.number and number == signal.SIGINT and time.monotonic() - self.since > 2:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.since = number, time.monotonic()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def cut_log(path, step):
    """Cut a log.jsonl back to the lines up to an update, when a run goes on from there; a missing file is fine."""
    if os.path.exists(path):
        kept = []
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):  # the half-written last line of a run that was killed
                    continue
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            file.writelines(kept)
        os.replace(f"{path}.tmp", path)


def run_main(main):
    """Call main; a mistake of the user's ends it with one message on stderr and exit status 2.

    Of several processes that find the same mistake, the first speaks; the launcher ends the others meanwhile.
    """
    rank = int(os.environ.get("RANK", 0))
    try:
        main()
    except InputError as error:
        if rank and not error.only_here:
            time.sleep(10)
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        if not rank:
            print("\nStopped by Ctrl-C. What was saved before stays as it is.", file=sys.stderr, flush=True)
        sys.exit(130)
