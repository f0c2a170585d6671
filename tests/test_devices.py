"""Devices: precision and threads that fit the hardware; processes that add up their numbers and wait for each other."""

import json
import multiprocessing
import os
import sys
import time
from datetime import timedelta
from io import StringIO

import pytest
import torch
import torch.distributed

from utils.devices import Processes, choose_device, keep_freed_memory, pick_precision, set_cpu_threads
from utils.errors import InputError, run_main

# ---------------------------------------------------------------- precision and threads


@pytest.mark.parametrize("launcher", ["no", "bf16", "fp16", None])
@pytest.mark.parametrize("wanted", ["no", "bf16", "fp16"])
def test_the_precision_that_is_asked_for_wins(wanted, launcher):
    assert pick_precision(wanted, launcher, "cpu") == wanted


@pytest.mark.parametrize("launcher", ["bf16", "fp16"])
def test_auto_takes_the_precision_of_the_launcher(monkeypatch, launcher):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # whatever the hardware
    assert pick_precision("auto", launcher, "cpu") == launcher


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({}, "no"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"bf16": True}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True, "avx2": True}, "no"),  # it would be emulated
    ],
)
@pytest.mark.parametrize("launcher", ["no", None])
def test_auto_on_a_cpu_is_bfloat16_where_the_cpu_computes_it(monkeypatch, launcher, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **capabilities})
    assert pick_precision("auto", launcher, "cpu") == precision


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_is_bfloat16_where_the_gpu_computes_it(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert pick_precision("auto", "no", "cuda") == ("bf16" if native else "no")


@pytest.mark.parametrize("device", ["mps", "xpu", "npu", "hpu"])
def test_auto_on_a_device_that_torch_cannot_ask_is_float32(device):
    assert pick_precision("auto", "no", device) == "no"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("wanted", [1, 3])
def test_the_threads_that_are_asked_for_are_set(threads, wanted):
    assert set_cpu_threads(wanted, 2) == wanted == torch.get_num_threads()


@pytest.mark.parametrize(
    ("capabilities", "processes", "expected"),
    [
        ({"num_physical_cores": 4}, 1, 4),  # of 8 logical ones
        ({"num_physical_cores": 4}, 2, 2),
        ({"num_physical_cores": 64}, 1, 8),  # no more than the process may use
        ({"num_physical_cores": 64}, 3, 2),
        ({"num_physical_cores": 4}, 5, 1),
        ({}, 1, 8),
    ],
)
@pytest.mark.parametrize("wanted", [None, 0])
def test_by_default_the_physical_cores_are_shared_out(threads, monkeypatch, wanted, capabilities, processes, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert set_cpu_threads(wanted, processes) == expected == torch.get_num_threads()


# ---------------------------------------------------------------- what to run on


@pytest.fixture
def launcher(monkeypatch, threads):
    """The environment of a launcher that says nothing, on a machine without a GPU."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")] + ["LOCAL_WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    return monkeypatch.setenv


def test_without_a_gpu_the_cpu_is_taken_with_the_threads_that_are_asked_for(launcher):
    assert choose_device("no", 1) == (True, "no", 1)
    launcher("ACCELERATE_MIXED_PRECISION", "bf16")
    assert choose_device("auto", 1) == (True, "bf16", 1)


def test_a_launcher_can_have_the_cpu_taken_where_there_is_a_gpu(launcher, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert choose_device("fp16", 1) == (False, "fp16", 1)
    launcher("ACCELERATE_USE_CPU", "true")
    assert choose_device("no", 1) == (True, "no", 1)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
@pytest.mark.parametrize("word", ["true", "True", "1", "yes"])
def test_what_shards_the_model_is_refused(launcher, kind, word):
    launcher(f"ACCELERATE_USE_{kind}", "false")
    assert choose_device("no", 1)[0]
    launcher(f"ACCELERATE_USE_{kind}", word)
    with pytest.raises(InputError, match=f"accelerate is set to {kind}, which this script does not support"):
        choose_device("no", 1)


def test_fp16_on_a_cpu_is_refused_whoever_asks_for_it(launcher):
    with pytest.raises(InputError, match="--mixed_precision fp16 needs a GPU"):
        choose_device("fp16", 1)
    launcher("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(InputError, match="--mixed_precision fp16 needs a GPU"):
        choose_device("auto", 1)


def test_freed_memory_can_be_kept_more_than_once():
    keep_freed_memory()
    keep_freed_memory()


# ---------------------------------------------------------------- processes


def test_one_process_sums_and_calls_alone():
    processes = Processes(1, 0, 0)
    assert processes.sum(1, 2.5, True) == [1.0, 2.5, 1.0]
    with processes.main_first():
        done = True
    assert done
    with pytest.raises(InputError, match="mistake"), processes.main_first():
        mistake()


@pytest.mark.parametrize("started", ["2", "8"])
def test_processes_that_would_each_train_alone_are_refused(monkeypatch, started):
    monkeypatch.setenv("WORLD_SIZE", started)
    with pytest.raises(InputError, match=f"{started} processes were started.*accelerate launch --multi_gpu"):
        Processes(1, 0, 0)


def test_one_process_of_a_launcher_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes(1, 0, 0).sum(3) == [3.0]


def mistake():
    raise InputError("a mistake of the user's")


def outcome(main):
    """How run_main ends: exit status, what it says, and whether it waited before, so that another can speak first."""
    sleep, slept, status, sys.stderr = time.sleep, [], 0, StringIO()
    time.sleep = lambda seconds: sleep(0.2) or slept.append(seconds)  # a launcher would end it meanwhile
    leave, os._exit = os._exit, sys.exit  # this process has more to look at
    try:
        run_main(main)
    except SystemExit as end:
        status = end.code
    time.sleep, os._exit, message, sys.stderr = sleep, leave, sys.stderr.getvalue(), sys.__stderr__
    return {"status": status, "message": message, "waited": sum(slept) > 5}


def take_part(rank, local_ranks, folder):
    """One of several processes: does all that the tests below look at, and leaves what it found in a file."""
    os.environ["RANK"], sys.argv = str(rank), ["/somewhere/run_x.py"]
    store = (folder / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=len(local_ranks))
    processes = Processes(len(local_ranks), rank, local_ranks[rank])
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1))  # that of torch: must not matter
    found = {"sum": processes.sum(rank + 1, 0.5, rank == 2, 1 if rank else 2**53 - 5)}

    def prepare():
        start = time.monotonic()
        time.sleep(0 if rank else 3)
        cache = folder / "cache"
        if not cache.exists():
            cache.write_text(f"made by {rank}")
        return start, time.monotonic(), cache.read_text(), rank

    def take_turn(fails):
        with processes.main_first():
            if fails:
                mistake()

    with processes.main_first():
        found["turn"] = prepare()
    for failing in (0, 1, 2):
        found[f"{failing} fails"] = outcome(lambda: take_turn(rank == failing))  # noqa: B023
    found["afterwards"] = processes.sum(1)
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What three processes found, on two machines as it seems to them: the third is the first of the second machine."""
    folder, context = tmp_path_factory.mktemp("processes"), multiprocessing.get_context("spawn")
    started = [context.Process(target=take_part, args=(rank, (0, 1, 0), folder)) for rank in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    for process in started:
        process.kill()
        process.join()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def test_several_processes_add_up_their_numbers(found):
    assert [process["sum"] for process in found] == [[6, 1.5, 1, 2**53 - 3]] * 3  # more digits than float32 has


def test_the_first_goes_first_then_the_first_of_each_machine_then_the_others(found):
    """The first takes 3 seconds, and what torch waits by default is 1 second here."""
    turns = [process["turn"] for process in found]
    assert [result for *_, result in turns] == [0, 1, 2]  # each has its own result
    assert {cache for _, _, cache, _ in turns} == {"made by 0"}
    for before, after in ((0, 2), (2, 1)):
        assert turns[before][1] <= turns[after][0]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_mistake_that_one_process_finds_ends_all_with_status_2_and_one_message(found, failing):
    message = "run_x.py: error: a mistake of the user's\n"
    assert [process[f"{failing} fails"] for process in found] == [
        {"status": 2, "message": message if rank == failing else "", "waited": rank != failing} for rank in range(3)
    ]
    assert [process["afterwards"] for process in found] == [[3]] * 3  # all of them left off at the same place
