"""run_pretraining.py as its users meet it: the command line, what it prints, and the files that it leaves behind."""

import functools
import math
import re
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import (
    ALIKE,
    Run,
    add_pair_head,
    contents,
    hide_nothing,
    read_documents,
    read_log,
    read_results,
    run_script,
    write_documents,
)
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    AutoTokenizer,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

import run_mlm
import run_pretraining
from run_pretraining import PretrainingCollator
from utils.devices import Processes
from utils.masks import Masker, WordUnits, mask_tokens

NO_DROPOUT = {"config_overrides": "hidden_dropout_prob=0,attention_probs_dropout_prob=0"}
LENGTH = 48  # of the examples, in tokens
EPOCHS = 2
CURVE = {
    "num_train_epochs": EPOCHS,
    "learning_rate": 2e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "validation_split_percentage": 0,
    **NO_DROPOUT,
}
PARTS = ("loss", "mlm_loss", "nsp_loss")


@pytest.fixture(scope="session")
def tiny_pretrained_bert(tmp_path_factory, tiny_bert):
    """Folder of the tiny BERT with heads for both tasks. Not to be written to."""
    return add_pair_head(tmp_path_factory.mktemp("tiny_pretrained_bert"), tiny_bert)


@pytest.fixture
def pretraining(tiny_pretrained_bert, tmp_path):
    """run_pretraining.py on the tiny model, as a process of its own: it gives a helpers.Done."""
    defaults = {**ALIKE, "model": tiny_pretrained_bert, "output_dir": tmp_path / "out", "max_seq_length": LENGTH}

    def run(*, script="run_pretraining.py", folder=tmp_path, **how):
        return run_script(script, defaults, folder=folder, **how)

    return run


@pytest.fixture(scope="session")
def train_text(tmp_path_factory, prose):
    documents = [prose[at : at + 3] for at in range(100, 148, 3)]
    return write_documents(tmp_path_factory.mktemp("train") / "train.txt", documents)


