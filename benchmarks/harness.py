"""What the benchmarks share: text to work on, commands that are timed and watched, and a table of medians."""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tools.offline_model import offline_model_path
from tools.python_reference import write_reference

ROOT = Path(__file__).absolute().parents[1]


def parse_args(parser, argv=None):
    """Add the flags that all benchmarks have, and parse."""
    parser.add_argument(
        "--data", metavar="DIR", help="folder of .txt and .raw files, a paragraph a line (default: Python's reference)"
    )
    parser.add_argument("--model", help="Hub name or folder (default: the offline model of requirements-dev.txt)")
    parser.add_argument("--pairs", type=int, default=5, help="how often each way runs, in turn (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.pairs < 1:
        parser.error(f"--pairs is {args.pairs}; expected 1 or more")
    args.model = args.model or str(offline_model_path())
    args.paragraphs = read_paragraphs(args.data, parser)
    return args


def read_paragraphs(folder, parser):
    """Read the paragraphs of all .txt and .raw files below a folder, in the order of their names."""
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            write_reference(Path(scratch, "reference.txt"))
            return read_paragraphs(scratch, parser)
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".txt", ".raw"))
    lines = [line.strip() for path in files for line in path.read_text(encoding="utf-8").split("\n")]
    paragraphs = [line for line in lines if line]
    if not paragraphs:
        parser.error(f"--data {folder}: no text in any .txt or .raw file there")
    return paragraphs


def write_text(path, paragraphs, megabytes, seed=0):
    """Write the paragraphs, in another order each time round, until there are so many megabytes (10^6 bytes)."""
    rng, paragraphs, size = random.Random(seed), list(paragraphs), 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        while size < megabytes * 1e6:
            rng.shuffle(paragraphs)
            for paragraph in paragraphs:
                size += len(paragraph.encode()) + 1
                file.write(f"{paragraph}\n")
                if size >= megabytes * 1e6:
                    break


@dataclass
class Done:
    """What a command did: seconds in all, its lines and when each came, and peak memory in MB of the script itself."""

    seconds: float = 0.0
    lines: list = field(default_factory=list)
    times: list = field(default_factory=list)
    rss: float = 0.0
    rss_anon: float = 0.0

    def find(self, beginning):
        """Seconds at which each line came that begins so."""
        return [at for line, at in zip(self.lines, self.times, strict=True) if line.startswith(beginning)]

    def prepared_in(self):
        """Seconds that the script says it took to prepare the data."""
        line = next(line for line in self.lines if line.startswith("Prepared"))
        return float(line.split("in", 1)[1].split()[0])


def launch(script, *flags, home, threads=None, watch=True):
    """Run `accelerate launch script flags` to its end.

    Args:
        script: path from the root of the repository.
        home: folder for the caches of the libraries: what lies there is found again.
        threads: OMP_NUM_THREADS; None leaves it to the launcher. watch: note the peak memory, which takes some time.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", str(ROOT / script)]
    variables = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    variables.pop("OMP_NUM_THREADS", None)
    if threads:
        variables["OMP_NUM_THREADS"] = str(threads)
    done, begun = Done(), time.perf_counter()
    command, pipe = [*command, *map(str, flags)], subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(command, env=variables, stdout=pipe, stderr=errors, text=True, encoding="utf-8") as process,
    ):
        watcher = threading.Thread(target=watch_memory, args=(process, done))
        if watch:
            watcher.start()
        for line in process.stdout:
            done.lines.append(line.rstrip("\n"))
            done.times.append(time.perf_counter() - begun)
        process.wait()
        done.seconds = time.perf_counter() - begun
        if watch:
            watcher.join()
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)}: exit status {process.returncode}\n{errors.read()[-4000:]}")
    return done


def watch_memory(process, done):
    """Note the peak of what the script and its workers hold, without the launcher, some fifty times a second."""
    while process.poll() is None:
        rss = shared = 0
        try:
            for child in psutil.Process(process.pid).children(recursive=True):
                memory = child.memory_info()
                rss, shared = rss + memory.rss, shared + getattr(memory, "shared", 0)
        except psutil.NoSuchProcess:
            continue
        done.rss, done.rss_anon = max(done.rss, rss / 1e6), max(done.rss_anon, (rss - shared) / 1e6)
        time.sleep(0.02)


def take_turns(ways, pairs, always_in_this_order=False):
    """Call each of the functions `pairs` times, in turn, from the other end every second time: name to its results."""
    results = {name: [] for name in ways}
    for pair in range(pairs):
        for name in list(ways)[:: 1 if pair % 2 == 0 or always_in_this_order else -1]:
            results[name].append(ways[name](pair))
            print(f"pair {pair + 1} of {pairs}: {name} done", file=sys.stderr, flush=True)
    return results


def median_ratio(slower, faster):
    """Median of the ratios of pairs."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def print_table(header, rows):
    """Print a Markdown table, the first column to the left and the others to the right."""
    print(f"\n| {' | '.join(header)} |\n| --- |{' ---: |' * (len(header) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def describe_machine():
    """Name the processor, its cores and memory."""
    name = "unknown processor"
    if os.path.exists("/proc/cpuinfo"):
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(": ")[2] if models else name
    return f"{name}, {os.cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GiB"


class Scratch:
    """A folder that is gone at the end: caches, texts and models."""

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
        return self.folder

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)


def parser_of(doc):
    return argparse.ArgumentParser(
        description=doc.partition("\n")[0], allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
