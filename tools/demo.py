"""A local page to try the models on that the scripts have written.

    python -m tools.demo                            the newest model of each kind in outputs/; small ones are trained
                                                    first where there are none
    python -m tools.demo --ner outputs/ner          these folders alone: --mlm, --nsp, --pretraining, --ner, --qa
    python -m tools.demo --mlm outputs/mlm --base bert-base-uncased

Predictions come from the scripts' own functions, with the defaults of their command lines, so the page says what
`python run_ner.py --model outputs/ner --text "…"` says. The same answers are to be had as JSON, under /gradio_api/call.
It listens on this machine alone, unless --host or --share say otherwise, and neither stores nor sends what is typed.
"""

import base64
import html
import inspect
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: it would report each start
os.environ.pop("GRADIO_ALLOWED_PATHS", None)  # files that gradio would show to all
try:
    import gradio as gr
except ImportError as error:
    print(f"tools.demo: error: {error}. Install what it needs: pip install 'gradio>=6.31'", file=sys.stderr)
    sys.exit(2)

import transformers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

import run_mlm
import run_ner
import run_nsp
import run_pretraining
import run_qa
from tools.offline_model import offline_model_path
from tools.python_reference import write_reference
from utils.arguments import ArgumentParser
from utils.errors import InputError
from utils.models import longest_input
from utils.trainer import HelpFormatter

ROOT = Path(__file__).absolute().parents[1]
REFERENCE = Path("outputs/python_reference.txt")
SHORT, LONG = 2_000, 20_000  # characters that a field takes, at most
# Each script has an InputError of its own.
REFUSALS = (InputError, *(script.InputError for script in (run_mlm, run_ner, run_nsp, run_pretraining, run_qa)))


@dataclass(frozen=True)
class Task:
    """A tab: the script that makes its model, the heads that the model may have, and how to train a small one."""

    flag: str
    title: str
    script: str
    heads: tuple
    config: str
    settings: tuple = ()  # flags beside those of the config, so that all five are trained in a few minutes

    @property
    def folder(self):
        return f"outputs/demo_{self.flag}"

    def command(self, python, model):
        """List the words of the command that trains the small model."""
        return [python, f"{self.script}.py", "--config", self.config, "--model", model, "--output_dir", self.folder,
                *self.settings]


TASKS = (
    Task("mlm", "Fill mask", "run_mlm", ("ForMaskedLM", "ForPreTraining"), "examples/quickstart_mlm.yaml",
         ("--num_train_epochs", "5")),
    Task("nsp", "Next sentence", "run_nsp", ("ForNextSentencePrediction", "ForPreTraining"),
         "examples/quickstart_nsp.yaml", ("--num_train_epochs", "1")),
    Task("pretraining", "Pretraining heads", "run_pretraining", ("ForPreTraining",),
         "examples/quickstart_pretraining.yaml", ("--num_train_epochs", "3")),
    Task("ner", "Entities", "run_ner", ("ForTokenClassification",), "examples/ner.yaml"),
    Task("qa", "Question answering", "run_qa", ("ForQuestionAnswering",), "examples/qa.yaml",
         ("--plot_scores", "outputs/demo_qa/scores.png")),
)


# ---------------------------------------------------------------- arguments


def parse_args(argv=None):
    parser = ArgumentParser(
        prog="python -m tools.demo", description=__doc__.partition("\n")[0], allow_abbrev=False,
        formatter_class=HelpFormatter)
    group = parser.add_argument_group("models, the --output_dir of a run each; with any of them, nothing is trained")
    for task in TASKS:
        group.add_argument(f"--{task.flag}", metavar="DIR", help=f"of {task.script}.py, for the tab {task.title}")
    group.add_argument("--base", metavar="MODEL", help="folder or Hub name of a model to show beside that of Fill mask "
                       "(default: the one that the small model began from)")
    group = parser.add_argument_group("page")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: for the whole network")
    group.add_argument("--port", type=int, default=7860, help="port to listen on")
    group.add_argument("--share", action="store_true", help="a public link for a week, through servers of gradio's")
    args = parser.parse_args(argv)
    if not 1 <= args.port <= 65535:
        parser.error(f"--port is {args.port}; expected 1 to 65535")
    if args.base and not args.mlm and any(getattr(args, task.flag) for task in TASKS):
        parser.error("--base is shown beside the model of Fill mask; give --mlm, too")
    return args


