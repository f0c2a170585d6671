"""Devices, precision, threads, and what the processes of a run tell each other."""

import ctypes
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed

from utils.errors import InputError


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


def choose_device(mixed_precision, cpu_threads):
    """Choose what to run on, and set torch's threads: (whether on the CPU, precision, threads).

    Raises:
        InputError: the launcher asks for what these scripts do not support, or for fp16 on a CPU.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise InputError(f"accelerate is set to {name}, which this script does not support: encoders of this size "
                             "train fastest with plain data parallelism, accelerate launch --multi_gpu")
    on_cpu = (not torch.accelerator.is_available()
              or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"))
    device_type = "cpu" if on_cpu else torch.accelerator.current_accelerator().type
    precision = pick_precision(mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), device_type)
    if precision == "fp16" and on_cpu:
        raise InputError("--mixed_precision fp16 needs a GPU; give bf16, no or auto")
    threads = set_cpu_threads(cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if on_cpu:
        keep_freed_memory()
    return on_cpu, precision, threads


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


def join_processes(num_processes, rank, local_rank):
    """Make the Processes of a run. InputError where the launcher started more than train together."""
    if int(os.environ.get("WORLD_SIZE", 1)) != num_processes:
        raise InputError(f"{os.environ['WORLD_SIZE']} processes were started, but each would train alone. On a CPU: "
                         "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N run_….py …")
    return Processes(num_processes, rank, local_rank)