@pytest.fixture(scope="session")
def validation_text(tmp_path_factory, prose):
    documents = [prose[at : at + 4] for at in range(300, 340, 4)]
    return write_documents(tmp_path_factory.mktemp("validation") / "validation.txt", documents)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_pretrained_bert, train_text, validation_text):
    """Output folder of a plain run in batches of 8, dropout off. Not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {
        **ALIKE,
        "model": tiny_pretrained_bert,
        "train_file": train_text,
        "validation_file": validation_text,
        "test_file": train_text,
        "max_seq_length": LENGTH,
        "per_device_train_batch_size": 8,
        **CURVE,
        "output_dir": folder / "out",
        "save_strategy": "epoch",
    }
    Run("run_pretraining.py", settings, folder).wait().checked()
    return folder / "out"


# ---------------------------------------------------------------- scores


class Plain:
    """The two tasks by transformers alone: one pair at a time, without padding, scores for all positions.

    Args:
        folder: of the tokenizer.
        path: the text.
        seed: of pairs and masks.
        masking: more arguments of mask_tokens.
        whole_words: whether words are hidden whole.
        unit, objective: of the pairs.
    """

    def __init__(self, folder, path, seed=0, masking=None, whole_words=False, unit="segment", objective="nsp"):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.seed, self.masking = seed, masking or {}
        self.continues = WordUnits(self.tokenizer) if whole_words else None
        self.pairs = self.collator(hide_nothing, read_documents(path, self.tokenizer), unit, objective)

    def collator(self, masker, documents, unit="segment", objective="nsp"):
        return PretrainingCollator(
            masker,
            unit,
            0.1,
            documents=documents,
            size=LENGTH - 3,
            edges=[self.tokenizer.cls_token_id, self.tokenizer.sep_token_id],
            pad_id=self.tokenizer.pad_token_id,
            objective=objective,
            seed=self.seed,
        )

    def losses(self, model, example, epoch=0):
        """Of one pair: sums of both losses (nats), hits of both, and how many tokens were hidden; and the inputs."""
        self.pairs.epoch = epoch
        batch = self.pairs([example])
        ids, types = batch["input_ids"][0].numpy(), batch["token_type_ids"]
        masked, targets = mask_tokens(
            ids,
            np.isin(ids, self.tokenizer.all_special_ids),
            mask_id=self.tokenizer.mask_token_id,
            vocab_size=len(self.tokenizer),
            seed=self.seed,
            epoch=epoch,
            example_id=example,
            continues=None if self.continues is None else self.continues(ids),
            **self.masking,
        )
        masked, targets, label = torch.from_numpy(masked), torch.from_numpy(targets), batch["next_sentence_label"][0]
        outputs = model(input_ids=masked[None], token_type_ids=types)
        tokens = outputs.prediction_logits[0]  # (seq, vocab)
        pair = outputs.sop_logits[0] if "sop_logits" in outputs else outputs.seq_relationship_logits[0]  # (2,)
        nats = [F.cross_entropy(tokens, targets, reduction="sum"), F.cross_entropy(pair, label)]
        hits = [(tokens.argmax(dim=-1) == targets).sum().item(), (pair.argmax() == label).item()]
        return nats, hits, (targets != -100).sum().item()

    @torch.no_grad()
    def scores(self, folder, weights=(1, 1), prefix="eval_", kind=BertForPreTraining):
        model = kind.from_pretrained(folder).eval()
        rows = [self.losses(model, example) for example in range(self.pairs.count(0))]
        assert np.ptp([nats[1].item() for nats, _, _ in rows]) > 0.1  # a model that tells one pair from another
        count = sum(tokens for _, _, tokens in rows)
        mlm, nsp = (sum(nats[part].item() for nats, _, _ in rows) / n for part, n in enumerate((count, len(rows))))
        scores = {
            f"{prefix}loss": weights[0] * mlm + weights[1] * nsp,
            f"{prefix}mlm_loss": mlm,
            f"{prefix}mlm_accuracy": sum(hits[0] for _, hits, _ in rows) / count,
            f"{prefix}nsp_loss": nsp,
            f"{prefix}nsp_accuracy": sum(hits[1] for _, hits, _ in rows) / len(rows),
        }
        return scores | {f"{prefix.removesuffix('eval_')}perplexity": math.exp(mlm)}

    def curve(self, folder, batch_size, epochs, learning_rate, weights=(1, 1)):
        """Train without dropout: (rows of loss, mlm_loss and nsp_loss, one for each update; the model)."""
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = BertForPreTraining.from_pretrained(folder, **off).train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        counts = [self.pairs.count(epoch) for epoch in range(epochs)]
        updates, curve = sum(math.ceil(count / batch_size) for count in counts), []
        for epoch, count in enumerate(counts):
            order = np.random.default_rng((self.seed, epoch)).permutation(count)
            for start in range(0, count, batch_size):
                rows = [self.losses(model, i, epoch) for i in order[start : start + batch_size].tolist()]
                mlm = sum(nats[0] for nats, _, _ in rows) / max(1, sum(tokens for _, _, tokens in rows))
                nsp = sum(nats[1] for nats, _, _ in rows) / len(rows)
                loss = weights[0] * mlm + weights[1] * nsp
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.param_groups[0]["lr"] = learning_rate * (1 - len(curve) / updates)
                optimizer.step()
                optimizer.zero_grad()
                curve.append([loss.item(), mlm.item(), nsp.item()])
        return np.array(curve), model


def assert_scores_agree(results, expected, prefix=""):
    for name, value in expected.items():
        value = value if name.endswith("accuracy") else pytest.approx(value, rel=1e-5)
        assert results[prefix + name] == value, name


TASKS = {  # flags, and the same for Plain
    "segment": ({}, {}),
    "sentence": ({"pair_unit": "sentence"}, {"unit": "sentence"}),
    "sop": ({"objective": "sop"}, {"objective": "sop"}),
    "whole words": (
        {"masking": "whole_word", "mlm_probability": 0.2},
        {"whole_words": True, "masking": {"mask_prob": 0.2}},
    ),
    "all shown as [MASK]": (
        {"mask_replace_prob": 1.0, "random_replace_prob": 0},
        {"masking": {"mask_replace_prob": 1.0, "random_replace_prob": 0}},
    ),
}


@pytest.fixture(scope="session")
def expected_scores(tiny_pretrained_bert, validation_text):
    """Scores by Plain of the validation text, paired and masked in several ways."""

    @functools.cache
    def scores(task):
        return Plain(tiny_pretrained_bert, validation_text, **TASKS[task][1]).scores(tiny_pretrained_bert)

    return scores


@pytest.mark.parametrize(
    ("task", "batch_size", "processes"),
    [
        *[("segment", *split) for split in [(4, 1), (32, 1), (8, 2), (4, 3)]],
        ("sentence", 8, 1),
        ("sentence", 4, 2),
        ("sop", 4, 2),
        ("whole words", 8, 1),
        ("whole words", 4, 2),
        ("all shown as [MASK]", 8, 1),
    ],
)
def test_scores_are_those_of_a_plain_computation_for_any_batch_size_and_process_count(
    pretraining, expected_scores, validation_text, tmp_path, task, batch_size, processes
):
    settings = {"per_device_eval_batch_size": batch_size, "processes": processes, **TASKS[task][0]}
    pretraining(validation_file=validation_text, **settings).checked()
    results, expected = read_results(tmp_path / "out"), expected_scores(task)
    assert_scores_agree(results, expected)
    assert results.keys() == expected.keys()


def test_the_scores_before_and_after_are_those_of_the_two_models(
    trained, tiny_pretrained_bert, train_text, validation_text
):
    results, plain = read_results(trained), Plain(tiny_pretrained_bert, validation_text)
    assert_scores_agree(results, plain.scores(tiny_pretrained_bert), "initial_")
    assert_scores_agree(results, plain.scores(trained))
    assert_scores_agree(results, Plain(tiny_pretrained_bert, train_text).scores(trained, prefix="predict_"))


class Batches:
    """A collator that gives the same batches to both scripts."""

    def __init__(self, batches):
        self.batches = batches

    def __call__(self, numbers):
        return self.batches[numbers[0]]


def test_given_the_same_batches_both_scripts_score_masked_tokens_alike(tiny_pretrained_bert, validation_text):
    plain = Plain(tiny_pretrained_bert, validation_text)
    flags = Namespace(masking="token", mlm_probability=0.15, mask_replace_prob=0.8, random_replace_prob=0.1)
    collator = plain.collator(Masker(plain.tokenizer, flags, 0), plain.pairs.documents)
    count = collator.count(0)
    batches = Batches([collator(list(range(at, min(at + 7, count)))) for at in range(0, count, 7)])
    assert len(batches.batches) > 3
    run = Processes(1, 0, 0)
    run.device, run.args = torch.device("cpu"), Namespace(mlm_weight=1, nsp_weight=1)
    how = {"collator": batches, "batch_size": 1, "run": run}
    model = BertForPreTraining.from_pretrained(tiny_pretrained_bert)
    both = run_pretraining.evaluate(model, examples=range(len(batches.batches)), **how)
    model = BertForMaskedLM.from_pretrained(tiny_pretrained_bert)
    alone = run_mlm.evaluate(model, examples=range(len(batches.batches)), **how)
    assert both["eval_mlm_loss"] == pytest.approx(alone["eval_loss"], rel=1e-6, abs=1e-6)
    assert both["eval_mlm_accuracy"] == alone["eval_accuracy"]
    assert both["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-6)


# ---------------------------------------------------------------- curves


def parts_of(output_dir):
    """Rows of loss, mlm_loss and nsp_loss, one for each update."""
    return np.array([[entry[name] for name in PARTS] for entry in read_log(output_dir, *PARTS)])


def assert_weights_agree(weights, expected):
    """Hold a state dict against another, to what some updates make of the last digits of a gradient."""
    assert weights.keys() <= expected.keys()
    for name in weights:
        # Attention does not depend on the bias of its keys: that gradient is noise, which Adam makes large.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(
                weights[name], expected[name], rtol=0, atol=5e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.fixture(scope="session")
def plain_curve(tiny_pretrained_bert, train_text):
    plain = Plain(tiny_pretrained_bert, train_text, seed=42)
    counts = [plain.pairs.count(epoch) for epoch in range(EPOCHS)]
    assert len(set(counts)) == EPOCHS  # packed anew, there are more or fewer of them
    return [math.ceil(count / 8) for count in counts], *plain.curve(tiny_pretrained_bert, 8, EPOCHS, 2e-3)


def test_the_curve_of_each_part_is_that_of_a_plain_loop(trained, plain_curve):
    updates, curve, model = plain_curve
    assert curve[-1, 1] < curve[0, 1] - 0.3  # it learns, so that equal curves say something
    assert np.ptp(curve[:, 2]) > 0.1
    np.testing.assert_allclose(parts_of(trained), curve, rtol=0, atol=1e-4)
    assert_weights_agree(load_file(trained / "model.safetensors"), model.state_dict())
    ends = np.cumsum(updates).tolist()
    log = read_log(trained, "eval_loss")
    assert [(entry["step"], entry["epoch"]) for entry in log] == [(end, n) for n, end in enumerate(ends, 1)]
    expected = [round(epoch + k / count, 4) for epoch, count in enumerate(updates) for k in range(1, count + 1)]
    assert [entry["epoch"] for entry in read_log(trained, "loss")] == pytest.approx(expected)
    results = read_results(trained)
    assert (results["step"], results["epoch"]) == (ends[-1], EPOCHS)
    assert sorted(path.name for path in trained.glob("checkpoint-*")) == sorted(f"checkpoint-{end}" for end in ends)


@pytest.mark.parametrize(("processes", "batch_size", "accumulation"), [(1, 2, 4), (2, 4, 1), (2, 1, 4)])
def test_the_curve_of_each_part_is_the_same_for_any_split_of_the_global_batch(
    pretraining, trained, train_text, validation_text, tmp_path, processes, batch_size, accumulation
):
    pretraining(
        train_file=train_text,
        validation_file=validation_text,
        processes=processes,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **CURVE,
    ).checked()
    np.testing.assert_allclose(parts_of(tmp_path / "out"), parts_of(trained), rtol=0, atol=1e-4)
    for now, then in zip(read_log(tmp_path / "out", "eval_loss"), read_log(trained, "eval_loss"), strict=True):
        assert now["step"] == then["step"]
        for name in ("eval_loss", "eval_mlm_loss", "eval_nsp_loss"):
            assert now[name] == pytest.approx(then[name], abs=1e-4)
    assert_weights_agree(load_file(tmp_path / "out" / "model.safetensors"), load_file(trained / "model.safetensors"))


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-4),
        ({"dataloader_num_workers": 2}, 0),
    ],
    ids=str,
)
def test_what_changes_speed_or_memory_changes_no_loss(pretraining, trained, train_text, tmp_path, flags, tolerance):
    pretraining(train_file=train_text, per_device_train_batch_size=8, **CURVE, **flags).checked()
    np.testing.assert_allclose(parts_of(tmp_path / "out"), parts_of(trained), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("weights", "processes"), [((1, 0), 1), ((0, 1), 1), ((0, 1), 2), ((0.5, 2), 2)], ids=str
)
def test_weights_make_the_loss_a_weighted_sum(
    pretraining, tiny_pretrained_bert, train_text, validation_text, tmp_path, weights, processes
):
    settings = CURVE | {"mlm_weight": weights[0], "nsp_weight": weights[1], "num_train_epochs": 1}
    pretraining(
        train_file=train_text,
        validation_file=validation_text,
        processes=processes,
        per_device_train_batch_size=8 // processes,
        **settings,
    ).checked()
    parts = parts_of(tmp_path / "out")
    expected, model = Plain(tiny_pretrained_bert, train_text, seed=42).curve(tiny_pretrained_bert, 8, 1, 2e-3, weights)
    np.testing.assert_allclose(parts, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(parts[:, 0], parts[:, 1:] @ weights, rtol=1e-9)
    assert_weights_agree(load_file(tmp_path / "out" / "model.safetensors"), model.state_dict())
    results = read_results(tmp_path / "out")
    for prefix in ("initial_eval_", "eval_"):
        total = weights[0] * results[f"{prefix}mlm_loss"] + weights[1] * results[f"{prefix}nsp_loss"]
        assert results[f"{prefix}loss"] == pytest.approx(total)
    total = weights[0] * results["train_mlm_loss"] + weights[1] * results["train_nsp_loss"]
    assert results["train_loss"] == pytest.approx(total)


def test_a_logged_mean_gives_each_token_and_each_pair_the_same_weight(pretraining, trained, train_text, tmp_path):
    # Of one line for the whole run: nats of all tokens over all tokens, of all pairs over all pairs.
    settings = CURVE | {"logging_steps": 1000, "learning_rate": 0, "num_train_epochs": 1}
    pretraining(train_file=train_text, per_device_train_batch_size=8, **settings).checked()
    (logged,) = parts_of(tmp_path / "out")
    settings |= {"per_device_train_batch_size": 1000, "output_dir": tmp_path / "at once"}
    pretraining(train_file=train_text, **settings).checked()
    np.testing.assert_allclose(logged, parts_of(tmp_path / "at once")[0], rtol=1e-5)


@pytest.fixture(scope="session")
def one_task(tmp_path_factory, tiny_pretrained_bert, prose):
    """(settings, parts of the losses) of a short run, on sentences of which several make a segment."""
    folder, words = tmp_path_factory.mktemp("one_task"), " ".join(prose[100:200]).split()
    lines = [" ".join(words[at : at + 3]) for at in range(0, 1800, 3)]
    text = write_documents(folder / "text.txt", [lines[at : at + 30] for at in range(0, 600, 30)])
    settings = {**ALIKE, **CURVE, "model": tiny_pretrained_bert, "train_file": text, "sentence_per_line": True}
    settings |= {"max_seq_length": LENGTH, "max_steps": 6}
    Run("run_pretraining.py", settings | {"output_dir": folder / "out"}, folder).wait().checked()
    return settings, parts_of(folder / "out")


@pytest.mark.parametrize(
    "flags",
    [
        {"pair_unit": "sentence"},
        {"short_seq_prob": 0},
        {"short_seq_prob": 1},
        {"objective": "sop"},
        {"masking": "whole_word"},
        {"sentences_per_document": 2},
    ],
    ids=str,
)
def test_what_is_another_task_gives_another_curve(pretraining, one_task, tmp_path, flags):
    settings, expected = one_task
    pretraining(**settings | flags).checked()
    parts = parts_of(tmp_path / "out")
    assert np.isfinite(parts).all()
    assert np.abs(parts - expected).max() > 1e-3


# ---------------------------------------------------------------- mistakes


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, tiny_bert, train_text):
    """A folder of documents and a model that do not do."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copy(train_text, folder / "good.txt")
    write_documents(folder / "one.txt", [["The first sentence. The second one. Here is a third. This is the last."]])
    write_documents(folder / "single.txt", [["A single sentence."], ["Another one alone."], ["And a third."]])
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    config = DistilBertConfig(dim=8, n_layers=1, n_heads=1, hidden_dim=8, vocab_size=len(tokenizer))
    DistilBertForMaskedLM(config).save_pretrained(folder / "distilbert")
    tokenizer.save_pretrained(folder / "distilbert")
    return folder


