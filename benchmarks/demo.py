"""Many clients at once at the HTTP API of the demo page: how long an answer takes, and whether it is the right one.

    python -m benchmarks.demo                        the models that python -m utils.demo takes
    python -m benchmarks.demo --ner outputs/ner      these alone: --mlm, --nsp, --pretraining, --ner, --qa

The page runs in a process of its own. Each answer is held against the one that the same question got alone.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.harness import ROOT, describe_machine, parser_of, print_table

FILLS = [(f"A [MASK] {word} is a [MASK].",) for word in ("function", "class", "list", "name")]
PAIRS = [("The name is bound to an object.", f"The {word} can be read.") for word in ("object", "name", "list", "moon")]
TEXTS = [(f"Ada Lovelace met {name} in London. " * 10,) for name in ("Charles Babbage", "Mary Somerville", "a Swiss")]
ASKED = [(question, TEXTS[0][0] + "Her notes were long.") for question in ("Who met Babbage?", "Where?", "What?")]
QUESTIONS = {
    "fill_mask": FILLS,
    "next_sentence": PAIRS,
    "pretraining_fill_mask": FILLS,
    "pretraining_next_sentence": PAIRS,
    "entities": TEXTS,
    "question_answering": ASKED,
}
FLAGS = ("mlm", "nsp", "pretraining", "ner", "qa")


class Page:
    """The demo page in a process of its own, on a free port, while the context lasts; url is its address.

    Args:
        words: of its command line. folder: working folder. env: more variables of the environment.
        timeout: seconds until it must be there.
    """

    def __init__(self, words, folder=".", env=None, timeout=60):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.words, self.folder, self.env, self.timeout = words, folder, env or {}, timeout
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        variables = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | self.env
        command = [sys.executable, "-m", "utils.demo", *map(str, self.words), "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=self.folder, env=variables)
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(self.url, trust_env=False)
                return self
            except httpx.TransportError:
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"{' '.join(command)}: not there after {self.timeout} s; exit status {self.process.poll()}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def client(self):
        return httpx.Client(base_url=f"{self.url}/gradio_api", timeout=600, trust_env=False)


def ask(client, name, fields):
    """Ask an endpoint: its answer. RuntimeError with what it says where it refuses."""
    call = client.post(f"/call/{name}", json={"data": fields}).raise_for_status().json()["event_id"]
    # Server-sent events: blocks of "event: KIND" and "data: JSON"; the last one is the answer or an error.
    kind, data = client.get(f"/call/{name}/{call}").raise_for_status().text.strip().split("\n")[-2:]
    data = json.loads(data.removeprefix("data: "))
    if kind != "event: complete":
        raise RuntimeError(data["error"])
    return data[0]


def endpoints(client):
    """List the endpoints of the page."""
    return [name.removeprefix("/") for name in client.get("/info").json()["named_endpoints"]]


def load(page, name, clients, requests):
    """Ask an endpoint from several clients at once: (seconds of each answer, errors, seconds in all)."""
    with page.client() as client:
        expected = [ask(client, name, fields) for fields in QUESTIONS[name]]
    ready = threading.Barrier(clients)

    def run(number):
        times, errors = [], []
        with page.client() as client:
            ready.wait()
            for n in range(requests):
                which, begun = (number + n) % len(expected), time.perf_counter()
                try:
                    if ask(client, name, QUESTIONS[name][which]) != expected[which]:
                        errors.append("another answer than alone")
                except (RuntimeError, httpx.HTTPError, ValueError) as error:
                    errors.append(f"{type(error).__name__}: {error}")
                times.append(time.perf_counter() - begun)
        return times, errors

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(run, range(clients)))
    return [t for times, _ in parts for t in times], [e for _, errors in parts for e in errors], (
        time.perf_counter() - begun)


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=8, help="how many ask at once")
    parser.add_argument("--requests", type=int, default=200, help="how many each sends to each endpoint")
    for flag in FLAGS:
        parser.add_argument(f"--{flag}", metavar="DIR", help="as of python -m utils.demo")
    args = parser.parse_args(argv)
    given = [word for flag in FLAGS if getattr(args, flag) for word in (f"--{flag}", getattr(args, flag))]
    rows, failed = [], []
    with Page(given, timeout=3600) as page:
        with page.client() as client:
            names = endpoints(client)
        for name in names:
            times, errors, seconds = load(page, name, args.clients, args.requests)
            print(f"{name}: done in {seconds:.0f} s", file=sys.stderr, flush=True)
            failed += errors
            rows.append([name, f"{len(times):,}", f"{len(errors):,}", f"{1000 * statistics.median(times):.0f}",
                         f"{1000 * statistics.quantiles(times, n=20)[-1]:.0f}", f"{len(times) / seconds:.0f}"])
    print(f"\n{args.clients} clients at once, {args.requests} requests each; {describe_machine()}")
    print_table(["endpoint", "requests", "errors", "median, ms", "95th percentile, ms", "requests a second"], rows)
    for error in sorted({*failed}):
        print(f"{failed.count(error):,} x {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
