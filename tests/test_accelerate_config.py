"""accelerate_config.yaml, put through accelerate's own launcher: how many processes would it start, and how?"""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate.commands.launch as launcher
import accelerate.utils.launch
import pytest
import torch
import torch.distributed.run as torchrun
import yaml
from accelerate.commands.config import config_args
from accelerate.utils import DistributedType

CONFIG = Path(__file__).parents[1] / "accelerate_config.yaml"


@dataclasses.dataclass
class Started:
    """What `accelerate launch` was about to start on one machine."""

    processes: int
    command: list  # of each process; its first item is the Python
    env: dict


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """`accelerate launch` up to the moment where it starts processes, for a user without a default config file."""
    nowhere = str(tmp_path / "accelerate" / "default_config.yaml")
    for module in (launcher, config_args):  # computed from HF_HOME when accelerate is imported, and kept in both
        monkeypatch.setattr(module, "default_config_file", nowhere)
    for kind in ("xpu", "mlu", "sdaa", "musa", "npu", "hpu", "neuron"):
        monkeypatch.setattr(launcher, f"is_{kind}_available", lambda *_, **__: False)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(accelerate.utils.launch, "is_port_in_use", lambda _: False)
    monkeypatch.setattr(launcher, "check_cuda_p2p_ib_support", lambda: True)  # asks nvidia-smi

    started = []

    class Process:  # what a launch without torchrun starts
        returncode = 0

        def __init__(self, command, env):
            started.append(Started(1, command, env))

        def wait(self):
            return 0

    def elastic_launch(config, entrypoint):  # what torchrun starts, once it has made sense of its arguments
        def start(*arguments):
            assert config.min_nodes == config.max_nodes == 1
            started.append(Started(config.nproc_per_node, [entrypoint, *arguments], dict(os.environ)))

        return start

    monkeypatch.setattr(launcher, "subprocess", SimpleNamespace(Popen=Process))
    monkeypatch.setattr(torchrun, "elastic_launch", elastic_launch)

    def run(*arguments, gpus):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        started.clear()
        launcher.launch_command(launcher.launch_command_parser().parse_args([*arguments, "run_mlm.py", "--seed", "7"]))
        (only,) = started
        assert only.command[0] == sys.executable
        assert only.command[-3:] == ["run_mlm.py", "--seed", "7"]
        return only

    return run


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_without_a_config_file_each_gpu_gets_a_process(launch, gpus):
    assert launch(gpus=gpus).processes == gpus


@pytest.mark.parametrize("gpus", [0, 1])
def test_without_a_config_file_a_laptop_gets_one_process(launch, gpus):
    assert launch(gpus=gpus).processes == 1


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_our_file_means_one_process_on_any_machine(launch, gpus):
    assert launch("--config_file", str(CONFIG), gpus=gpus).processes == 1


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_multi_gpu_and_a_number_mean_that_many_processes(launch, processes):
    flags = ("--multi_gpu", "--num_processes", str(processes))
    assert launch("--config_file", str(CONFIG), *flags, gpus=4).processes == processes


def test_accelerate_resolves_the_file_to_plain_settings(launch):
    args, defaults, _ = launcher._validate_launch_command(
        launcher.launch_command_parser().parse_args(["--config_file", str(CONFIG), "run_mlm.py"])
    )
    assert (args.num_processes, args.num_machines, args.mixed_precision) == (1, 1, "no")
    assert (args.gpu_ids, args.use_cpu, args.debug) == ("all", False, False)
    assert defaults.distributed_type is DistributedType.NO  # a bare NO would be YAML's false
    assert not any([args.multi_gpu, args.tpu, args.use_deepspeed, args.use_fsdp, args.use_megatron_lm])


@pytest.mark.parametrize("flags", [(), ("--multi_gpu", "--num_processes", "2")], ids=["one process", "two"])
def test_the_scripts_get_to_choose_device_and_precision(launch, flags):
    env = launch("--config_file", str(CONFIG), *flags, gpus=4).env
    assert env["ACCELERATE_MIXED_PRECISION"] == "no"
    assert env.get("ACCELERATE_USE_CPU", "False") == "False"
    assert "ACCELERATE_DEBUG_MODE" not in env
    assert env.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("gpus", [0, 4])
def test_our_file_leaves_no_value_for_accelerate_to_warn_about(launch, caplog, recwarn, gpus):
    launch(gpus=gpus)
    assert "values were not passed" in caplog.text  # so that silence means something
    caplog.clear()
    recwarn.clear()
    launch("--config_file", str(CONFIG), gpus=gpus)
    launch("--config_file", str(CONFIG), "--multi_gpu", "--num_processes", "2", gpus=gpus)
    assert not caplog.records
    assert not recwarn.list


def test_the_file_itself_says_one_machine_and_one_process():
    stated = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert (stated["num_machines"], stated["num_processes"]) == (1, 1)


def test_accelerate_knows_every_key():
    known = {field.name for field in dataclasses.fields(config_args.ClusterConfig)}
    assert set(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))) <= known


def test_every_key_has_a_comment():
    blocks = CONFIG.read_text(encoding="utf-8").strip().split("\n\n")
    commented = [match[1] for block in blocks if (match := re.fullmatch(r"(?:# \S.*\n)+(\w+): \S.*", block))]
    assert commented == list(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launch_starts_that_many(tmp_path, processes):
    script = tmp_path / "run_nothing.py"
    script.write_text('import os\nprint("process", os.environ.get("RANK", "0"))\n', encoding="utf-8")
    flags = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", "0"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), *flags, str(script)],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"process \d", done.stdout)) == [f"process {rank}" for rank in range(processes)]
    assert "not passed" not in done.stderr
