"""README.md and docs/ say what is so: flags, values, files and links exist, and a command of each kind runs.

Commands are read out of blocks marked sh. Files of the user that they name are the examples of the documents: a block
below a line that names a file in backticks and ends in a colon. A model of the Hub is a small one here.
"""

import contextlib
import functools
import importlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from helpers import ROOT, run_script

from tools.offline_model import offline_model_path
from tools.python_reference import write_reference

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
TASKS = ("mlm", "nsp", "pretraining", "ner", "qa")
# Files of the user that are laid out as another one is, of which the documents show an example.
ALIKE = {"held_out.txt": "corpus.txt", "article.txt": "corpus.txt", "dev.json": "train.json"}
ALIKE |= dict.fromkeys(("dev.conll", "test.conll", "more.conll"), "train.conll")
COPIES = 20  # of an example of text, so that there is enough of it to train on
OTHERS = {"--extra-index-url", "--local-dir"}  # flags of pip and hf
BRIEF = {"max_steps": 1, "max_train_samples": 8, "max_eval_samples": 4}  # makes a training short
GLOBAL_BATCH = 4
SAME_KIND = {  # a command with these flags is of the same kind as one without
    "model", "output_dir", "num_train_epochs", "learning_rate", "warmup_steps", "max_seq_length",
    "save_strategy", "save_steps", "save_total_limit", "mixed_precision", "cpu_threads",
    "pseudo_label_rounds", "pseudo_label_threshold", "sentences_per_document",
    "max_train_samples", "max_eval_samples", "run_name",
}  # fmt: skip
NEEDS_HUB = ("dataset_name", "push_to_hub")  # flags of commands that cannot run here


# ---------------------------------------------------------------- what the documents hold


@dataclass
class Command:
    """A command of a document: where it stands, its words, and its part that is typed for a script."""

    place: str
    words: list
    script: str | None  # file name
    flags: list  # words behind the script's name

    def settings(self):
        """Turn the flags into a dict of name to its value, a list of several, or True."""
        found = {}
        for word in self.flags:
            if word.startswith("--"):
                found[name := word[2:]] = []
            else:
                found[name].append(word)
        return {name: values[0] if len(values) == 1 else values or True for name, values in found.items()}


def read_blocks(path):
    """Read the fenced blocks of a document: yields (number of the first line, kind, line above, lines)."""
    block = None
    above = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if block is not None and line == "```":
            yield block
            block, above = None, ""
        elif block is not None:
            block[3].append(line)
        elif line.startswith("```"):
            block = (number + 1, line[3:], above, [])
        elif line:
            above = line
    assert block is None, f"{path.name}: the block of line {block[0]} has no end"


def read_commands(path):
    """Read the commands of a document: yields Commands."""
    for first, kind, _, lines in read_blocks(path):
        if kind not in ("sh", "bash"):
            continue
        text = re.sub(r"\\\n *", " ", "\n".join(lines))
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                at = words.index("&&")
                yield make_command(f"{path.name}, block of line {first}", words[:at])
                words = words[at + 1 :]
            if words:
                yield make_command(f"{path.name}, block of line {first}", words)


def make_command(place, words):
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of the environment
        words = words[1:]
    script, flags = None, []
    if words[0] in ("python", "accelerate", "uv"):
        at = next((n for n, word in enumerate(words) if re.fullmatch(r"run_\w+\.py", word)), None)
        if at is not None:
            script, flags = words[at], words[at + 1 :]
    return Command(f"{place}: {shlex.join(words)[:70]}", words, script, flags)


COMMANDS = [command for path in DOCUMENTS for command in read_commands(path)]
TYPED = [command for command in COMMANDS if command.script]


def read_examples():
    """Read the examples of files that the documents show: dict of name to text."""
    found = {}
    for path in DOCUMENTS:
        for _, _, above, lines in read_blocks(path):
            name = re.search(r"`(\w+\.[a-z]+)`", above)
            if name and above.endswith(":"):
                assert name[1] not in found, f"{path.name}: there is an example of {name[1]} already"
                found[name[1]] = "\n".join(lines) + "\n"
    return found