def check_port(host, port):
    """Raise InputError where the page cannot listen, before minutes are spent on models."""
    try:
        socket.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: {error.args[-1]}. Expected an IPv4 address of this machine, or a name of it, "
                         "such as 127.0.0.1, localhost or 0.0.0.0.") from None
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there: {error.strerror}. Give another --port, or "
                         "end what listens on it.") from None


# ---------------------------------------------------------------- find or train the models


def kind_of(folder):
    """Name the kind of model in a folder, as BertForMaskedLM; "" where there is no whole model."""
    try:
        kinds = json.loads(Path(folder, "config.json").read_bytes())["architectures"]
        return str(kinds[0]) if next(Path(folder).glob("model*.safetensors"), None) else ""
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def check_folder(task, folder):
    """Raise InputError where a folder that was given is not of the task."""
    expected = f"Give the --output_dir of a run of {task.script}.py."
    if not Path(folder).is_dir():
        raise InputError(f"--{task.flag} {folder}: no such folder. {expected}")
    kind = kind_of(folder)
    if not kind:
        raise InputError(f"--{task.flag} {folder}: no model in it: expected config.json, which names its kind, "
                         f"and model.safetensors. {expected}")
    if not kind.endswith(task.heads):
        raise InputError(f"--{task.flag} {folder}: it holds a {kind}, expected a model of the kind "
                         f"{' or '.join(f'Bert{head}' for head in task.heads)}. {expected}")


def find_models(parent="outputs"):
    """Find the newest model of each task among the folders in one: dict of flag to folder."""
    found = {}
    for path in sorted(Path(parent).glob("*/config.json"), key=lambda path: path.stat().st_mtime):
        for task in TASKS:
            if kind_of(path.parent).endswith(task.heads[0]):
                found[task.flag] = str(path.parent)
    return found


def train_small_models(tasks, say):
    """Train the small models of tasks, one after the other, and show what the scripts say."""
    if not Path(tasks[0].config).is_file():
        raise InputError(f"{tasks[0].config} is not here, which small models are trained with. Start this in the "
                         "project's folder, or name models that there are, as with --mlm DIR.")
    try:
        model = str(offline_model_path())
    except (ModuleNotFoundError, ValueError) as error:
        raise InputError(f"{error} Or name models that there are, as with --mlm DIR.") from None
    say(f"No models in outputs/ for: {', '.join(task.title for task in tasks)}.\n"
        "Small ones are trained first, once, of the offline model: all five take some seven minutes on two CPU cores.\n"
        "To do without, name the folders of models that there are, as with --mlm DIR; Ctrl-C stops, and the next start "
        "goes on.")
    if not REFERENCE.exists():
        write_reference(REFERENCE)
    for number, task in enumerate(tasks, 1):
        # A training that was broken off goes on from its last checkpoint.
        command = [*task.command(sys.executable, model), "--resume_from_checkpoint", "latest"]
        command[1] = str(ROOT / command[1])
        say(f"\n{number} of {len(tasks)}: {task.title}, into {task.folder}")
        process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            status = process.wait()
        except (KeyboardInterrupt, SystemExit) as end:  # the script ends its update and saves
            if isinstance(end, SystemExit):  # of Ctrl-C, the terminal has told it, too
                process.terminate()
            process.wait()
            raise
        if status:
            raise InputError(f"{task.script}.py ended with exit status {status}; what it said stands above. Mend that, "
                             f"or name a model that there is: --{task.flag} DIR")


def choose_models(args, say):
    """Choose the models: dict of flag to folder; and of name to model for the base of Fill mask, if it has one."""
    given = {task.flag: getattr(args, task.flag) for task in TASKS if getattr(args, task.flag) is not None}
    for task in TASKS:
        if task.flag in given:
            check_folder(task, given[task.flag])
    folders = given or find_models()
    missing = [task for task in TASKS if not given and task.flag not in folders]
    if missing:
        train_small_models(missing, say)
        folders = find_models()
    base = {f"base: {args.base}": args.base} if args.base else {}
    if not given and not base and Path(folders["mlm"]) in (Path(TASKS[0].folder), Path("outputs/quickstart_mlm")):
        base = {"base: the offline model that it began from": str(offline_model_path())}
    return folders, base


# ---------------------------------------------------------------- predict: text to plain data


def silent(*_lines):
    """Take what a script says while it loads a model: the page says it."""


for script in (run_mlm, run_nsp, run_ner, run_qa):
    script.Run.say = silent


