"""tools/demo.py: what the page says is what the command line says, and what is typed stays text, and stays here.

The tests in a browser, and those with many clients, are slow ones. To write the pictures of docs/, of the models that
lie in outputs/ (or are trained first):

    DEMO_PICTURES=docs python -m pytest -m slow tests/test_demo.py -k browser
"""

import html
import importlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run_fresh, run_script
from PIL import Image

from benchmarks.demo import Page, ask, endpoints
from tools import demo

EVIL = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> ${1+1} {{value}} "\' &amp;'
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def save_heads(folder, base, tokenizer):
    """Save a model of each kind, with random heads that are saved with it: dict of flag to folder."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForMaskedLM,
        AutoModelForNextSentencePrediction,
        AutoModelForPreTraining,
        AutoModelForQuestionAnswering,
        AutoModelForTokenClassification,
    )

    kinds = {
        "mlm": AutoModelForMaskedLM,
        "nsp": AutoModelForNextSentencePrediction,
        "pretraining": AutoModelForPreTraining,
        "ner": AutoModelForTokenClassification,
        "qa": AutoModelForQuestionAnswering,
    }
    folders = {}
    for flag, kind in kinds.items():
        config = AutoConfig.from_pretrained(base)
        if flag == "ner":
            config.id2label, config.label2id = dict(enumerate(LABELS)), {tag: n for n, tag in enumerate(LABELS)}
            config.tag_scheme = "IOB2"
        with torch.random.fork_rng():
            torch.manual_seed(2)
            model = kind.from_pretrained(base, config=config)
            for name, weights in model.named_parameters():
                if flag != "mlm" and not name.startswith("bert.") and weights.dim() == 2:
                    weights.data.normal_(std=0.5)  # so that the answers are not all alike
        model.save_pretrained(folder / flag)
        tokenizer.save_pretrained(folder / flag)
        folders[flag] = str(folder / flag)
    return folders


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory, tiny_bert):
    from transformers import AutoTokenizer

    return save_heads(tmp_path_factory.mktemp("tiny"), tiny_bert, AutoTokenizer.from_pretrained(tiny_bert))


@pytest.fixture(scope="module")
def parts(tiny_models):
    """The functions that answer, by the name of their endpoint."""
    return {
        "fill_mask": demo.FillMask({"adapted": tiny_models["mlm"], "base": tiny_models["pretraining"]}),
        "next_sentence": demo.NextSentence(tiny_models["nsp"]),
        "entities": demo.Entities(tiny_models["ner"]),
        "question_answering": demo.QuestionAnswering(tiny_models["qa"]),
    }


SAYS = {  # what of a script's output the page must show, a piece a group
    "run_mlm": r"(\S+ 0\.\d{3})(?:   |$)",
    "run_nsp": r"(?:Verdict: (.*)|score ([+-][\d.]+) +probability ([\d.]+))",
    "run_ner": r"^  (.*?) +([A-Z]+) +([\d.]+) +characters (\d+ to \d+)$",
    "run_qa": r"^  (?:Answer|Next best) +([\d.]+)   (.*?)   characters (\d+ to \d+)$",
}
ORDER = {"run_qa": (1, 0, 2)}  # the page's, where it is another


def command_line_says(script, folder, **flags):
    """Ask by the command line: pieces of text that the page must show."""
    out = run_script(f"{script}.py", flags, folder=folder).checked().out
    pieces = []
    for found in re.finditer(SAYS[script], out, re.MULTILINE):
        groups = found.groups()
        pieces.append(" ".join(groups[n] for n in ORDER.get(script, range(len(groups))) if groups[n]))
    return pieces


def words(page):
    """The text of some HTML, as a reader sees it."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--ner", "nowhere"], "--ner nowhere: no such folder"),
        (["--ner", "."], "--ner .: no model in it"),
        (["--ner", "{mlm}"], "it holds a BertForMaskedLM, expected a model of the kind BertForTokenClassification"),
        (["--mlm", "{qa}"], "expected a model of the kind BertForMaskedLM or BertForPreTraining"),
        (["--port", "0"], "--port is 0; expected 1 to 65535"),
        (["--host", "256.1.1.1"], "--host 256.1.1.1: "),
        (["--host", "::1"], "Expected an IPv4 address"),
        (["--host", "a" * 70], "Expected an IPv4 address"),
        (["--qa", ""], "--qa : no model in it"),
        (["--nsp", "{nsp}", "--base", "{mlm}"], "give --mlm, too"),
        (["--bass", "x"], "unrecognized arguments: --bass"),
        (["--mlm", "{mlm}", "--base", "./nowhere"], "--base ./nowhere: cannot be loaded"),
    ],
)
def test_a_mistake_ends_in_one_message_and_status_2(argv, said, tiny_models, free_port, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    port = [] if "--port" in argv else ["--port", str(free_port)]
    assert demo.main([*(word.format(**tiny_models) for word in argv), *port]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_port_in_use_is_said_before_a_model_is_loaded(tiny_models, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert demo.main(["--ner", tiny_models["ner"], "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert f"--port {port}: cannot listen there" in said.err and not said.out


def test_the_newest_model_of_each_kind_is_found(tmp_path, tiny_models):
    for age, (name, flag) in enumerate([("old", "mlm"), ("new", "mlm"), ("both", "pretraining"), ("broken", "ner")]):
        shutil.copytree(tiny_models[flag], tmp_path / name)
        os.utime(tmp_path / name / "config.json", (1e9 + age, 1e9 + age))
    (tmp_path / "broken" / "model.safetensors").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert demo.find_models(tmp_path) == {"mlm": str(tmp_path / "new"), "pretraining": str(tmp_path / "both")}


def test_small_models_are_trained_once_where_there_are_none(tmp_path, tiny_models, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    trained = []

    class Trains:
        def __init__(self, command, env):
            task = next(task for task in demo.TASKS if task.config in command)
            shutil.copytree(tiny_models[task.flag], tmp_path / task.folder)
            trained.append(command)

        def wait(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Trains)
    folders, base = demo.choose_models(demo.parse_args([]), print)
    assert folders == {task.flag: task.folder for task in demo.TASKS} and list(base.values()) == [
        str(demo.offline_model_path())
    ]
    said = capsys.readouterr().out
    assert "Small ones are trained first, once" in said and "--mlm DIR" in said
    assert [Path(command[1]).name for command in trained] == [f"{task.script}.py" for task in demo.TASKS]
    assert demo.choose_models(demo.parse_args([]), print)[0] == folders and len(trained) == 5
    assert not capsys.readouterr().out


def test_a_found_model_that_cannot_be_used_is_passed_over(tiny_models, tmp_path, capsys):
    for name in ("whole", "without_words"):
        shutil.copytree(tiny_models["ner"], tmp_path / name)
    for path in tmp_path.glob("without_words/tokenizer*"):
        path.unlink()
    folders = {"ner": str(tmp_path / "without_words"), "nsp": tiny_models["nsp"]}
    assert demo.load_models(folders, {}, False, print).keys() == {"nsp"}
    assert "without_words is passed over" in capsys.readouterr().out
    with pytest.raises(demo.REFUSALS, match="there is no tokenizer in it"):
        demo.load_models(folders, {}, True, print)
    with pytest.raises(demo.REFUSALS, match="none of the models"):
        demo.load_models({"ner": folders["ner"]}, {}, False, print)


def test_nothing_is_trained_where_a_folder_is_given(tiny_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    args = demo.parse_args(["--qa", tiny_models["qa"]])
    assert demo.choose_models(args, print) == ({"qa": tiny_models["qa"]}, {})


# ---------------------------------------------------------------- answers


def test_the_page_says_what_the_command_line_says(parts, tiny_models, tmp_path, prose):
    """Digit for digit, for long texts, too, that are read in windows."""

    def compare(page, number, script, **flags):
        pieces = command_line_says(script, tmp_path, **flags)
        assert len(pieces) >= number and not [piece for piece in pieces if piece not in words(page)]

    text = "The [MASK] of a [MASK] is an object."
    page = demo.show_fills(parts["fill_mask"](text))
    compare(page, 10, "run_mlm", model=tiny_models["mlm"], text=[text])
    compare(page, 10, "run_mlm", model=tiny_models["pretraining"], text=[text])
    pair = {"sentence_a": prose[0][:60], "sentence_b": prose[1][:60]}
    page = demo.show_verdict(parts["next_sentence"](*pair.values()))
    compare(page, 3, "run_nsp", model=tiny_models["nsp"], max_seq_length=64, **pair)
    text = " ".join(prose)[:3000]
    page = demo.show_entities(parts["entities"](text))
    compare(page, 20, "run_ner", model=tiny_models["ner"], max_seq_length=64, text=text)
    asked = {"question": "What is an object?", "context": text}
    page = demo.show_answer(parts["question_answering"](*asked.values()))
    compare(page, 4, "run_qa", model=tiny_models["qa"], max_seq_length=64, **asked)


def test_what_is_typed_and_what_a_model_says_is_shown_as_text(parts):
    fills = parts["fill_mask"](f"[MASK] {EVIL}"[: demo.SHORT])
    fills["answers"][0]["masks"][0][0]["word"] = fills["answers"][1]["model"] = EVIL
    fills["careful"] = [EVIL]
    entities = parts["entities"](f"Ada {EVIL}")
    entities["entities"] = [{"start": 0, "end": len(EVIL), "label": EVIL, "score": 0.5, "text": EVIL}]
    answer = parts["question_answering"]("Why?", EVIL)
    pages = {
        demo.show_fills(fills): 4,
        demo.show_verdict(parts["next_sentence"]("<script>", "<img onerror=1>") | {"sentence_b": EVIL}): 1,
        demo.show_entities(entities): 2,
        demo.show_answer(answer | {"question": EVIL}): 2,
        demo.refused(EVIL): 1,
    }
    for page, times in pages.items():
        assert not re.search("<script|<img (?!alt=)|<[^>]* onerror", page)
        assert html.unescape(re.sub("<[^>]*>", "", page)).count(EVIL) >= times


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("fill_mask", [" \n"], "The text is empty"),
        ("fill_mask", ["no mask"], "There is no mask in the text"),
        ("fill_mask", [f"[MASK]{'a' * 2000}"], "The text has 2,006 characters; at most 2,000"),
        ("fill_mask", ["[MASK] " * 100], "The text has 102 tokens; adapted takes at most 64"),
        ("fill_mask", ["[MASK] \ud83d"], "half a character"),
        ("fill_mask", [["[MASK]"]], "expected text"),
        ("next_sentence", ["A", ""], "Sentence B is empty"),
        ("next_sentence", ["the " * 40, "the " * 40], "83 tokens, [CLS] and both [SEP] included; at most 64"),
        ("entities", ["x" * 20_001], "20,001 characters; at most 20,000"),
        ("question_answering", ["", "text"], "The question is empty"),
        ("question_answering", ["why", None], "The context: expected text"),
        ("question_answering", ["the " * 70, "the"], "The question is too long"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(parts, name, fields, said):
    page = demo.in_words(parts[name], lambda data: "answered")(*fields)
    assert said in words(page) and 'role="alert"' in page


def test_what_goes_wrong_is_said_in_words_and_shown_in_the_terminal(capsys):
    def breaks(text):
        raise RuntimeError("no such thing")

    assert demo.UNEXPECTED in demo.in_words(breaks, str)("text")
    assert "RuntimeError: no such thing" in capsys.readouterr().err


def test_a_head_that_starts_at_random_is_said_to(tiny_bert):
    answer = demo.NextSentence(str(tiny_bert))("A", "B")
    assert "Careful" in words(demo.show_verdict(answer)) and "random" in answer["careful"][0]


def test_the_command_of_a_tab_without_a_model_makes_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    for task in demo.TASKS:
        command = demo.make_command(task)
        assert f'python {task.script}.py --config {task.config} --model "$(python -m tools.offline_model)"' in command
        args = importlib.import_module(task.script).parse_args(shlex.split(command.split(" && ")[-1])[2:])
        assert args.output_dir == task.folder and args.do_train


# ---------------------------------------------------------------- in a browser, and with many clients


SENTENCES = {
    "sentence_a": "The try statement specifies exception handlers.",
    "sentence_b": "When no exception occurs in the try clause, no exception handler is executed.",
}
FILL = "A [MASK] definition defines a class object."
NAMES = "Ada Lovelace was born in London and wrote for a Swiss journal."
ASKED = {
    "question": "What did Babbage show Ada Lovelace?",
    "context": "Ada Lovelace was born in London in 1815. In June 1833 she met Charles Babbage, who showed her a part "
    "of his Difference Engine. In 1843 she translated an article from French.",
}
LABELS_OF = {"text": "Text", "sentence_a": "Sentence A", "sentence_b": "Sentence B",
             "question": "Question", "context": "Context"}  # fmt: skip
# Tab, button, script and what is asked.
TABS = {
    "mlm": [("Fill mask", "Fill the masks", "run_mlm", {"text": FILL})],
    "nsp": [("Next sentence", "Does B follow A?", "run_nsp", SENTENCES)],
    "pretraining": [("Pretraining heads", "Fill the masks", "run_mlm", {"text": FILL}),
                    ("Pretraining heads", "Does B follow A?", "run_nsp", SENTENCES)],
    "ner": [("Entities", "Find the entities", "run_ner", {"text": NAMES})],
    "qa": [("Question answering", "Answer", "run_qa", ASKED)],
}  # fmt: skip


@pytest.fixture(scope="module")
def offline_models(tmp_path_factory):
    """The offline model with heads of each kind. They are random, but always the same."""
    from transformers import AutoTokenizer

    base = demo.offline_model_path()
    return save_heads(tmp_path_factory.mktemp("offline"), base, AutoTokenizer.from_pretrained(base))


@pytest.fixture(scope="module")
def served(tmp_path_factory, offline_models):
    """The page over the offline model, or for the pictures of docs/ over what lies in outputs/: (Page, folders)."""
    scratch = tmp_path_factory.mktemp("scratch")
    env = {"TMPDIR": str(scratch), "HF_HOME": str(scratch / "hf")}
    if os.environ.get("DEMO_PICTURES"):
        with Page([], ROOT, env, timeout=3600) as page:
            yield page, demo.find_models(ROOT / "outputs"), scratch
    else:
        given = [word for flag, folder in offline_models.items() for word in (f"--{flag}", folder)]
        with Page([*given, "--base", demo.offline_model_path()], scratch, env) as page:
            yield page, offline_models, scratch


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A visit to the page, which notes requests to other hosts and what the page complains of."""

    def __init__(self, browser, page, width=1000, height=800, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page, self.strange = context.new_page(), []
        self.page.on("request", lambda request: self.strange.append(request.url)
                     if not request.url.startswith((page.url, "data:", "blob:")) else None)  # fmt: skip
        self.page.on("pageerror", lambda error: self.strange.append(str(error)))
        self.page.goto(page.url)
        self.page.get_by_role("tablist").first.wait_for()

    def ask(self, tab, button, fields):
        """Fill a tab in and press its button: the answer."""
        self.open(tab)
        panel = self.page.locator("[role=tabpanel]:visible")
        for name, value in fields.items():
            panel.get_by_label(LABELS_OF[name]).fill(value)
        panel.locator(".answer").evaluate_all("old => old.forEach(answer => answer.classList.add('old'))")
        panel.get_by_role("button", name=button, exact=True).click()
        answer = panel.locator(".answer:not(.old)")
        answer.wait_for()
        return answer

    def open(self, tab):
        button = self.page.get_by_role("tab", name=tab)
        if button.count() and button.first.is_visible():
            button.first.click()
        else:  # there is no room for it on a phone
            self.page.locator(".overflow-menu > button").click()
            self.page.locator(".overflow-dropdown button", has_text=tab).click()
        self.page.locator("[role=tabpanel]:visible").wait_for()

    def shoot(self, path):
        """Write a picture of the whole page, with colours enough for a page."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=path, full_page=True)
        Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


@pytest.mark.slow
@pytest.mark.parametrize("flag", TABS)
def test_browser_each_tab_says_what_the_command_line_says(served, chromium, tmp_path, flag):
    page, folders, _ = served
    visit = Visit(chromium, page)
    for tab, button, script, fields in TABS[flag]:
        shown = " ".join(visit.ask(tab, button, fields).inner_text().split())
        asked = {**fields, "text": [fields["text"]]} if script == "run_mlm" else fields
        folder = ROOT / folders[flag]
        pieces = command_line_says(script, tmp_path, model=folder, **asked)
        assert pieces and not [piece for piece in pieces if piece not in shown], shown
    assert not visit.strange
    path = tmp_path / f"demo_{flag}.png"
    visit.shoot(path)
    assert path.stat().st_size < 60_000
    if os.environ.get("DEMO_PICTURES"):
        shutil.copy(path, os.environ["DEMO_PICTURES"])


@pytest.mark.slow
def test_browser_shows_what_is_typed_as_text_in_every_field(served, chromium):
    page, *_ = served
    visit = Visit(chromium, page)
    for tabs in TABS.values():
        for tab, button, _, fields in tabs:
            evil = {name: f"{'[MASK] ' if '[MASK]' in value else ''}{EVIL}" for name, value in fields.items()}
            answer = visit.ask(tab, button, evil)
            # Without the labels that stand among the words of a text.
            shown = answer.evaluate("answer => { answer.querySelectorAll('small').forEach(label => label.remove()); "
                                    "return answer.textContent }")
            assert shown.count(EVIL) >= len(fields), shown
            assert not answer.locator("script, img[src=x], [onerror]").count()
    assert visit.page.evaluate("window.hit") is None and not visit.strange


@pytest.mark.slow
def test_browser_says_in_words_what_is_refused(served, chromium):
    page, *_ = served
    visit = Visit(chromium, page)
    for length in (20_001, 1_000_000):
        answer = visit.ask("Entities", "Find the entities", {"text": "x" * length})
        assert f"The text has {length:,} characters; at most 20,000 are taken" in answer.inner_text()
    answer = visit.ask("Fill mask", "Fill the masks", {"text": "no mask"})
    assert "Write [MASK] for a word" in answer.inner_text() and answer.get_attribute("role") == "alert"


@pytest.mark.slow
def test_browser_on_a_phone_in_the_dark_by_keyboard(served, chromium, tmp_path):
    page, *_ = served
    visit = Visit(chromium, page, width=360, height=740, scheme="dark")
    for flag, tabs in TABS.items():
        for tab, button, _, fields in tabs:
            visit.ask(tab, button, fields)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
        visit.shoot(tmp_path / f"phone_{flag}.png")
    colours = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert max(visit.page.evaluate(colours)[:3]) < 80
    visit.open("Entities")
    field = visit.page.locator("[role=tabpanel]:visible").get_by_label(LABELS_OF["text"])
    field.fill("Nobody")
    field.press("Tab")
    focus = "[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineWidth]"
    assert visit.page.evaluate(focus) == ["Find the entities", "3px"]
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Enter")  # the first example
    visit.page.locator(".answer:visible", has_text=demo.ENTITY_EXAMPLES[0][0][:12]).wait_for()
    assert not visit.strange


@pytest.mark.slow
def test_nothing_that_is_asked_is_left_on_disk(served):
    page, _, scratch = served
    before = {path for path in scratch.rglob("*") if path.is_file()}
    secret = "Zanzibarian"
    with page.client() as client:
        ask(client, "entities", [f"The {secret} met Ada."])
        ask(client, "question_answering", [f"Who met the {secret}?", f"Ada met the {secret}."])
        ask(client, "fill_mask", [f"The {secret} is a [MASK]."])
        ask(client, "next_sentence", [f"The {secret} came.", "He left."])
    after = {path for path in scratch.rglob("*") if path.is_file()}
    assert after == before and not [path for path in after if secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_routes_that_would_store_and_other_hosts_are_closed(served):
    page, _, scratch = served
    before = {path for path in scratch.rglob("*") if path.is_file()}
    with pytest.raises(OSError):  # another address of this machine, at which one that listens on all would answer
        socket.create_connection(("127.0.0.2", page.port), timeout=5)
    with page.client() as client:
        assert client.post("/upload", files={"files": ("my words.txt", b"")}).status_code == 404
        assert client.get("/deep_link", params={"session_hash": "x"}).status_code == 404
        assert client.post("/call/entities", json={"data": ["x" * 6 * 10**6]}).status_code == 413
        answers = {host: client.get("/info", headers={"Host": host}).status_code
                   for host in ("localhost", "127.0.0.1:80", "else.example", "else.example:7860")}  # fmt: skip
    assert list(answers.values()) == [200, 200, 400, 400]
    assert {path for path in scratch.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_stopped_first_start_stops_its_training_and_saves(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-u", "-m", "tools.demo", "--port", str(port)], cwd=tmp_path,
                               env=variables, stdout=subprocess.PIPE, text=True)  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("Update     10 "):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM  # and the pipe has ended, which the training has open, too
    assert list((tmp_path / "outputs" / "demo_mlm").glob("checkpoint-*")), said


@pytest.mark.slow
def test_the_api_says_in_words_what_is_refused(served):
    page, *_ = served
    with page.client() as client:
        assert endpoints(client) == ["fill_mask", "next_sentence", "pretraining_fill_mask",
                                     "pretraining_next_sentence", "entities", "question_answering"]  # fmt: skip
        with pytest.raises(RuntimeError, match="There is no mask in the text"):
            ask(client, "fill_mask", ["no mask"])
        with pytest.raises(RuntimeError, match="expected text"):
            ask(client, "entities", [5])


@pytest.mark.slow
def test_many_clients_at_once_each_get_the_answer_that_they_would_get_alone(offline_models):
    given = [word for flag, folder in offline_models.items() for word in (f"--{flag}", folder)]
    done = run_fresh(["-m", "benchmarks.demo", "--clients", 8, "--requests", 200, *given], ROOT, timeout=1500).checked()
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| (\d+) \| (\d+) \|", done.out, re.MULTILINE)
    assert len(rows) == 7 and rows[-1][:3] == ("all", "1,600", "0")
    assert all(0 < int(median) <= int(high) for *_, median, high in rows)


@pytest.mark.slow
def test_a_first_start_trains_and_a_second_one_does_not(tmp_path):
    for name in ("tagged_sentences.conll", "questions.json"):
        (tmp_path / "examples").mkdir(exist_ok=True)
        shutil.copy(ROOT / "examples" / name, tmp_path / "examples")
    for task in demo.TASKS:
        text = (ROOT / task.config).read_text(encoding="utf-8")
        (tmp_path / task.config).write_text(f"{text}\nmax_steps: 1\n", encoding="utf-8")
    written = {}
    for timeout in (400, 60):
        with Page([], tmp_path, timeout=timeout) as page, page.client() as client:
            assert len(endpoints(client)) == 6
            assert ask(client, "entities", [NAMES])["text"] == NAMES
        times = {path: path.stat().st_mtime for path in tmp_path.rglob("*.safetensors")}
        assert not written or times == written
        written = times
    assert {path.parent.name for path in written if "checkpoint" not in path.parent.name} == {
        f"demo_{task.flag}" for task in demo.TASKS}
