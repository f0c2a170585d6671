"""Many clients at once at the HTTP API of the demo page: how long an answer takes, and whether it is the right one.

    python -m benchmarks.demo                        the models that python -m tools.demo takes
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
        command = [sys.executable, "-m", "tools.demo", *map(str, self.words), "--port", str(self.port)]
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


def load(page, names, clients, requests):
    """Ask from several clients at once, each endpoint in turn: (list of name, seconds and error or None; seconds)."""
    with page.client() as client:
        expected = {name: [ask(client, name, fields) for fields in QUESTIONS[name]] for name in names}
    ready = threading.Barrier(clients)

    def run(number):
        done = []
        with page.client() as client:
            ready.wait()
            for n in range(requests):
                name, fault, begun = names[(number + n) % len(names)], None, time.perf_counter()
                which = n // len(names) % len(expected[name])
                try:
                    if ask(client, name, QUESTIONS[name][which]) != expected[name][which]:
                        fault = "another answer than alone"
                except (RuntimeError, httpx.HTTPError, ValueError) as error:
                    fault = f"{type(error).__name__}: {error}"
                done.append((name, time.perf_counter() - begun, fault))
        return done

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        done = [answer for part in pool.map(run, range(clients)) for answer in part]
    return done, time.perf_counter() - begun


def row(name, done, seconds):
    """Lay out a row of the table, of the answers of one endpoint or of all."""
    times = [1000 * took for _, took, _ in done]
    errors = sum(fault is not None for *_, fault in done)
    return [name, f"{len(done):,}", f"{errors:,}", f"{statistics.median(times):.0f}",
            f"{statistics.quantiles(times, n=20)[-1]:.0f}", f"{len(done) / seconds:.1f}"]


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=8, help="how many ask at once")
    parser.add_argument("--requests", type=int, default=200, help="how many each sends, to all endpoints in turn")
    for flag in FLAGS:
        parser.add_argument(f"--{flag}", metavar="DIR", help="as of python -m tools.demo")
    args = parser.parse_args(argv)
    given = [word for flag in FLAGS if getattr(args, flag) for word in (f"--{flag}", getattr(args, flag))]
    with Page(given, timeout=3600) as page:
        with page.client() as client:
            names = endpoints(client)
        done, seconds = load(page, names, args.clients, args.requests)
    print(f"\n{args.clients} clients at once, {args.requests} requests each; {describe_machine()}")
    rows = [row(name, [answer for answer in done if answer[0] == name], seconds) for name in names]
    print_table(["endpoint", "requests", "errors", "median, ms", "95th percentile, ms", "requests a second"],
                [*rows, row("all", done, seconds)])
    faults = [fault for *_, fault in done if fault]
    for fault in sorted({*faults}):
        print(f"{faults.count(fault):,} x {fault}", file=sys.stderr)
    return 1 if faults or len(done) < args.clients * args.requests else 0


if __name__ == "__main__":
    sys.exit(main())