@functools.cache
def help_of(name):
    """What --help of a program prints: run_mlm, or tools.report."""
    before, printed = sys.argv, io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        if name.startswith("run_"):
            importlib.import_module(name).parse_args(["--help"])
        else:
            sys.argv = [name, "--help"]
            runpy.run_module(name, run_name="__main__")
    sys.argv = before
    return printed.getvalue()


def flags_of(name):
    return {*re.findall(r"--[\w-]+", help_of(name))}


def anchors_of(path):
    """Anchors of a document's headings, as GitHub makes them."""
    fenced = re.sub(r"(?s)```.*?```", "", path.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ (.*)$", fenced)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def prose_of(path):
    """The text of a document without its blocks."""
    return re.sub(r"(?s)```.*?\n```", "", path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- a folder to type them in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a user has it: the repository's own files, and those that the documents call the user's."""
    folder = tmp_path_factory.mktemp("typed")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copy(ROOT / "accelerate_config.yaml", folder)
    examples = read_examples()
    examples |= {name: examples[model] for name, model in ALIKE.items()}
    for name, text in examples.items():
        copies = [text] * (COPIES if name.endswith((".txt", ".conll")) else 1)
        (folder / name).write_text("\n".join(copies), encoding="utf-8")
    (folder / "outputs").mkdir()
    write_reference(folder / "outputs" / "python_reference.txt")
    return folder


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory):
    """Folder of a BERT with the offline model's tokenizer, one layer of 32, both heads, and random weights."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertForPreTraining

    folder, offline = tmp_path_factory.mktemp("small_bert"), offline_model_path()
    AutoTokenizer.from_pretrained(offline).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForPreTraining(AutoConfig.from_pretrained(offline, **sizes)).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- what can be typed


@pytest.mark.parametrize("command", TYPED, ids=lambda command: command.place)
def test_the_flags_of_a_command_are_those_of_its_script(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    args = importlib.import_module(Path(command.script).stem).parse_args(command.flags)
    for name in ("train_file", "validation_file", "test_file", "unlabeled_file", "questions_file", "context_file"):
        files = getattr(args, name, None) or []
        for pattern in [files] if isinstance(files, str) else files:
            assert [*folder.glob(pattern)], f"--{name} {pattern}: no example of it stands in the documents"


@pytest.mark.parametrize("name", read_examples())
def test_an_example_of_a_file_is_of_use_in_a_command(name):
    assert any(name in command.flags for command in TYPED)


@pytest.mark.parametrize("script", [f"run_{task}.py" for task in TASKS])
def test_each_script_has_a_line_of_its_own_in_the_readme(script):
    assert any(command.script == script for command in read_commands(README))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_a_command_calls_what_there_is(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    program, *words = command.words
    if program == "accelerate":
        assert words[0] == "launch"
        args = launch_command_parser().parse_args(words[1:])
        assert (ROOT / args.training_script).is_file()
        assert args.config_file is None or Path(args.config_file).is_file()
    elif program == "make":
        targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
        assert {*words} <= {*targets}
    elif "pytest" in words:
        assert words[:2] == ["-m", "pytest"] and program.endswith("python")
        paths = [word for word in words if word.startswith("tests/")]
        assert all((ROOT / path).is_file() for path in paths)
    elif program == "python" and words[0] == "-m":
        assert ROOT.joinpath(*words[1].split(".")).with_suffix(".py").is_file()
        typed = {word for word in words if word.startswith("--")}
        assert not typed or typed <= flags_of(words[1])
    elif program == "pip":
        assert words[0] == "install"
        assert all((ROOT / word).is_file() for word in words if word.endswith(".txt"))
    elif program == "uv":
        assert words[0] == "run" and (ROOT / words[1]).is_file()
    elif program == "cp":
        assert all((ROOT / word).is_file() or (folder / word).is_file() for word in words[:-1])
    elif program == "python" or "/" in program:
        assert (ROOT / (words[0] if program == "python" else program)).is_file()
    else:
        assert program in ("cd", "mkdir")


# ---------------------------------------------------------------- what the text says


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = prose_of(path)
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = path.parent / name if name else path
        assert there.exists(), target
        assert not anchor or anchors_of(there).count(anchor) == 1, target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_flags_that_are_named_in_the_text_exist(path):
    words = re.findall(r"`([^`]+)`", prose_of(path))
    own = r"(benchmarks|docs|examples|tests|tools|utils)/[\w./]+|\.ci/run|run_\w+\.py|\w+\.(md|yaml)|[\w-]+\.txt"
    of_users = {*read_examples(), *ALIKE, "meditations.txt", "MODEL_CARD.md", "run_x.py", ".txt"}
    for name in [word for word in words if re.fullmatch(own, word)]:
        assert (ROOT / name).exists() or name in of_users, name
    known = OTHERS | {*launch_command_parser()._option_string_actions}
    for program in [f"run_{task}" for task in TASKS] + ["tools.demo", "tools.check_copies"]:
        known |= flags_of(program)
    for program in re.findall(r"python -m (benchmarks\.[a-z_]+)", path.read_text(encoding="utf-8")):
        known |= flags_of(program)
    for word in words:
        for flag in re.findall(r"(?<!\S)--[\w-]+", word):
            assert flag in known, f"{flag}: no program has it"


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_fit_a_screen(path):
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert not [number for number, line in lines if len(line) > 120 and not line.startswith("|")]


# ---------------------------------------------------------------- what runs


def takes_offline_model(command):
    """Whether a command names the offline model itself. (With a file of flags, that would take too long.)"""
    settings = command.settings()
    return str(settings.get("model")).startswith("$(") and "config" not in settings


def processes_of(command):
    """How many processes the launcher is told to start."""
    count = re.search(r"--num_processes (\d+)", " ".join(command.words))
    return int(count[1]) if count else 1


def kind_of(command):
    """What tells a command apart from others: script, flags that matter, kind of the text, offline model, processes."""
    settings = command.settings()
    suffix = Path(str(settings.get("train_file", ""))).suffix
    flags = frozenset(settings) - SAME_KIND
    return command.script, flags, suffix, takes_offline_model(command), processes_of(command)


def is_run(command):
    """Whether a command can run in seconds without network: on two processes at most, with data that are here."""
    settings = command.settings()
    config = settings.get("config")
    text = (ROOT / config).read_text(encoding="utf-8") if config and (ROOT / config).exists() else ""
    needs_hub = any(name in settings or f"\n{name}:" in text for name in NEEDS_HUB)
    return not needs_hub and command.words[0] != "uv" and processes_of(command) <= 2


def first_of_each_kind():
    """Take one command of each kind, in the order in which a reader meets them."""
    found = {}
    for command in [command for command in TYPED if is_run(command)]:
        found.setdefault(kind_of(command), command)
    return [*found.values()]


def run_command(command, folder, small_bert, monkeypatch):
    """Run a command for one update, with models of the Hub replaced: what it printed."""
    monkeypatch.chdir(folder)
    args = importlib.import_module(Path(command.script).stem).parse_args(command.flags)
    processes = processes_of(command)
    settings = command.settings() | {"mixed_precision": "no", "cpu_threads": 1}
    if takes_offline_model(command):
        settings["model"] = offline_model_path()
    elif not (folder / args.model).is_dir():
        settings["model"] = small_bert
    if args.do_train:
        settings |= BRIEF | {"per_device_train_batch_size": GLOBAL_BATCH // processes}
        settings["overwrite_output_dir"] = not args.resume_from_checkpoint
    done = run_script(command.script, settings, folder=folder, processes=processes)
    assert done.status == 0, f"{command.place}\n{done.out[-2000:]}\n{done.err[-2000:]}"
    output_dir = folder / args.output_dir
    if args.do_train:
        assert (output_dir / "model.safetensors").exists()
        results = json.loads((output_dir / "all_results.json").read_text(encoding="utf-8"))
        assert results["step"] == 1
    return done.out


@pytest.mark.slow
@pytest.mark.parametrize("script", [f"run_{task}.py" for task in TASKS])
def test_a_command_of_each_kind_runs(script, folder, small_bert, monkeypatch):
    """In the order of the documents, so that each finds what those before it have left."""
    commands = [command for command in first_of_each_kind() if command.script == script]
    assert commands
    for command in commands:
        assert run_command(command, folder, small_bert, monkeypatch)