WAYS_ON = ["--document_separator", "--sentences_per_document", "--objective sop"]
WHOLE = {"validation_split_percentage": 0}
MISTAKES = {
    "one document": ({"train_file": "one.txt", **WHOLE}, ["one.txt", "one document", *WAYS_ON]),
    "one document to test on": ({"test_file": "one.txt"}, ["one.txt", "test part", "one document", *WAYS_ON]),
    "single sentences": (
        {"train_file": "single.txt", **WHOLE}, ["single.txt", "no document of two sentences", "3 of one"]),
    "no heads": ({"model": "distilbert"}, ["--model distilbert", "heads for both", "albert", "run_mlm.py"]),
    "length 4": ({"max_seq_length": 4}, ["--max_seq_length is 4", "at least 5"]),
    "short_seq_prob": ({"short_seq_prob": 1.1}, ["--short_seq_prob is 1.1", "at least 0 and at most 1"]),
    "unknown unit": ({"pair_unit": "word"}, ["--pair_unit", "sentence", "segment"]),
    "both weights 0": ({"mlm_weight": 0, "nsp_weight": 0}, ["--mlm_weight and --nsp_weight", "both 0"]),
    "negative weight": ({"nsp_weight": -1}, ["--nsp_weight is -1"]),
    "replacements over 1": ({"mask_replace_prob": 0.95}, ["--mask_replace_prob", "--random_replace_prob"]),
    "mlm_probability 0": ({"mlm_probability": 0}, ["--mlm_probability is 0"]),
    "nothing to be masked": ({"mlm_probability": 1e-9}, ["--mlm_probability"]),
    "misspelt flag": ({"mlm_weigth": 1}, ["--mlm_weigth is not a flag", "did you mean --mlm_weight?"]),
}  # fmt: skip


