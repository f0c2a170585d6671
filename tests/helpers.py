"""What the tests of the scripts share: to run a script as its own process, and to read what it leaves behind.

A process that starts from nothing needs five seconds to import torch and transformers. Here a server imports them once,
and each run is a fork of it: a real process, with its own exit status, signals and streams, after a tenth of a second.
Where such forks are not safe (macOS, Windows), each run starts from nothing, and the tests take their time.
"""

import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
FORKS = sys.platform == "linux"
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    CONTEXT.set_forkserver_preload(
        [
            "pytest",
            "torch",
            "accelerate",
            "datasets",
            "safetensors.torch",
            "pyarrow.parquet",
            "transformers.models.bert.modeling_bert",
            "nanotoken",
            "transformers.trainer",
            "transformers.hf_argparser",
            "evaluate",
            "seqeval.metrics",
            "matplotlib.backends.backend_agg",
            "matplotlib.figure",
            "helpers",
        ]
    )

ALIKE = {"mixed_precision": "no", "cpu_threads": 1}  # float32, and sums in the same order on any machine


def command_line(**settings):
    """Turn settings into flags: True is a bare flag, None and False are left out, a list is several values."""
    words = []
    for name, value in settings.items():
        if value is None or value is False:
            continue
        values = [] if value is True else value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *map(str, values)]
    return words


@dataclass
class Done:
    """How a run ended: its exit status (negative: the signal that ended it), and what it printed."""

    status: int
    out: str
    err: str

    def checked(self):
        assert self.status == 0, f"exit status {self.status}\n{self.out}\n{self.err}"
        return self


class Run:
    """A script that runs in one or several processes of its own, as `accelerate launch` would start them.

    Args:
        script: file name of the script, at the root of the repository.
        settings: its flags, as for command_line.
        folder: working folder; what the processes print goes into files there.
        processes: how many. With several, they get the environment that torchrun gives.
        env: more variables of the environment.
        prepare: picklable function called in each process before the script starts, for a test to set a trap.
    """

    def __init__(self, script, settings, folder, processes=1, env=None, prepare=None):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stamp = f"{script}-{time.monotonic_ns()}"
        self.streams = [folder / f"{stamp}.out", folder / f"{stamp}.err"]
        argv = [str(ROOT / script), *command_line(**settings)]
        self.processes = []
        for rank in range(processes):
            variables = dict(env or {})
            if processes > 1:
                if not rank:
                    with socket.socket() as probe:
                        probe.bind(("127.0.0.1", 0))
                        port = probe.getsockname()[1]
                variables |= {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": processes,
                    "LOCAL_WORLD_SIZE": processes,
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "ACCELERATE_USE_CPU": "true",
                }
            self.processes.append(
                CONTEXT.Process(target=call_script, args=(argv, folder, variables, self.streams, prepare))
            )
            self.processes[-1].start()

    def send(self, number):
        os.kill(self.processes[0].pid, number)

    def is_alive(self):
        return any(process.is_alive() for process in self.processes)

    def wait(self, timeout=240):
        """Wait for the end. As soon as one of several has failed, the others are ended, as a launcher does.

        One that ends because it was asked to stop is not a failure: all of them are about to.
        """
        stopped = (None, 0, 128 + signal.SIGTERM, 128 + signal.SIGINT)
        deadline = time.monotonic() + timeout
        try:
            while self.is_alive():
                if any(process.exitcode not in stopped for process in self.processes) or time.monotonic() > deadline:
                    break
                multiprocessing.connection.wait(
                    [process.sentinel for process in self.processes if process.is_alive()], 0.5
                )
            late = time.monotonic() > deadline
            codes = [process.exitcode for process in self.processes]
        finally:
            self.end()
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self.streams)
        assert not late, f"still running after {timeout} s\n{out}\n{err}"
        return Done(next((code for code in codes if code), 0), out, err)

    def end(self):
        for process in self.processes:
            if process.is_alive():
                process.terminate()
                process.join(10)
            if process.is_alive():
                process.kill()
            process.join()


def call_script(argv, folder, variables, streams, prepare):
    """In the new process: point its streams to files, set its environment, and call the script as `python` does."""
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    multiprocessing.set_start_method(None, force=True)  # data workers start as they do elsewhere, not by this server
    os.chdir(folder)
    os.environ.update({name: str(value) for name, value in variables.items()})
    sys.argv = argv
    if prepare:
        prepare()
    sys.path[0] = str(Path(argv[0]).parent)
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_script(script, defaults, *, folder, processes=1, env=None, prepare=None, **settings):
    """Run a script to its end in processes of its own, with settings beside the defaults, as Run does: a Done."""
    done = Run(script, {**defaults, **settings}, folder, processes, env, prepare).wait()
    for line in re.findall("Running on .*", done.out):
        assert f"{processes} process" in line  # a launch can fall back to one
    return done


