"""run_mlm.py as its users meet it: what it prints, and the files that it leaves behind; models and the Hub."""

import base64
import http.server
import json
import math
import os
import re
import shutil
import threading

import pytest
import torch
import yaml
from helpers import (
    ALIKE,
    ROOT,
    assert_one_message,
    command_line,
    contents,
    read_log,
    read_results,
    run_fresh,
    write_lines,
)  # fmt: skip
from plain_mlm import CURVE, LENGTH, line_examples, plain_scores
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast, pipeline

# ---------------------------------------------------------------- what a run leaves, and fills


def test_the_results_carry_the_promised_names(trained_mlm):
    results = read_results(trained_mlm)
    for name in ("eval_loss", "perplexity", "eval_accuracy"):
        assert {name, f"initial_{name}"} <= results.keys()
    assert {"train_samples_per_second", "predict_loss", "predict_perplexity", "predict_accuracy"} <= results.keys()
    for prefix, loss in (("", "eval_loss"), ("initial_", "initial_eval_loss"), ("predict_", "predict_loss")):
        assert results[f"{prefix}perplexity"] == pytest.approx(math.exp(results[loss]))
    assert results["eval_loss"] < results["initial_eval_loss"]
    assert results["train_samples_per_second"] > 0


def test_the_scores_before_and_after_are_those_of_the_two_models(trained_mlm, tiny_bert, lines57, lines61):
    results, tokenizer = read_results(trained_mlm), AutoTokenizer.from_pretrained(tiny_bert)
    validation, test = (
        line_examples(tokenizer, path.read_text(encoding="utf-8").splitlines(), LENGTH) for path in (lines61, lines57)
    )
    for prefix, folder, examples in (
        ("initial_eval_", tiny_bert, validation),
        ("eval_", trained_mlm, validation),
        ("predict_", trained_mlm, test),
    ):
        expected = plain_scores(folder, examples)
        assert results[f"{prefix}loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
        assert results[f"{prefix}accuracy"] == expected["eval_accuracy"]


def test_the_model_loads_whole_and_nothing_it_left_runs_code(trained_mlm):
    model, info = AutoModelForMaskedLM.from_pretrained(trained_mlm, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.hidden_dropout_prob == 0  # as --config_overrides asked
    assert {path.suffix for path in trained_mlm.rglob("*") if path.is_file()} == {
        ".json",
        ".jsonl",
        ".md",
        ".pt",
        ".safetensors",
    }
    pickles = list(trained_mlm.rglob("*.pt"))
    assert {path.name for path in pickles} == {"optimizer.pt"}
    for path in pickles:
        assert "state" in torch.load(path, weights_only=True)["optimizer"]


def test_the_model_card_tells_of_data_settings_and_scores(trained_mlm):
    card = (trained_mlm / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "fill-mask")
    results = read_results(trained_mlm)
    assert f"{results['initial_perplexity']:.4f} | {results['perplexity']:.4f}" in card
    assert "lines57.txt" in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert (settings["learning_rate"], settings["per_device_train_batch_size"], settings["seed"]) == (5e-3, 8, 42)


def test_the_log_has_a_line_for_each_update_and_each_evaluation(trained_mlm):
    log = read_log(trained_mlm)
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 17))
    assert [entry["step"] for entry in log if "initial_eval_loss" in entry] == [0]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [8, 16]
    assert [entry["epoch"] for entry in log if "eval_loss" in entry] == [1, 2]


