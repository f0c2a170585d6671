"""Every script at the root is one file: copied alone into an empty folder, it runs there."""

import ast
import importlib.metadata
import json
import re
import shutil
import sys
import tomllib

import pytest
from helpers import ALIKE, ROOT, accelerate_launch, command_line, read_results, run_fresh

SCRIPTS = sorted(ROOT.glob("run_*.py"))
OPTIONAL = {
    "nanotoken",
    "wandb",
}  # faster, or a tracker: in the block, though the script imports them only where they are
DISTRIBUTIONS = {"yaml": "PyYAML", "huggingface_hub": "huggingface-hub"}  # where an import has another name


def write_sample(script, path, prose):
    """Write a few training rows in a form that the script reads."""
    if script == "run_ner.py":
        sentence = "Ada\tB-PER\nmet\tO\nBabbage\tB-PER\nin\tO\nLondon\tB-LOC\n.\tO\n\n"
        path.write_text(sentence * 24, encoding="utf-8")
    elif script == "run_qa.py":
        paragraph = {
            "context": "Ada met Babbage in London.",
            "qas": [
                {
                    "id": str(n),
                    "question": "Where did Ada meet Babbage?",
                    "answers": [{"text": "London", "answer_start": 19}],
                }
                for n in range(24)
            ],
        }
        path.write_text(
            json.dumps({"version": "1.1", "data": [{"title": "Ada", "paragraphs": [paragraph]}]}), encoding="utf-8"
        )
    else:  # a document a line, of several sentences
        path.write_text("\n".join(" ".join(prose[n : n + 4]) for n in range(0, 200, 4)), encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_copied_alone_it_trains_in_an_empty_folder(script, tiny_bert, prose, tmp_path):
    shutil.copy(script, tmp_path)
    sample = "train.json" if script.name == "run_qa.py" else "train.txt"
    write_sample(script.name, tmp_path / sample, prose)
    settings = {
        **ALIKE,
        "model": tiny_bert,
        "train_file": sample,
        "max_seq_length": 32,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "output_dir": "out",
    }
    accelerate_launch(script.name, settings, tmp_path, env={"PYTHONPATH": "", "PYTHONSAFEPATH": ""}).checked()
    assert "train_samples_per_second" in read_results(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def requirement_lines(lines):
    """Split requirements into a dict of name, in lower case, to bounds."""
    found = (re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", line.split("#")[0].strip()) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


def block_of(script):
    """The script's PEP 723 block, read as the standard says."""
    text = script.read_text(encoding="utf-8")
    (block,) = re.findall(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", text)
    return tomllib.loads(
        "".join(line[2:] if line.startswith("# ") else line[1:] for line in block[0].splitlines(keepends=True))
    )


def imported_distributions(script):
    """Names of the distributions of all that the script imports at its top: what it cannot do without."""
    names = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module.split(".")[0])
    return {DISTRIBUTIONS.get(name, name).lower() for name in names - set(sys.stdlib_module_names)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_its_block_names_what_it_imports_with_the_bounds_of_the_requirements(script):
    block = block_of(script)
    stated = requirement_lines(block["dependencies"])
    bounds = requirement_lines((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    assert block["requires-python"] == ">=3.11"
    assert stated == {name: bounds.get(name, "not in requirements.txt") for name in stated}
    imported = imported_distributions(script)
    assert not imported & {"utils", "tests"}
    # What is imported only where a user has it need not be named: gigatoken and what it comes with.
    assert imported - {"gigatoken", "awkward", "tokenizers"} - OPTIONAL == set(stated) - OPTIONAL


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_it_needs_is_installed_under_these_names(script):
    for name in block_of(script)["dependencies"]:
        importlib.metadata.version(re.split("[>=<]", name)[0])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("missing", ["datasets", "yaml"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(script, missing, tmp_path):
    shutil.copy(script, tmp_path)
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError({f'No module named {missing!r}'!r})\n", encoding="utf-8"
    )
    done = run_fresh([script.name, *command_line(train_file="train.txt")], tmp_path)
    assert done.status == 2
    assert "Traceback" not in done.err
    assert done.err.startswith(f"{script.name}: error: No module named {missing!r}")
    line = next(line for line in done.err.splitlines() if "pip install" in line)
    names = {name.lower() for name in line.split("pip install ")[1].split()}
    assert names == set(requirement_lines(block_of(script)["dependencies"]))