def check_text(name, text, limit):
    """Raise InputError where a field holds what cannot be asked."""
    if not isinstance(text, str):
        raise InputError(f"{name}: expected text.")
    if not text.strip():
        raise InputError(f"{name} is empty. Write something into it.")
    if len(text) > limit:
        raise InputError(f"{name} has {len(text):,} characters; at most {limit:,} are taken. Shorten it.")
    if re.search("[\ud800-\udfff]", text):
        raise InputError(f"{name} holds half a character, such as a cut-off emoji leaves. Take it out.")


def parse_asked(script, asked, folder):
    """Parse a command line that asks a model, and load what is not its weights: (args, config, tokenizer).

    Where the model takes no more, --max_seq_length is shorter than it is by default.
    """
    asked = [*asked, "--model", folder]
    args = script.parse_args(asked)
    config, tokenizer = script.load_config_and_tokenizer(args, 0)
    longest = longest_input(config, tokenizer)
    if args.max_seq_length > longest:
        args = script.parse_args([*asked, "--max_seq_length", str(longest)])
    return args, config, tokenizer


def load_plain(script, args, config, tokenizer, kind, head):
    """Load a model that is asked in float32, as the main function of a loop does: (model, note)."""
    run = script.LoopRun("demo", args, writes=False)
    model, note = run.load_model(kind, config, tokenizer, head)
    return model.to(run.device), note


def careful(folder, note):
    """List what is to be said of a model whose head starts at random."""
    return [f"{folder}: {note}; train it first, or this says nothing"] if "comes trained" not in note else []


class FillMask:
    """Fills masks, as `run_mlm.py --text` does.

    Args:
        models: folder, or Hub name, of each model by the name that it is shown with; the base comes last.
    """

    def __init__(self, models):
        self.models = {}
        for name, model in models.items():
            try:
                args, config, tokenizer = parse_asked(run_mlm, ["--text", "[MASK]"], model)
                self.models[name] = tokenizer, *load_plain(
                    run_mlm, args, config, tokenizer, run_mlm.AutoModelForMaskedLM, "masked-language-modelling head")
            except REFUSALS as error:  # what run_mlm.py says of its own flag
                raise InputError(str(error).replace("--model", "--base" if name != model else "the model", 1)) from None
        tokenizer, _, _ = next(iter(self.models.values()))
        self.mask = tokenizer.mask_token

    def __call__(self, masked_text: str) -> dict:
        check_text("The text", masked_text, SHORT)
        text = masked_text.replace(self.mask, "[MASK]")  # which does for all models
        if "[MASK]" not in text:
            raise InputError("There is no mask in the text. Write [MASK] for a word.")
        answers, notes = [], []
        for name, (tokenizer, model, note) in self.models.items():
            tokens = len(tokenizer(text.replace("[MASK]", tokenizer.mask_token), verbose=False)["input_ids"])
            longest = longest_input(model.config, tokenizer)
            if tokens > longest:
                raise InputError(f"The text has {tokens:,} tokens; {name} takes at most {longest:,}. Shorten it.")
            filled = run_mlm.fill_masks(model, tokenizer, [text])[text]
            answers.append({"model": name, "masks": [
                [{"word": word, "probability": chance} for word, chance in words] for words in filled]})
            notes += careful(name, note)
        return {"text": text, "answers": answers, "careful": notes}


class NextSentence:
    """Judges pairs of sentences, as `run_nsp.py --sentence_a … --sentence_b …` does."""

    def __init__(self, folder):
        self.folder = folder
        self.args, config, self.tokenizer = parse_asked(run_nsp, ["--sentence_a", "A", "--sentence_b", "B"], folder)
        if config.model_type not in run_nsp.MODELS:
            raise InputError(f"{folder}: run_nsp.py cannot ask a model of the kind {config.model_type}; expected one "
                             f"of {', '.join(run_nsp.MODELS)}.")
        self.model, self.note = load_plain(run_nsp, self.args, config, self.tokenizer,
                                           run_nsp.AutoModelForNextSentencePrediction, "next-sentence head")

    def __call__(self, sentence_a: str, sentence_b: str) -> dict:
        for name, sentence in (("Sentence A", sentence_a), ("Sentence B", sentence_b)):
            check_text(name, sentence, SHORT)
        sides = self.tokenizer([sentence_a, sentence_b], add_special_tokens=False, verbose=False)["input_ids"]
        tokens, longest = sum(map(len, sides)) + 3, self.args.max_seq_length
        if tokens > longest:
            raise InputError(f"The sentences have {tokens:,} tokens, [CLS] and both [SEP] included; at most "
                             f"{longest:,} are taken. Shorten them.")
        (judged,) = run_nsp.judge(self.model, self.tokenizer, [{"sentence_a": sentence_a, "sentence_b": sentence_b}],
                                  longest, self.args.per_device_eval_batch_size)
        return {**judged, "careful": careful(self.folder, self.note)}