def assert_one_message(done, fragments):
    assert done.status == 2, done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.count("error:") == 1
    message = done.err.rstrip().splitlines()[-1]
    assert message.startswith("run_pretraining.py: error: ")
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_and_costs_nothing_that_was_there(pretraining, inputs, trained, tmp_path, name):
    flags, fragments = MISTAKES[name]
    shutil.copytree(trained, tmp_path / "out")
    done = pretraining(folder=inputs, **({"train_file": "good.txt", "overwrite_output_dir": True} | flags))
    assert_one_message(done, fragments)
    assert contents(tmp_path / "out") == contents(trained)


@pytest.mark.parametrize("name", ["one document", "single sentences", "no heads", "nothing to be masked"])
def test_two_processes_say_it_once(pretraining, inputs, name):
    flags, fragments = MISTAKES[name]
    assert_one_message(pretraining(folder=inputs, processes=2, **({"train_file": "good.txt"} | flags)), fragments)


def test_a_second_run_in_the_same_folder_is_refused(pretraining, trained, train_text, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    done = pretraining(train_file=train_text, max_steps=2)
    assert_one_message(done, ["in use", "--resume_from_checkpoint", "--overwrite_output_dir"])
    assert contents(tmp_path / "out") == contents(trained)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("kind", [BertForPreTraining, BertForNextSentencePrediction, BertForMaskedLM])
def test_each_of_the_heads_loads_whole_from_what_it_wrote(trained, kind):
    model, info = kind.from_pretrained(trained, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    stored = load_file(trained / "model.safetensors")
    heads = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("cls.") and name in stored}
    assert heads
    for name, tensor in heads.items():
        assert torch.equal(tensor, stored[name]), name


def test_run_nsp_and_run_mlm_take_the_folder_with_heads_that_come_trained(
    pretraining, trained, validation_text, tmp_path
):
    expected = read_results(trained)
    settings = {"model": trained, "validation_file": validation_text}
    done = pretraining(script="run_nsp.py", output_dir=tmp_path / "nsp", **settings).checked()
    assert re.search("Model  .* comes trained", done.out)
    # Pairs of sentences with no token hidden: the score of transformers.
    model = BertForNextSentencePrediction.from_pretrained(trained).eval()
    pairs, nats = Plain(trained, validation_text, unit="sentence").pairs, []
    for example in range(pairs.count(0)):
        batch = pairs([example])
        with torch.no_grad():
            logits = model(batch["input_ids"], token_type_ids=batch["token_type_ids"]).logits
        nats.append(F.cross_entropy(logits, batch["next_sentence_label"]).item())
    assert read_results(tmp_path / "nsp")["eval_loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    done = pretraining(script="run_mlm.py", output_dir=tmp_path / "mlm", **settings).checked()
    assert re.search("Model  .* comes trained", done.out)
    assert read_results(tmp_path / "mlm")["eval_loss"] == pytest.approx(expected["eval_mlm_loss"], rel=0.2)


def test_a_model_without_a_head_for_pairs_is_said_to_start_with_one_at_random(
    pretraining, tiny_bert, tiny_pretrained_bert, train_text
):
    settings = {"train_file": train_text, "max_steps": 1}
    done = pretraining(model=tiny_bert, **settings).checked()
    assert "cls.seq_relationship" in re.search(r"Model  .*random.*", done.out)[0]
    done = pretraining(model=tiny_pretrained_bert, overwrite_output_dir=True, **settings).checked()
    assert "random" not in re.search(r"Model  .*", done.out)[0]


def test_from_scratch_takes_the_config_alone(pretraining, tiny_pretrained_bert, train_text, tmp_path):
    losses = {}
    for name, flags in {
        "pretrained": {},
        "scratch": {"from_scratch": True},
        "two": {"from_scratch": True, "processes": 2, "per_device_train_batch_size": 8},
        "other seed": {"from_scratch": True, "seed": 1},
    }.items():
        done = pretraining(train_file=train_text, max_steps=1, output_dir=tmp_path / name, **flags).checked()
        assert ("all of it starts at random" in done.out) == ("from_scratch" in flags)
        losses[name] = read_results(tmp_path / name)["initial_eval_loss"]
    assert losses["scratch"] == pytest.approx(losses["two"], rel=1e-6)
    assert len({losses["scratch"], losses["pretrained"], losses["other seed"]}) == 3
    shapes = {name: tensor.shape for name, tensor in load_file(tiny_pretrained_bert / "model.safetensors").items()}
    made = load_file(tmp_path / "scratch" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in made.items()} == shapes


@pytest.fixture(scope="session")
def tiny_albert(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("tiny_albert")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AlbertConfig(
            vocab_size=len(tokenizer),
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.15,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
        model = AlbertForPreTraining(config)
    model.sop_classifier.classifier.weight.data.mul_(4)
    model.save_pretrained(folder)
    return folder


def test_albert_learns_the_order_of_sentences(pretraining, tiny_albert, train_text, validation_text, tmp_path):
    done = pretraining(
        model=tiny_albert,
        objective="sop",
        train_file=train_text,
        validation_file=validation_text,
        num_train_epochs=1,
        learning_rate=2e-3,
        processes=2,
        per_device_train_batch_size=4,
    ).checked()
    assert re.search("Model  .* comes trained", done.out)
    results, plain = read_results(tmp_path / "out"), Plain(tiny_albert, validation_text, objective="sop")
    assert_scores_agree(results, plain.scores(tiny_albert, kind=AlbertForPreTraining), "initial_")
    assert_scores_agree(results, plain.scores(tmp_path / "out", kind=AlbertForPreTraining))
    assert results["eval_mlm_loss"] < results["initial_eval_mlm_loss"]


# ---------------------------------------------------------------- what a run leaves


def test_the_results_carry_the_promised_names(trained):
    results = read_results(trained)
    scores = ["loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"]
    names = {f"{prefix}{name}" for prefix in ("initial_eval_", "eval_", "predict_") for name in scores}
    names |= {f"{prefix}perplexity" for prefix in ("initial_", "", "predict_")} | {f"train_{name}" for name in PARTS}
    assert results.keys() == names | {"step", "epoch", "train_runtime", "train_samples_per_second"}
    assert results["eval_mlm_loss"] < results["initial_eval_mlm_loss"]


def test_a_test_file_alone_is_scored_and_leaves_no_model(pretraining, tiny_pretrained_bert, train_text, tmp_path):
    pretraining(test_file=train_text, do_predict=True).checked()
    results, plain = read_results(tmp_path / "out"), Plain(tiny_pretrained_bert, train_text)
    assert_scores_agree(results, plain.scores(tiny_pretrained_bert, prefix="predict_"))
    assert all(name.startswith("predict_") for name in results)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_nothing_it_left_runs_code(trained):
    suffixes = {path.suffix for path in trained.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".md", ".pt", ".safetensors"}
    for path in trained.rglob("*.pt"):
        assert path.name == "optimizer.pt"
        assert "state" in torch.load(path, weights_only=True)["optimizer"]


def test_the_model_card_tells_of_data_settings_and_scores(trained):
    card = (trained / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "fill-mask")
    results = read_results(trained)
    for name in ("perplexity", "eval_mlm_loss", "eval_nsp_loss"):
        assert f"{results[f'initial_{name}']:.4f} | {results[name]:.4f}" in card
    assert "train.txt" in card and "masked language modelling and next sentence prediction" in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert (settings["learning_rate"], settings["pair_unit"], settings["nsp_weight"]) == (2e-3, "segment", 1)


def test_the_log_has_the_parts_of_each_update(trained):
    log = read_log(trained)
    assert [entry["step"] for entry in log if "initial_eval_mlm_loss" in entry] == [0]
    steps = [entry["step"] for entry in log if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1))
    names = {*PARTS, "learning_rate", "grad_norm", "epoch", "step"}
    assert all(entry.keys() == names for entry in log if "loss" in entry)


def test_settings_of_the_config_file_hold_unless_typed(pretraining, train_text, tmp_path):
    settings = {"train_file": [str(train_text)], "pair_unit": "sentence", "mask_replace_prob": "1.0", "max_steps": 3}
    settings |= {"random_replace_prob": 0, "masking": "whole_word", "nsp_weight": 0.5, "eval_strategy": "no"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    pretraining(config="run.yaml", max_steps=2, logging_steps=1).checked()
    assert len(read_log(tmp_path / "out", "loss")) == 2
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    made = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    chosen = {"pair_unit": "sentence", "mask_replace_prob": 1, "masking": "whole_word", "nsp_weight": 0.5}
    assert {name: made[name] for name in chosen} == chosen


def test_the_best_model_is_kept(pretraining, tiny_pretrained_bert, prose, validation_text, tmp_path):
    # A few documents learned by heart: the score on others gets better first, then worse.
    text = write_documents(tmp_path / "text.txt", [prose[at : at + 3] for at in range(100, 109, 3)])
    steps = {"max_steps": 30, "eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    settings = CURVE | steps | {"learning_rate": 0.01, "lr_scheduler_type": "constant"}
    settings |= {"train_file": text, "validation_file": validation_text, "per_device_train_batch_size": 8}
    done = pretraining(**settings, load_best_model_at_end=True).checked()
    losses = {entry["step"]: entry["eval_loss"] for entry in read_log(tmp_path / "out", "eval_loss")}
    best = min(losses, key=losses.get)
    assert best < 30
    assert f"the model of checkpoint-{best} is kept" in done.out
    results, plain = read_results(tmp_path / "out"), Plain(tiny_pretrained_bert, validation_text)
    assert results["eval_loss"] == losses[best]
    assert_scores_agree(results, plain.scores(tmp_path / "out"))
