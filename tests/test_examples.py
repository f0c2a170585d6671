"""The settings in examples/: each file is made of flags of its script."""

import importlib

import pytest
from helpers import ROOT

TASKS = {
    "mlm": "run_mlm",
    "nsp": "run_nsp",
    "pretraining": "run_pretraining",
    "from_scratch": "run_pretraining",
    "ner": "run_ner",
    "qa": "run_qa",
    "squad": "run_qa",
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.yaml")), ids=lambda path: path.name)
def test_every_example_is_made_of_flags(path):
    (script,) = {script for task, script in TASKS.items() if task in path.stem}
    args = importlib.import_module(script).parse_args(["--config", str(path)])
    assert args.output_dir == f"outputs/{path.stem}"