class Entities:
    """Finds names, as `run_ner.py --text` does."""

    def __init__(self, folder):
        self.args, config, self.tokenizer = parse_asked(run_ner, ["--text", "A"], folder)
        self.labels, self.scheme, self.moves = run_ner.choose_tags(self.args, config, {}, None, silent)
        self.run = run_ner.TrainerRun("ner", self.args, False, run_ner.NerArguments)
        self.model, _ = run_ner.train_or_load(self.run, self.tokenizer, config, self.labels, self.scheme, {}, {})

    def __call__(self, text: str) -> dict:
        check_text("The text", text, LONG)
        row = run_ner.read_tagged_row({"text": text}, "The text", None, None, None)
        tagger = run_ner.make_tagger(
            self.run, [row], self.tokenizer, self.labels, self.scheme, self.moves, in_memory=True)
        tagger(self.model)
        text, entities = run_ner.entities_of(row, tagger.tags[0], tagger.chances[0])
        return {"text": text, "entities": entities, "windows": len(tagger.windows),
                "careful": careful(self.args.model, self.run.note)}


class QuestionAnswering:
    """Answers questions, as `run_qa.py --question … --context …` does."""

    def __init__(self, folder):
        self.args, config, self.tokenizer = parse_asked(run_qa, ["--question", "Q", "--context", "C"], folder)
        run, _, version_2 = run_qa.begin(self.args, config, self.tokenizer)
        self.threshold = run_qa.choose_threshold(self.args, config, version_2, {})
        self.model, _ = run_qa.train_or_load(run, self.tokenizer, config, None, None)
        self.note = run.note
        self.config, self.how = config, {
            "version_2": version_2, "threshold": self.threshold, "n_best": self.args.n_best_size,
            "max_answer_length": self.args.max_answer_length, "batch_size": self.args.per_device_eval_batch_size,
            "device": run.device}

    def __call__(self, question: str, context: str) -> dict:
        check_text("The question", question, SHORT)
        check_text("The context", context, LONG)
        row, length, stride = {"id": None, "question": question}, self.args.max_seq_length, self.args.doc_stride
        row = run_qa.read_question(row, context, "The question")
        if not run_qa.drop_long_questions([row], self.tokenizer, length, stride, lambda *_: None):
            raise InputError(f"The question is too long: of {length} tokens, those of a window, it leaves too few for "
                             "the context. Shorten it.")
        windows = run_qa.make_windows([row], self.tokenizer, length, stride, in_memory=True)
        text, ranked, odds, tokens = run_qa.ask(
            self.model, row, windows, run_qa.make_collator(windows, self.tokenizer, self.config), **self.how)
        answer, *others = run_qa.pick_shown(ranked, text)
        return {
            "question": question, "context": context, "answer": answer,
            "next_best": others,
            "no_answer": None if odds is None else {"score": odds, "given_above": self.threshold},
            "tokens": [{"text": word, "start": start, "end": end} for word, start, end in tokens],
            "windows": len(windows), "careful": careful(self.args.model, self.note),
        }


# ---------------------------------------------------------------- render: data to HTML


def esc(value):
    """Write a value as HTML that shows it as it is. All that is typed, and all that a model says, goes through here."""
    return html.escape(str(value))


def bar(share):
    """Draw a share from 0 to 1, beside the number that says it."""
    return f'<div class="track" aria-hidden="true"><div class="bar" style="width: {100 * share:.1f}%"></div></div>'


def table(caption, header, rows):
    """Lay out rows of HTML under the names of columns; "" is that of bars."""
    head = "".join(f'<th scope="col">{name}</th>' if name else '<td class="bars"></td>' for name in header)
    body = "".join("<tr>" + "".join(f'<td class="{name or "bars"}">{cell}</td>' for name, cell in
                                    zip(header, row, strict=True)) + "</tr>" for row in rows)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="Table"><table class="columns-{len(header)}">'
            f"<caption>{caption}</caption><thead><tr>{head}"
            f"</tr></thead><tbody>{body}</tbody></table></div>")


def mark(text, spans):
    """Mark spans of a text: (start, end, label or "", colour) each, in order, apart from each other."""
    parts, at = [], 0
    for start, end, label, colour in spans:
        label = f"<small>{esc(label)}</small>" if label else ""
        parts += [esc(text[at:start]), f'<mark class="colour-{colour}">{esc(text[start:end])}{label}</mark>']
        at = end
    return f'<p class="text">{"".join(parts)}{esc(text[at:])}</p>'