def contents(folder):
    """Read all files of a folder: dict of path in it to bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def read_log(output_dir, *names):
    """Lines of log.jsonl as dicts; with names, only those that carry all of them."""
    lines = (Path(output_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if all(name in entry for name in names)]


def read_results(output_dir):
    return json.loads((Path(output_dir) / "all_results.json").read_text(encoding="utf-8"))


def run_fresh(words, folder, env=None, timeout=300):
    """Run Python with arguments from nothing, on the CPU, in a folder: a Done."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", **(env or {})}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=timeout
    )
    return Done(done.returncode, done.stdout, done.stderr)


def accelerate_launch(script, settings, folder, processes=1, **how):
    """Run a script by `accelerate launch`, from nothing, in a folder: a Done."""
    several = ["--multi_gpu", "--num_processes", processes, "--main_process_port", 0] if processes > 1 else []
    return run_fresh(["-m", "accelerate.commands.launch", *several, script, *command_line(**settings)], folder, **how)


def write_documents(path, documents):
    """Write documents, lists of lines, as text: a blank line between two of them."""
    path.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n", encoding="utf-8")
    return path


def read_documents(path, tokenizer, sentence_per_line=False):
    """Read such a file by sentencex and the tokenizer alone: the Documents that pairs are made of."""
    import pyarrow as pa
    import sentencex
    from datasets import Dataset

    from utils.pairs import Documents

    rows = {"ids": [], "document": []}
    for number, document in enumerate(path.read_text(encoding="utf-8").split("\n\n")):
        for line in document.splitlines():
            for sentence in [line] if sentence_per_line else sentencex.segment("en", line):
                if sentence.strip():
                    rows["ids"].append(tokenizer(sentence.strip(), add_special_tokens=False)["input_ids"])
                    rows["document"].append(number)
    types = pa.schema({"ids": pa.large_list(pa.int32()), "document": pa.int64()})
    return Documents(Dataset(pa.table(rows, types)).with_format("arrow"))


def hide_nothing(rows, _example_ids, _epoch):
    """In place of a Masker, so that it can be seen which pairs a collator makes."""
    import torch

    none = torch.zeros(0, dtype=torch.int64)
    return rows, none, none


def add_pair_head(folder, tiny_bert):
    """Make the tiny BERT one with heads for masked tokens and for pairs: its folder.

    Its random weights are large enough for scores far from those of a uniform model.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertForPreTraining

    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertForPreTraining(AutoConfig.from_pretrained(tiny_bert))
    model.cls.seq_relationship.weight.data.mul_(4)
    model.save_pretrained(folder)
    return folder


def write_manifest(folder):
    """Make a checkpoint whole again whose files a test has changed."""
    from utils.checkpoints import hash_folder

    (Path(folder) / "manifest.json").write_text(json.dumps(hash_folder(folder)), encoding="utf-8")


def make_masker(vocab_size, mask_id, special, seed=0, **flags):
    """Make a Masker for a vocabulary of numbers, in which every third one, 2, 5, 8 …, goes on with the word before it.

    Args:
        vocab_size: how many tokens there are: their ids count from 0; [MASK] may lie above all others.
        mask_id: id of [MASK].
        special: ids of the other special tokens, which start words.
        seed: of the masks.
        flags: other values of the masking flags than a run has by default.
    """
    from argparse import Namespace

    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from utils.masks import Masker

    ids = [*range(vocab_size - (mask_id >= vocab_size)), *([mask_id] if mask_id >= vocab_size else [])]
    names = {n: f"##{n}" if n % 3 == 2 else f"{n}" for n in ids} | {n: f"[{n}]" for n in [*special, mask_id]}
    raw = Tokenizer(models.WordLevel({name: n for n, name in names.items()}, unk_token=names[0]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, mask_token=names[mask_id], extra_special_tokens=[names[n] for n in special]
    )
    assert len(tokenizer) == vocab_size
    defaults = {"masking": "token", "mlm_probability": 0.15, "mask_replace_prob": 0.8, "random_replace_prob": 0.1}
    return Masker(tokenizer, Namespace(**defaults | flags), seed)


def write_lines(path, lines, encoding="utf-8", newline="\n"):
    path.write_bytes(newline.join([*lines, ""]).encode(encoding))
    return path


def assert_one_message(done, fragments):
    assert done.status == 2, done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.count("error:") == 1
    message = done.err.rstrip().splitlines()[-1]
    assert message.startswith("run_mlm.py: error: ")
    for fragment in fragments:
        assert fragment in message


# ---------------------------------------------------------------- sentences with tags, and questions

# Words that are pieces of their own in the tiny vocabulary, so that a few updates learn them, and some that are not.
NAMES = {
    "PER": ["object", "method", "class", "Lovelace"],
    "LOC": ["module", "namespace", "python", "Reykjavik"],
    "ORG": ["string", "list", "tuple", "Unesco"],
}
OTHERS = ["the", "of", "is", "in", "value", "name", "with", "from", "übermorgen", "日本語", "xylophone", "and", "a"]
QA_SIZES = {"max_seq_length": 48, "doc_stride": 8}


def tagged(count, seed, longest=10, kinds=("PER", "LOC", "ORG")):
    """Make sentences, lists of (word, tag in IOB2); entities of 1 to 3 words, some right behind one of their type."""
    chance, sentences = random.Random(seed), []
    for _ in range(count):
        words = []
        for _ in range(chance.randint(1, longest)):
            kind = chance.choice([*kinds, None, None, None])
            if kind is None:
                words.append((chance.choice(OTHERS), "O"))
            else:
                size = chance.randint(1, 3)
                words += [(chance.choice(NAMES[kind]), f"{'I' if n else 'B'}-{kind}") for n in range(size)]
        sentences.append(words)
    return sentences


def write_conll(path, sentences, docstart_every=None):
    lines = []
    for n, words in enumerate(sentences):
        if docstart_every and n % docstart_every == 0:
            lines += ["-DOCSTART- -X- O", ""]
        lines += [*("\t".join(row) for row in words), ""]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_squad(paragraphs, rng, impossible=0.0):
    """Questions on paragraphs in SQuAD's layout: a few words of each as the answer, or, of a share, none."""
    data = []
    for n, text in enumerate(paragraphs):
        text, qas = text[:150].strip(), []
        words = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
        for k in range(2):
            first = int(rng.integers(len(words) - 2))
            start, end = words[first][0], words[first + int(rng.integers(3))][1]
            answers = [{"text": text[start:end], "answer_start": start}]
            if k:
                answers.append({"text": text[:end][-5:], "answer_start": end - 5} if end > 5 else answers[0])
            none = rng.random() < impossible
            question = f"What comes after {text[slice(*words[max(0, first - 1)])]}?"
            qas.append({"id": f"{n}-{k}", "question": question, "answers": [] if none else answers,
                        **({"is_impossible": bool(none)} if impossible else {})})  # fmt: skip
        data.append({"title": str(n), "paragraphs": [{"context": text, "qas": qas}]})
    return {"data": data}


