"""Devices, precision, threads, and what the processes of a run tell each other."""

import ctypes
import os
import sys
import time
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed
from accelerate.utils import parse_flag_from_env

from utils.errors import InputError


def pick_precision(wanted, launcher, device_type):
    """Choose "bf16", "fp16" or "no" (float32).

    "auto" leaves it to the launcher, and where that says "no", as it does when told nothing, to the
    hardware: bfloat16 where the device (its type: "cpu", "cuda" …) computes it natively. Emulated,
    it is slower than float32.
    """
    if wanted != "auto":
        return wanted
    if launcher in ("bf16", "fp16"):
        return launcher
    native = device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        native = any(map(torch.cpu.get_capabilities().get, ("amx_bf16", "avx512_bf16", "bf16")))
    return "bf16" if native else "no"


def set_cpu_threads(wanted, local_processes):
    """Set torch's threads, and return their number: `wanted`, or physical cores / local processes.

    `accelerate launch` leaves one thread on a CPU, which halves the speed of two cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(torch.cpu.get_capabilities().get("num_physical_cores", allowed), allowed)
    torch.set_num_threads(wanted or max(1, cores // local_processes))
    return torch.get_num_threads()


def keep_freed_memory():
    """Have the C library keep what is freed for the next update.

    To give it back and fetch it anew costs a tenth of an update. For training on a CPU with glibc;
    elsewhere there is no such setting, and nothing is done.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX: no memory map of its own for a large tensor
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes


def choose_device(mixed_precision, cpu_threads):
    """Choose what to run on, and set torch's threads: (whether on the CPU, precision, threads).

    Raises:
        InputError: the launcher asks for what these scripts do not support, or for fp16 on a CPU.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise InputError(f"accelerate is set to {name}, which this script does not support: "
                             "encoders of this size train fastest with plain data parallelism, "
                             "accelerate launch --multi_gpu")
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    device_type = "cpu" if on_cpu else torch.accelerator.current_accelerator().type
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")
    precision = pick_precision(mixed_precision, launcher, device_type)
    if on_cpu:
        keep_freed_memory()
        if precision == "fp16":
            raise InputError("--mixed_precision fp16 needs a GPU; give bf16, no or auto")
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return on_cpu, precision, set_cpu_threads(cpu_threads, local_processes)


class Processes:
    """What the processes of a run tell each other on the CPU: sums of counts, and whose turn it is.

    They do so over gloo: with NCCL the CPU would wait for the GPU, and whoever waits for more than
    ten minutes is given up.

    Raises:
        InputError: the launcher started more processes than train together.
    """

    def __init__(self, num_processes, rank, local_rank):
        self.num_processes, self.rank = num_processes, rank
        self.turn = (rank > 0) + (local_rank > 0)  # 1 for the first of another machine
        started = int(os.environ.get("WORLD_SIZE", num_processes))
        if started != num_processes:
            raise InputError(f"{started} processes were started, but each would train alone. On a "
                             "CPU: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
                             "--num_processes N run_….py …")
        self.group = None
        if started > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))

    def sum(self, *values):
        """Add up numbers over all processes, in float64: a list of as many floats."""
        totals = torch.tensor(values, dtype=torch.float64)
        if self.num_processes > 1:
            torch.distributed.all_reduce(totals, group=self.group)
        return totals.tolist()

    @contextmanager
    def main_first(self):
        """Let the first process go first, then the first of each machine, then the others.

        What one caches, the next find. Where one raises InputError inside, it says why, and all
        end.
        """
        for turn in range(3):
            if turn == self.turn:
                try:
                    yield
                except InputError as error:
                    error.only_here = True
                    self.sum(True)
                    raise
            if self.sum(False)[0]:
                # The launcher ends all as soon as one is gone: let the other speak first.
                time.sleep(10)
                sys.exit(2)