def answered(data, *parts):
    """Put the parts of an answer together, with what is to be said of the model."""
    notes = "".join(f'<p class="careful">Careful: {esc(note)}</p>' for note in data["careful"])
    return f'<div class="answer" role="status">{"".join(parts)}{notes}</div>'


def refused(message):
    return f'<div class="answer refused" role="alert">{esc(message)}</div>'


def show_fills(data):
    spans = [(*found.span(), n, 0) for n, found in enumerate(re.finditer(re.escape("[MASK]"), data["text"]), 1)]
    parts = [mark(data["text"], spans if len(spans) > 1 else [(*span[:2], "", 0) for span in spans])]
    for n in range(len(data["answers"][0]["masks"])):
        tables = []
        for answer in data["answers"]:
            rows = [(esc(word["word"]), f"{word['probability']:.3f}", bar(word["probability"]))
                    for word in answer["masks"][n : n + 1] for word in word]
            tables.append(table(esc(answer["model"]), ("word", "probability", ""), rows))
        title = f"<h3>Mask {n + 1}</h3>" if len(spans) > 1 else ""
        parts.append(f'{title}<div class="beside">{"".join(tables)}</div>')
    return answered(data, *parts)


def show_verdict(data):
    is_next, chance = data["verdict"] == "is next", data["probability"]
    verdict = f"B {'is the next sentence' if is_next else 'is not the next sentence'}, with probability "
    rows = [("0", "is next", f"{data['score_is_next']:+.3f}", f"{chance:.3f}", bar(chance)),
            ("1", "not next", f"{data['score_not_next']:+.3f}", f"{1 - chance:.3f}", bar(1 - chance))]
    unsure = "<p>The model can hardly tell: both are about as likely.</p>" if abs(chance - 0.5) < 0.05 else ""
    return answered(
        data, f'<p class="verdict">{verdict}{max(chance, 1 - chance):.3f}</p>{unsure}',
        f'<p class="text">A: {esc(data["sentence_a"])}\nB: {esc(data["sentence_b"])}</p>',
        table("Both scores", ("label", "meaning", "score", "probability", ""), rows))


def show_entities(data):
    kinds = list(dict.fromkeys(entity["label"] for entity in data["entities"]))
    spans = [(entity["start"], entity["end"], f"{entity['label']} {entity['score']:.3f}",
              kinds.index(entity["label"]) % 6) for entity in data["entities"]]
    rows = [(esc(entity["text"]), esc(entity["label"]), f"{entity['score']:.3f}", bar(entity["score"]),
             f"{entity['start']} to {entity['end']}") for entity in data["entities"]]
    found = table("Entities", ("text", "type", "score", "", "characters"), rows) if rows else "<p>No entity in it.</p>"
    windows = f"<p>Read in {data['windows']} windows.</p>" if data["windows"] > 1 else ""
    return answered(data, mark(data["text"], spans), windows, found)


def show_answer(data):
    answer, tokens = data["answer"], data["tokens"]
    verdict = " ".join(answer["text"].split()) or "No answer"
    spans = [(answer["start"], answer["end"], "", 0)] if answer["text"] else []
    rows = [(esc(" ".join(entry["text"].split()) or "(none)"), f"{entry['probability']:.3f}", bar(entry["probability"]),
             f"{entry['start']} to {entry['end']}" if entry["text"] else "") for entry in [answer, *data["next_best"]]]
    odds = data["no_answer"]
    said = [f"No answer scores {odds['score']:+.3f} against the best one, and is given above "
            f"{odds['given_above']:+.3f}."] if odds else []
    if data["windows"] > 1:
        said.append(f"Read in {data['windows']} windows; the plot shows the one that holds the best answer.")
    return answered(
        data, f"<p>{esc(data['question'])}</p>",
        f'<p class="verdict">{esc(verdict)}, with probability {answer["probability"]:.3f}</p>',
        mark(data["context"], spans), "".join(f"<p>{line}</p>" for line in said),
        table("The answer, and the next best", ("text", "probability", "", "characters"), rows), draw_tokens(tokens))