@pytest.mark.parametrize(
    ("flags", "evaluations", "checkpoints"),
    [
        ({}, [8, 16], [8, 16]),
        ({"eval_strategy": "no", "save_strategy": "no"}, [16], []),
        (
            {
                "eval_strategy": "steps",
                "eval_steps": 6,
                "save_strategy": "steps",
                "save_steps": 5,
                "save_total_limit": 9,
            },
            [6, 12, 16],
            [5, 10, 15],
        ),
        (
            {
                "eval_strategy": "steps",
                "logging_steps": 7,
                "save_strategy": "steps",
                "save_steps": 0.25,
                "save_total_limit": 3,
            },
            [7, 14, 16],
            [8, 12, 16],
        ),
        ({"num_train_epochs": 1.5, "save_total_limit": 1}, [8, 12], [12]),
        ({"save_strategy": "steps", "save_steps": 2, "save_total_limit": 5}, [8, 16], [8, 10, 12, 14, 16]),
        ({"save_strategy": "steps", "save_steps": 3, "save_total_limit": 5}, [8, 16], [3, 6, 9, 12, 15]),
        ({"num_train_epochs": 3, "save_total_limit": 2}, [8, 16, 24], [16, 24]),
    ],
    ids=str,
)
def test_it_evaluates_and_saves_when_asked_to(mlm, lines57, lines61, tmp_path, flags, evaluations, checkpoints):
    mlm(
        train_file=lines57,
        validation_file=lines61,
        per_device_train_batch_size=8,
        **(CURVE | {"save_strategy": "epoch"} | flags),
    ).checked()
    assert [entry["step"] for entry in read_log(tmp_path / "out", "eval_loss")] == evaluations
    assert sorted(int(path.name.split("-")[1]) for path in (tmp_path / "out").glob("checkpoint-*")) == checkpoints
    assert not list((tmp_path / "out").glob("tmp-*"))


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_best_model_is_kept(mlm, prose, lines61, tmp_path, limit):
    # Eight lines learned by heart: the score on others gets better first, then worse.
    text = write_lines(tmp_path / "text.txt", prose[100:108])
    steps = {"max_steps": 30, "eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    settings = CURVE | steps | {"learning_rate": 0.01, "lr_scheduler_type": "constant", "save_total_limit": limit}
    mlm(train_file=text, validation_file=lines61, load_best_model_at_end=True, **settings).checked()
    logged = {entry["step"]: entry["eval_loss"] for entry in read_log(tmp_path / "out", "eval_loss")}
    best = min(logged, key=logged.get)
    assert best < 30  # or else this would test nothing
    assert read_results(tmp_path / "out")["eval_loss"] == logged[best]
    mlm(model=tmp_path / "out", validation_file=lines61, line_by_line=True, output_dir=tmp_path / "again").checked()
    assert read_results(tmp_path / "again")["eval_loss"] == pytest.approx(logged[best], rel=1e-6)
    assert (tmp_path / "out" / f"checkpoint-{best}").exists()
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == max(limit, 2)  # the last and the best


def test_a_run_that_only_does_harm_keeps_its_least_bad_model(mlm, trained_mlm, lines57, lines61, tmp_path):
    mlm(
        model=trained_mlm,
        train_file=lines57,
        validation_file=lines61,
        line_by_line=True,
        num_train_epochs=2,
        learning_rate=3,
        load_best_model_at_end=True,
    ).checked()
    results = read_results(tmp_path / "out")
    assert results["eval_loss"] <= min(entry["eval_loss"] for entry in read_log(tmp_path / "out", "eval_loss"))
    mlm(model=tmp_path / "out", validation_file=lines61, line_by_line=True, output_dir=tmp_path / "again").checked()
    assert read_results(tmp_path / "again")["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)


TEXTS = ["The [MASK] is happy.", "An [MASK] is [MASK] by a name .", "[MASK]"]


def read_fills(out, text, when=""):
    """What was printed below a text: a list for each of its masks, of (word, probability)."""
    lines = out.split(f"\n{text}\n", 1)[1].split("\n\n")[0].splitlines()
    rows = [re.findall(r"(\S+) ([01]\.\d{3})(?!\d)", line) for line in lines if line.startswith(f"  {when}")]
    return [[(word, float(p)) for word, p in row] for row in rows if row]


def assert_fills_agree(fills, folder, text):
    expected = pipeline("fill-mask", folder, device="cpu")(text, top_k=5)
    expected = expected if isinstance(expected[0], list) else [expected]
    assert len(fills) == text.count("[MASK]")
    for words, answers in zip(fills, expected, strict=True):
        assert [word for word, _ in words] == [answer["token_str"] for answer in answers]
        assert [p for _, p in words] == pytest.approx([answer["score"] for answer in answers], abs=5.1e-4)


@pytest.mark.parametrize("flags", [{}, {"mixed_precision": "bf16"}, {"processes": 2}], ids=str)
def test_text_gives_the_five_best_words_as_the_pipeline_does(mlm, trained_mlm, tmp_path, flags):
    before = contents(trained_mlm)
    done = mlm(model=trained_mlm, output_dir=trained_mlm, text=TEXTS, **flags).checked()
    for text in TEXTS:
        fills = read_fills(done.out, text)
        assert all(len(words) == 5 for words in fills)
        assert_fills_agree(fills, trained_mlm, text)
    assert contents(trained_mlm) == before  # nothing is trained_mlm, nothing written


def test_text_in_a_training_run_shows_the_fills_before_and_after(mlm, trained_mlm, tiny_bert, lines57, tmp_path):
    done = mlm(train_file=lines57, max_steps=4, learning_rate=0.01, text=TEXTS[:2]).checked()
    for text in TEXTS[:2]:
        before, after = read_fills(done.out, text, "before"), read_fills(done.out, text, "after")
        assert_fills_agree(before, tiny_bert, text)
        assert_fills_agree(after, tmp_path / "out", text)
        assert before != after


# ---------------------------------------------------------------- models


def test_from_scratch_takes_the_config_alone(mlm, tiny_bert, lines57, lines61, tmp_path):
    losses = {}
    for name, flags in {
        "pretrained": {},
        "scratch": {"from_scratch": True},
        "again": {"from_scratch": True},
        "other seed": {"from_scratch": True, "seed": 1},
        "two": {"from_scratch": True, "processes": 2},
    }.items():
        done = mlm(
            train_file=lines57, validation_file=lines61, max_steps=1, output_dir=tmp_path / name, **flags
        ).checked()
        assert ("random" in done.out) == ("from_scratch" in flags)
        losses[name] = read_results(tmp_path / name)["initial_eval_loss"]
    assert losses["scratch"] == losses["again"]
    assert losses["scratch"] == pytest.approx(losses["two"], rel=1e-6)
    assert len({losses["scratch"], losses["pretrained"], losses["other seed"]}) == 3
    shapes = {name: tensor.shape for name, tensor in load_file(tiny_bert / "model.safetensors").items()}
    assert {
        name: tensor.shape for name, tensor in load_file(tmp_path / "scratch" / "model.safetensors").items()
    } == shapes


def test_a_model_without_a_head_is_said_to_start_at_random(mlm, tiny_bert, lines57, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "headless")
    weights = {
        name: tensor
        for name, tensor in load_file(tiny_bert / "model.safetensors").items()
        if not name.startswith("cls.")
    }
    save_file(weights, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    done = mlm(model=tmp_path / "headless", train_file=lines57, max_steps=1).checked()
    assert "random" in re.search(r"Model  .*headless.*", done.out)[0]
    done = mlm(train_file=lines57, max_steps=1, output_dir=tmp_path / "with head").checked()
    assert "random" not in re.search(r"Model  .*", done.out)[0]


def test_embeddings_grow_with_the_tokenizer(mlm, tiny_bert, tmp_path):
    tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
    assert tokenizer.add_tokens([f"newword{letter}" for letter in "abcdefg"]) == 7
    tokenizer.save_pretrained(tmp_path / "larger")
    text = write_lines(
        tmp_path / "text.txt", [f"a newword{letter} is a name , and newword{letter} is not" for letter in "abcdefg" * 5]
    )
    done = mlm(
        tokenizer_name=tmp_path / "larger",
        train_file=text,
        line_by_line=True,
        num_train_epochs=2,
        config_overrides="hidden_dropout_prob=0.0",
    ).checked()
    assert "607" in done.out
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 607
    assert model(torch.tensor([[2, 606, 3]])).logits.shape[-1] == 607
    old = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    unused = tokenizer.convert_tokens_to_ids("##ing")  # the old ones are kept: this one is not in the text
    difference = (model.get_input_embeddings().weight[unused] - old.get_input_embeddings().weight[unused]).abs().max()
    assert difference < 1e-2
    assert math.isfinite(read_results(tmp_path / "out")["perplexity"])
    done = mlm(model=tmp_path / "out", validation_file=text, line_by_line=True, output_dir=tmp_path / "again").checked()
    assert read_results(tmp_path / "again")["perplexity"] > 1


def test_a_model_larger_than_its_tokenizer_keeps_its_size(mlm, tiny_bert, lines57, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    model.resize_token_embeddings(640)  # as some are padded to a multiple of 64
    model.save_pretrained(tmp_path / "padded")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "padded")
    mlm(model=tmp_path / "padded", train_file=lines57, max_steps=1).checked()
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").config.vocab_size == 640


class Trap:
    """Unpickled, it leaves a file behind: what a model from a stranger could do to a home folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["weights in a pickle", "code of its own", "code of its own for a known kind"])
def test_a_model_from_a_stranger_runs_no_code(mlm, tiny_bert, lines57, tmp_path, kind):
    model, sprung = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(tiny_bert, model)
    if kind == "weights in a pickle":
        (model / "model.safetensors").unlink()
        torch.save({"cls.predictions.bias": Trap(sprung)}, model / "pytorch_model.bin")
    else:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config["auto_map"] = {"AutoConfig": "strange.Config", "AutoModelForMaskedLM": "strange.Model"}
        if kind == "code of its own":
            config["model_type"] = "strange"
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        code = ["import os", f"os.mkdir({str(sprung)!r})", "from transformers import BertConfig as Config"]
        write_lines(model / "strange.py", [*code, "from transformers import BertForMaskedLM as Model"])
    done = mlm(model=model, train_file=lines57, max_steps=1)
    assert not sprung.exists()
    if kind == "code of its own for a known kind":
        done.checked()  # the library's own code is as good
    else:
        assert_one_message(done, ["--model", str(model)])


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "modernbert"])
def test_other_encoders_train_as_a_plain_computation_scores_them(mlm, tiny_bert, lines57, lines61, tmp_path, kind):
    from transformers import AutoConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dim": 64,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "embedding_size": 32,
        "max_position_embeddings": 80,
        "type_vocab_size": 1,
        "initializer_range": 0.15,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
    }
    ids = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind)
    config = type(config)(**{name: value for name, value in (sizes | ids).items() if hasattr(config, name)})
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    mlm(
        model=tmp_path / kind,
        train_file=lines57,
        validation_file=lines61,
        line_by_line=True,
        num_train_epochs=1,
        learning_rate=1e-2,
    ).checked()
    results = read_results(tmp_path / "out")
    examples = line_examples(tokenizer, lines61.read_text(encoding="utf-8").splitlines(), LENGTH)
    assert results["initial_eval_loss"] == pytest.approx(plain_scores(tmp_path / kind, examples)["eval_loss"], rel=1e-5)
    assert results["eval_loss"] == pytest.approx(plain_scores(tmp_path / "out", examples)["eval_loss"], rel=1e-5)
    assert results["eval_loss"] < results["initial_eval_loss"]


# ---------------------------------------------------------------- the Hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's interface as it takes to make a repository of `someone`, and to commit small files to it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            assert self.headers["Authorization"] == "Bearer hf_of_this_test"
            repository = f"someone/{json.loads(body)['name'].removeprefix('someone/')}"
            self.server.made.append(repository)
            self.answer({"url": f"{here}/{repository}", "name": repository, "id": repository})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif not any(self.path.startswith(f"/api/models/{repository}/") for repository in self.server.made):
            self.answer({"error": "Repository not found"}, 404)
        elif "/preupload/" in self.path:
            self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"{here}/{self.server.made[0]}/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                    "commitMessage": "",
                    "success": True,
                }
            )
        else:
            self.answer({"error": "not here"}, 404)

    def do_GET(self):
        if self.path.startswith("/api/whoami"):
            self.answer({"name": "someone", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        elif any(self.path.startswith(f"/api/models/{repository}") for repository in self.server.made):
            self.answer({"id": self.server.made[0], "sha": "0" * 40, "siblings": [], "private": False, "tags": []})
        else:
            self.answer({"error": "not here"}, 404)

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.committed = [], {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["someone/model", None])
def test_push_to_hub_uploads_the_model_and_no_checkpoint(hub, tiny_bert, lines57, tmp_path, name):
    settings = {
        **ALIKE,
        "model": tiny_bert,
        "train_file": lines57,
        "max_steps": 2,
        "max_seq_length": LENGTH,
        "output_dir": "model",
        "push_to_hub": True,
        "hub_model_id": name,
    }
    env = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_of_this_test",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = run_fresh([ROOT / "run_mlm.py", *command_line(**settings)], tmp_path, env).checked()
    assert "someone/model" in done.out
    assert hub.made == ["someone/model"]
    left = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "all_results.json",
        "log.jsonl",
    } <= left.keys()
    assert hub.committed == left