# ---------------------------------------------------------------- traps: runs that are killed or stopped at a moment
#
# A test of kills must not depend on how fast a machine is: "sleep, then kill" hits another moment each time. So a run
# sets itself a trap before it starts (the `prepare` of Run). Python tells its audit hooks what it is about to do, among
# it each file that is opened to write, renamed or removed. `on_change` listens to that, for one folder, and calls an
# action just before the change is made. What the action does is a real SIGKILL or SIGTERM to its own process:
#
#     signal_at(SIGTERM, 7, out)          just before the loss of update 7 is logged: the run is asked to stop
#     kill_at(3, out, "checkpoint-10")    just before the third change to a path with that in its name: half a save
#
# What has happened up to then is on the disk, what follows has not happened. A second run, with
# --resume_from_checkpoint latest, has to end as one that nobody disturbed: `assert_ended_alike` compares bytes.

HALVES = {"processes": 2, "per_device_train_batch_size": 4}  # of a global batch of eight
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def on_change(folder, action):
    """Call action(path) in this process just before it writes to, renames, makes or removes a path in a folder."""

    def hook(event, arguments):
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (event == "open" and arguments[2] & WRITES):
            path = arguments[0] if isinstance(arguments[0], int) else os.path.abspath(os.fsdecode(arguments[0]))
            if isinstance(path, str) and path.startswith(str(folder)):
                action(path)

    sys.addaudithook(hook)


def kill_at(count, folder, within=""):
    """Kill this process just before the count-th change in a folder whose path contains `within`."""
    changes = itertools.count(1)

    def action(path):
        if within in path and next(changes) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    on_change(folder, action)


def count_changes(folder, report):
    """Write down how often this process changes something in a folder, for a test to choose a moment."""
    changes = itertools.count(1)
    on_change(folder, lambda _: report.write_bytes(str(next(changes)).encode()))


def signal_at(number, update, folder):
    """Send this process a signal once, just before it logs the loss of an update, or scores after the one before."""
    sent = []

    def action(path):
        if not sent and path == str(folder / "log.jsonl") and os.path.exists(path):
            with open(path, "rb") as file:
                if file.read().count(b'"loss": ') == update - 1:
                    sent.append(number)
                    os.kill(os.getpid(), number)

    on_change(folder, action)


def names_of_checkpoints(output_dir):
    return sorted(path.name for path in output_dir.glob("checkpoint-*"))


def assert_ended_alike(output_dir, expected):
    """Hold a resumed run against the undisturbed one: weights, log and scores, to the last bit."""
    for name in ("model.safetensors", "log.jsonl", "config.json"):
        assert (output_dir / name).read_bytes() == (expected / name).read_bytes(), name
    times = {"train_runtime", "train_samples_per_second"}
    results, wanted = read_results(output_dir), read_results(expected)
    assert {k: v for k, v in results.items() if k not in times} == {k: v for k, v in wanted.items() if k not in times}
    # A kill between a save and the removal of what is too old leaves one more, until the next save.
    assert set(names_of_checkpoints(expected)) <= set(names_of_checkpoints(output_dir))
    assert not list(output_dir.glob("tmp-*"))