def draw_tokens(tokens):
    """Draw the scores of tokens, as `run_qa.py --plot_scores` does: a picture inside the page, and not in a file."""
    if not tokens:
        return ""
    picture = io.BytesIO()
    pixels = run_qa.draw_scores(picture, [(token["text"], token["start"], token["end"]) for token in tokens], "",
                                per_row=24)
    best = {name: max(tokens, key=lambda token: token[name]) for name in ("start", "end")}
    first, last = (f"{token['text']}, {token[name]:+.3f}" for name, token in best.items())
    words = esc(f"Scores of each token to begin the answer, in blue, highest: {first}; and to end it, in orange, "
                f"highest: {last}.")
    return (f'<figure><figcaption>{words}</figcaption><div class="scroll" tabindex="0" role="region" '
            f'aria-label="Plot of the scores"><img alt="{words}" width="{0.8 * pixels.shape[1]:.0f}" '
            f'src="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"></div></figure>')


# ---------------------------------------------------------------- the page


CSS = """
.gradio-container { width: 100% !important; max-width: 60rem !important; margin: 0 auto !important; }
:focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
.examples { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
.examples button { white-space: normal; text-align: left; justify-content: flex-start; font-weight: 400; }
/* Text runs as its own script does. */
.gradio-container textarea, .gradio-container input, .answer p, .answer td { unicode-bidi: plaintext;
    text-align: start; }
.answer mark, .answer mark small { unicode-bidi: isolate; }
.answer { padding: 0.25rem 0 1rem; line-height: 1.5; overflow-wrap: break-word; }
.answer p.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; padding: 0.75rem; margin: 0.5rem 0;
    border: 1px solid var(--border-color-primary); border-radius: 0.5rem; background: var(--background-fill-secondary);
    max-height: 24rem; overflow-y: auto; }
.answer .verdict { font-size: 1.25rem; font-weight: 600; margin: 0.5rem 0; }
.answer.refused, .answer .careful { padding: 0.75rem; border-left: 4px solid #d97706; margin: 0.5rem 0;
    background: color-mix(in srgb, #d97706 12%, transparent); }
.answer .beside { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.answer .beside > * { flex: 1 1 18rem; }
.answer .scroll { overflow-x: auto; margin: 0.5rem 0; }
.answer table, .answer thead, .answer tbody, .answer tr { border: 0 !important; }
.answer table { width: 100%; border-collapse: collapse; margin: 0; }
.answer caption { overflow-wrap: anywhere; text-align: left; font-weight: 600; padding: 0.25rem 0; }
.answer th, .answer td { text-align: left; padding: 0.3rem 0.75rem 0.3rem 0 !important; border: 0 !important;
    border-bottom: 1px solid var(--border-color-primary) !important; }
.answer th { white-space: nowrap; font-weight: 400; color: var(--body-text-color-subdued) !important; }
.answer td { white-space: nowrap; }
.answer td.text, .answer td.word { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
.answer .bars { width: 30%; }
.answer .track { min-width: 4rem; height: 0.7rem; border-radius: 0.35rem; background: var(--border-color-primary); }
.answer .bar { height: 100%; min-width: 1px; border-radius: inherit; background: var(--color-accent); }
.answer mark { color: inherit; padding: 0.15em 0.3em; border-radius: 0.3em; box-decoration-break: clone;
    -webkit-box-decoration-break: clone; background: hsl(var(--hue) 90% 50% / 0.28);
    border-bottom: 2px solid hsl(var(--hue) 90% 45%); }
.answer mark small { margin-left: 0.4em; font-weight: 600; white-space: nowrap; }
.colour-0 { --hue: 38; } .colour-1 { --hue: 205; } .colour-2 { --hue: 145; }
.colour-3 { --hue: 320; } .colour-4 { --hue: 265; } .colour-5 { --hue: 0; }
@media (max-width: 40rem) { .answer .columns-4 .bars, .answer .columns-5 .bars { display: none; } }
.answer figure { margin: 1rem 0 0; }
.answer figure img { max-width: none; }
.dark .answer figure img { filter: invert(0.88) hue-rotate(180deg); }
"""

