"""What surrounds a loop: settings, precision, threads, processes that wait for each other, signals, how a run ends."""

import json
import multiprocessing
import os
import signal
import sys
import time
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.distributed

from utils.arguments import read_config
from utils.devices import Processes, pick_precision, set_cpu_threads
from utils.errors import InputError, out_of_memory, run_main
from utils.output import cut_log
from utils.signals import StopSignal

# ---------------------------------------------------------------- read_config

FLAGS = {"learning_rate", "seed", "train_file", "save_strategy", "config_overrides", "line_by_line", "report_to",
         "text", "run_name", "hub_model_id", "model"}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """Function that writes a config file and reads it as arguments."""

    def read(content):
        path = tmp_path / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return read_config(path, FLAGS)

    return read


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        ("learning_rate: 5e-5", ["--learning_rate=5e-5"]),
        ("save_strategy: no", ["--save_strategy=no"]),  # a word, where YAML says False
        ("line_by_line: true", ["--line_by_line=true"]),
        ("seed: 007", ["--seed=007"]),
        ("seed: -1", ["--seed=-1"]),
        ("run_name: 2026-01-02", ["--run_name=2026-01-02"]),
        ("model: org/name  # a comment", ["--model=org/name"]),
        ('text: "The [MASK] is: happy."', ["--text=The [MASK] is: happy."]),
        ("text: über 中文", ["--text=über 中文"]),
        ("train_file: [a.txt, 'b c.txt']", ["--train_file", "a.txt", "b c.txt"]),
        ("train_file:\n  - a.txt\n  - 7", ["--train_file", "a.txt", "7"]),
        ("config_overrides: dropout=0,dim=8", ["--config_overrides=dropout=0,dim=8"]),
        ("config_overrides:\n  dropout: 0\n  dim: 8", ["--config_overrides=dropout=0,dim=8"]),
        ("report_to: null\nhub_model_id: ~\nrun_name:\nseed: 1", ["--seed=1"]),  # as if they were not there
        ("seed: 1\nlearning_rate: 2\nmodel: b", ["--seed=1", "--learning_rate=2", "--model=b"]),
        ("\ufeffseed: 1\r\nmodel: b\r\n", ["--seed=1", "--model=b"]),
        ("", []),
        ("# only a comment\n", []),
    ],
)  # fmt: skip
def test_a_config_becomes_the_arguments_as_one_would_type_them(config, content, arguments):
    assert config(content) == arguments


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("seed: 1\nleaning_rate: 5e-5\n", ["'leaning_rate' is not a flag", "--help"]),
        ("--seed: 1\n", ["'--seed' is not a flag"]),
        ("seed: 1\nmodel: [a\nrun_name: b: c\n", ["line 3"]),
        ("seed: 1\n\tmodel: b\n", ["line 2"]),
        ('seed: 1\nmodel: "b\n', ["line 3"]),
        ("- seed\n- 1\n", ["one `flag: value` a line", "['seed', '1']"]),
        ("seed 1\n", ["one `flag: value` a line", "'seed 1'"]),
        (b"text: caf\xe9\n", ["cannot be read"]),
        ("train_file:\n  - path: a.txt\n", ["train_file"]),
    ],
)
def test_what_cannot_be_arguments_is_refused_with_its_place(config, tmp_path, content, parts):
    with pytest.raises(InputError) as refusal:
        config(content)
    message = str(refusal.value)
    assert message.startswith(f"--config {tmp_path / 'run.yaml'}: ") and "\n" not in message
    for part in parts:
        assert part in message


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(InputError, match="--config never.yaml: cannot be read"):
        read_config("never.yaml", FLAGS)


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


def test_auto_on_a_device_that_torch_cannot_ask_is_float32():
    assert pick_precision("auto", "no", "mps") == "no"


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


# ---------------------------------------------------------------- processes