# Label, characters that it takes, and lines.
FIELDS = {
    "masked_text": ("Text with [MASK]", SHORT, 2),
    "sentence_a": ("Sentence A", SHORT, 2),
    "sentence_b": ("Sentence B", SHORT, 2),
    "question": ("Question", SHORT, 1),
    "text": ("Text", LONG, 4),
    "context": ("Context", LONG, 6),
}
FILL_EXAMPLES = (
    ("A [MASK] expression yields a function object.",),
    ("If no matching attribute is found, an AttributeError exception is [MASK].",),
    ("A [MASK] definition defines a [MASK] object.",),
)
PAIR_EXAMPLES = (
    ("The try statement specifies exception handlers.",
     "When no exception occurs in the try clause, no exception handler is executed."),
    ("The return statement leaves the current function call.", "Names in Germany are often long."),
    ("The import statement finds a module and binds it to a name.",
     "If the module cannot be found, an ImportError is raised."),
)
ENTITY_EXAMPLES = (
    ("Ada Lovelace was born in London and wrote for a Swiss journal.",),
    ("Maria Keller moved from Vienna to Lisbon last spring.",),
    ("The train to Munich leaves at nine.",),
)
LOVELACE = (
    "Ada Lovelace was born in London in 1815. Her mother made sure that she was taught mathematics from an early age. "
    "In June 1833 she met Charles Babbage, who showed her a part of his Difference Engine. In 1843 she translated an "
    "article about the Analytical Engine from French and added notes that were three times as long as the article."
)
QUESTION_EXAMPLES = (
    ("What did Babbage show Ada Lovelace?", LOVELACE),
    ("Where was Ada Lovelace born?", LOVELACE),
    ("From which language did she translate the article?", LOVELACE),
)
UNEXPECTED = "Something went wrong that should not. The terminal that started this page says more."


def in_words(predict, show):
    """Make the handler of a button: it renders an answer, and says in words what is wrong."""

    def handle(*fields):
        try:
            return show(predict(*fields))
        except REFUSALS as error:
            return refused(error)
        except Exception:  # the page stays, whatever it is
            traceback.print_exc()
            return refused(UNEXPECTED)

    return handle


def as_data(predict):
    """Make an endpoint of the HTTP API: it answers with plain data, and says in words what is wrong."""

    @wraps(predict.__call__)  # gradio reads the names and types of the parameters
    def call(*fields):
        try:
            return predict(*fields)
        except REFUSALS as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            raise gr.Error(UNEXPECTED) from error  # gradio prints it

    call.__signature__ = inspect.signature(predict)
    return call


def add_part(name, predict, show, button, examples):
    """Add the controls of a function to a tab, fields, button, examples and answer; and an endpoint of that name."""
    one_at_a_time = {"concurrency_id": "models", "concurrency_limit": 1}  # all cores work on one answer
    fields = []
    for field in inspect.signature(predict).parameters:
        label, limit, lines = FIELDS[field]
        send = "Enter sends" if lines == 1 else "Shift+Enter sends"
        fields.append(gr.Textbox(label=label, info=f"up to {limit:,} characters; {send}", lines=lines, max_lines=12))
    run = gr.Button(button, variant="primary")
    with gr.Row(elem_classes="examples"):
        buttons = [gr.Button(f"Example: {example[0]}", size="sm") for example in examples]
    answer = gr.HTML(js_on_load=None)
    handle = in_words(predict, show)
    shared = {"inputs": fields, "outputs": answer, "scroll_to_output": True, "api_visibility": "private",
              **one_at_a_time}
    gr.on([run.click, *(field.submit for field in fields)], handle, **shared)
    for press, example in zip(buttons, examples, strict=True):
        values = example if len(fields) > 1 else example[0]
        press.click(lambda values=values: values, outputs=fields, api_visibility="private", queue=False).then(
            handle, **shared)
    gr.api(as_data(predict), api_name=name, **one_at_a_time)


def add_tab(task, parts, folders):
    """Add a tab: its parts, or the command that makes a model for it."""
    with gr.Tab(task.title, id=task.flag):
        if task.flag in folders:
            gr.HTML(f"<p>Model: <code>{esc(folders[task.flag])}</code></p>", js_on_load=None)
            for part in parts:
                add_part(*part)
            return
        folder = esc(f"--{task.flag} {task.folder}")
        gr.HTML("<p>There is no model for this tab. This command makes a small one, in the project's folder; then "
                f"start the page with <code>{folder}</code> as well.</p>", js_on_load=None)
        gr.Textbox(make_command(task), label="Command", interactive=False, lines=2, buttons=["copy"])


def make_command(task):
    """Write the one command that makes the small model of a task."""
    words = shlex.join(task.command("python", "MODEL")).replace("MODEL", '"$(python -m tools.offline_model)"')
    writes = f"python -m tools.python_reference {REFERENCE} && " if "quickstart" in task.config else ""
    return writes + words


def load_parts(flag, folder, base):
    """Load the model of a tab: list of what add_part takes for each part of it."""
    fill, judge = (show_fills, "Fill the masks", FILL_EXAMPLES), (show_verdict, "Does B follow A?", PAIR_EXAMPLES)
    if flag == "mlm":
        return [("fill_mask", FillMask({folder: folder} | base), *fill)]
    if flag == "nsp":
        return [("next_sentence", NextSentence(folder), *judge)]
    if flag == "pretraining":
        return [("pretraining_fill_mask", FillMask({folder: folder}), *fill),
                ("pretraining_next_sentence", NextSentence(folder), *judge)]
    if flag == "ner":
        return [("entities", Entities(folder), show_entities, "Find the entities", ENTITY_EXAMPLES)]
    return [("question_answering", QuestionAnswering(folder), show_answer, "Answer", QUESTION_EXAMPLES)]


def load_models(folders, base, must, say):
    """Load the models of the tabs: dict of flag to what load_parts gives.

    must: those that cannot be used end the start, as they were asked for; else their tabs go without.
    """
    parts = {}
    for flag, folder in folders.items():
        say(f"Loading     {folder}" + (f", and {' '.join(base)}" if flag == "mlm" and base else ""))
        try:
            parts[flag] = load_parts(flag, folder, base)
        except REFUSALS as error:
            if must:
                raise
            say(f"Careful     {folder} is passed over, as it cannot be used: {error} Or give another: --{flag} DIR.")
    if not parts:
        raise InputError("none of the models in outputs/ can be used. Name others, as with --mlm DIR.")
    return parts


def make_theme():
    """Make the colours and fonts: contrast for all to read, and fonts of the system, so that nothing is fetched."""
    theme = gr.themes.Default(
        primary_hue="blue", font=(gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")),
        font_mono=(gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")))
    return theme.set(
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_800", block_label_text_color_dark="*neutral_100",
        block_title_text_color="*neutral_800", block_title_text_color_dark="*neutral_100",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_800")


def build_page(parts, folders, privacy):
    """Build the page: gr.Blocks."""
    with gr.Blocks(title="BERT training scripts: demo", analytics_enabled=False) as page:
        gr.HTML(f"<h1>Try the models</h1><p>{esc(privacy)}</p>", js_on_load=None)
        with gr.Tabs(selected=next(task.flag for task in TASKS if task.flag in folders)):
            for task in TASKS:
                add_tab(task, parts.get(task.flag, ()), folders)
    return page


class NothingStored:
    """Closes the routes of gradio that write what a visitor sends to disk: uploads, and links to what was typed.

    Nor are bodies taken that are longer than a book: gradio keeps them in memory.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        app = self.app
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith(("/upload", "/deep_link")):
            app = PlainTextResponse("This page stores nothing.", status_code=404)
        elif scope["type"] == "http" and int(dict(scope["headers"]).get(b"content-length", b"0")) > 5e6:
            app = PlainTextResponse("At most 5 MB are taken.", status_code=413)
        await app(scope, receive, send)


def guards(host, share):
    """List what stands before gradio's routes."""
    guards = [Middleware(NothingStored)]
    if not share and socket.gethostbyname(host).startswith("127."):
        # Else another site could be looked up as this address, and read the page in a visitor's browser.
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", host, "127.0.0.1"]))
    return guards


def main(argv=None):
    def say(line):
        print(line, flush=True)

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that a training is told, too
    try:
        args = parse_args(argv)
        check_port(args.host, args.port)
        folders, base = choose_models(args, say)
        transformers.logging.set_verbosity_error()  # what it says of heads, the page says
        transformers.logging.disable_progress_bar()
        must = any(getattr(args, name) is not None for name in ("base", *(task.flag for task in TASKS)))
        parts = load_models(folders, base, must, say)
    except REFUSALS as error:
        print(f"tools.demo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tools.demo: stopped by Ctrl-C", file=sys.stderr)
        return 130
    privacy = "What you type is computed on the machine that runs this page; it is neither stored nor sent elsewhere."
    if args.share:
        privacy = "This page is shared: what you type passes through gradio's servers to the machine that runs it."
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks the page whether it is there: not by way of a proxy
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost", "127.0.0.1", args.host]))
    page = build_page(parts, {flag: folders[flag] for flag in parts}, privacy)
    _, address, link = page.launch(
        server_name=args.host, server_port=args.port, share=args.share, show_error=True, quiet=True,
        prevent_thread_lock=True, css=CSS, theme=make_theme(), footer_links=[],
        # Said outright, as variables of the environment would else decide.
        ssr_mode=False, mcp_server=False, pwa=False, run_history=False, enable_monitoring=False,
        state_session_capacity=100,
        app_kwargs={"middleware": guards(args.host, args.share)})
    say(f"Page        {address}" + (f" and, for anyone, {link}" if link else "") + "   (Ctrl-C ends it)")
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