def test_one_process_sums_and_calls_alone():
    processes = Processes(1, 0, 0)
    assert processes.sum(1, 2.5, True) == [1.0, 2.5, 1.0]
    assert processes.main_first(lambda: "result") == "result"
    with pytest.raises(InputError, match="mistake"):
        processes.main_first(mistake)


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

    found["turn"] = processes.main_first(prepare)
    for failing in (0, 1, 2):
        found[f"{failing} fails"] = outcome(lambda: processes.main_first(mistake if rank == failing else list))  # noqa: B023
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


# ---------------------------------------------------------------- signals


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


# ---------------------------------------------------------------- cut_log


@pytest.mark.parametrize(
    ("step", "kept"),
    [(-1, ""), (0, '{"step": 0, "a": 1}\n'), (15, '{"step": 0, "a": 1}\n{"step": 10, "b": {"c": 2}}\n'),
     (20, '{"step": 0, "a": 1}\n{"step": 10, "b": {"c": 2}}\n{"step": 20}\n{"step": 20, "eval_loss": NaN}\n')],
)  # fmt: skip
@pytest.mark.parametrize("torn", ["", '{"step": 5, "a"', '{"step": 5, "b": {"c": 2}', '{"step": 5}', '"a'])
def test_a_log_is_cut_back_to_whole_lines_up_to_the_step(tmp_path, step, kept, torn):
    log = tmp_path / "log.jsonl"
    lines = ['{"step": 0, "a": 1}', '{"step": 10, "b": {"c": 2}}', '{"step": 20}', '{"step": 20, "eval_loss": NaN}',
             '{"step": 30}']  # fmt: skip
    log.write_bytes("".join(f"{line}\n" for line in lines).encode() + torn.encode())
    cut_log(log, step)
    assert log.read_bytes() == kept.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_is_not_there_is_as_good_as_empty(tmp_path):
    cut_log(tmp_path / "log.jsonl", 7)
    assert not (tmp_path / "log.jsonl").exists() or (tmp_path / "log.jsonl").read_text() == ""


# ---------------------------------------------------------------- run_main


@pytest.fixture
def slept(monkeypatch):
    """Set as the environment of one process; gives the seconds that it waits, which the tests need not."""
    seconds = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["/somewhere/run_x.py", "--flag"])
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("main", "status", "message"),
    [(mistake, 2, "run_x.py: error: a mistake of the user's\n"), (interrupted, 130, "run_x.py: stopped by Ctrl-C")],
)
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_a_mistake_and_ctrl_c_end_with_their_status_and_one_message(
    slept, capsys, monkeypatch, rank, main, status, message
):
    if rank:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == status
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(message) and printed.err.count("\n") == 1
    # The launcher ends the other processes as soon as the first is gone: they wait, so that it alone speaks.
    assert bool(sum(slept) > 5) == (rank == "1")


def test_a_run_that_ends_well_says_nothing(slept, capsys):
    assert run_main(lambda: None) is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError])
def test_a_mistake_of_ours_keeps_its_traceback(slept, error):
    def main():
        raise error("ours")

    with pytest.raises(error, match="ours"):
        run_main(main)


def test_an_exit_status_of_a_scripts_own_stays(slept):
    with pytest.raises(SystemExit) as end:
        run_main(lambda: sys.exit(3))
    assert end.value.code == 3


def test_the_message_of_a_script_names_it_by_its_file_name(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", [str(Path("folder", "run_y.py"))])
    with pytest.raises(SystemExit):
        run_main(mistake)
    assert capsys.readouterr().err.startswith("run_y.py: ")


def test_out_of_memory_names_flags_that_give_the_same_result():
    said = str(out_of_memory(16, 128, 3))
    assert "at 16 examples of 128 tokens" in said and "eval" not in said
    assert "--per_device_train_batch_size 8 --gradient_accumulation_steps 6" in said
    assert "--per_device_train_batch_size 3 --gradient_accumulation_steps 3" in str(out_of_memory(9, 128, 1))
    assert "accumulation" not in str(out_of_memory(1, 128, 4))  # one example does not divide
    said = str(out_of_memory(1, 512))  # a run that does not train
    assert "--per_device_eval_batch_size 1" in said and "accumulation" not in said and "checkpointing" not in said
