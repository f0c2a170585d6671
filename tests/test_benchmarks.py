"""The benchmarks run to their end, and print figures that fit each other. How fast anything is, no test says."""

import json
import re
import statistics
import sys

import pytest
from helpers import ROOT, run_fresh

from benchmarks import harness, nsp_books


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_bert):
    """The tiny model, made long enough for windows of 384 tokens."""
    from transformers import AutoTokenizer, BertConfig, BertForPreTraining

    folder = tmp_path_factory.mktemp("longer")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_max_length=384)
    tokenizer.save_pretrained(folder)
    BertForPreTraining(BertConfig.from_pretrained(tiny_bert, max_position_embeddings=384)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory, prose):
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.txt").write_text("\n".join(prose[:300]) + "\n", encoding="utf-8")
    return folder


def table(name, *flags, **how):
    """Run a benchmark with one pair: dict of the first column to the others, as text."""
    words = ["-m", f"benchmarks.{name}", "--pairs", 1, *flags]
    done = run_fresh(words, ROOT, timeout=500, **how).checked()
    rows = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in done.out.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.mark.slow
def test_prepare_compares_the_same_text(model, text):
    found = table("prepare", "--model", model, "--data", text, "--megabytes", 0.5)
    ours, stock, ratio = map(float, found["whole command, s"])
    assert ours > 0 and ratio == pytest.approx(stock / ours, rel=0.02)
    seconds, speed = float(found["preparation, s"][0]), float(found["MB of text a second"][0])
    assert 0 < seconds < ours and speed == pytest.approx(0.5 / seconds, rel=0.1)
    if sys.platform == "linux":
        assert 0 < float(found["peak RssAnon, MB"][0]) < float(found["peak RSS, MB"][0])


@pytest.mark.slow
def test_train_step_counts_less_work_for_the_masked_positions(model, text):
    found = table("train_step", "--model", model, "--data", text, "--updates", 3)
    assert {len(row) for row in found.values()} == {len(found["one update, s"])}
    work = list(map(float, found["GFLOP an update"]))
    assert 0 < work[0] < work[1] and len(set(work[1:])) == 1
    assert set(found["share of padding"]) == {"0.0%"}  # both train on whole blocks
    assert found["times as long as run_mlm.py"][0] == "1.00"


@pytest.mark.slow
def test_time_to_perplexity_reaches_the_loss_of_the_stock_way(model, text):
    found = table("time_to_perplexity", "--model", model, "--data", text, "--updates", 3, "--learning_rate", "1e-3")
    (loss,) = (row for name, row in found.items() if name.startswith("eval_loss"))
    assert float(loss[0]) <= float(loss[1])
    assert int(found["updates"][0]) >= int(found["updates"][1]) == 3


@pytest.mark.slow
def test_pairs_says_what_share_of_an_update_they_are(model, text):
    found = table("pairs", "--model", model, "--data", text)
    assert all(float(value) > 0 for value in found["a batch, ms"])
    assert all(re.fullmatch(r"\d+\.\d%", value) for value in found["share of an update"])


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--pretraining"]])
def test_nsp_books_parts_the_pairs_by_book(more, model, tmp_path, prose):
    for name, start in (("a", 0), ("b", 240)):
        chapters = ["\n".join(prose[start + 12 * n : start + 12 * (n + 1)]) for n in range(20)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(chapters) + "\n", encoding="utf-8")
    found = table("nsp_books", "--model", model, "--data", tmp_path, "--books", 2, "--num_train_epochs", 0.1, *more)
    numbers = {name: int(row[0].replace(",", "")) for name, row in found.items()}
    everything = numbers.pop("all")
    assert sum(numbers.values()) == everything > 20 and min(numbers.values()) > 0


@pytest.mark.slow
def test_ner_compares_time_padding_and_f1(model, tmp_path):
    short, long = "Ada\tB-PER\nslept\tO\n\n", "In\tO\nLondon\tB-LOC\n" + "it\tO\nrained\tO\n" * 9 + "\n"
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.conll").write_text((short + long) * 80, encoding="utf-8")
    found = table("ner", "--data", tmp_path, "--model", model, "--num_train_epochs", 1)
    padding = [float(value.rstrip("%")) for value in found["padding among the tokens"][:2]]
    assert padding[0] < 15 < padding[1]  # of lengths that are half 4 and half 22
    assert all(float(found[f"f1 on {part}"][n]) >= 0 for part in ("dev", "test") for n in (0, 1))
    assert float(found["training, s"][0]) > 0 and found["training, s"][2].endswith("%")


@pytest.mark.slow
def test_qa_compares_speed_padding_and_searches(model, tmp_path):
    paragraphs = [
        {"paragraphs": [{"context": f"Ada met Babbage in London on day {n}.", "qas": [
            {"id": n, "question": "Where?", "answers": [{"text": "London", "answer_start": 19}]}]}]}
        for n in range(24)]  # fmt: skip
    for name in ("train", "dev"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": paragraphs}), encoding="utf-8")
    found = table("qa", "--data", tmp_path, "--model", model, "--questions", 12, "--windows", 200)
    padding = [float(value.rstrip("%")) for value in found["padding among the tokens"][:2]]
    assert padding[0] < 10 and padding[1] > 80
    assert float(found["questions a second"][0]) > 0 and float(found["seconds"][0]) > 0


def test_the_chance_of_a_coin_by_hand():
    assert nsp_books.chance_of(3, 3) == pytest.approx(1 / 8)
    assert nsp_books.chance_of(2, 3) == pytest.approx(4 / 8)
    assert nsp_books.chance_of(0, 3) == pytest.approx(1)


def test_text_is_written_in_another_order_each_time_round(tmp_path):
    paragraphs = ["one", "two two", "three three three"]
    harness.write_text(tmp_path / "a.txt", paragraphs, 30 * 30 / 1e6)
    lines = (tmp_path / "a.txt").read_text(encoding="utf-8").splitlines()
    rounds = [lines[n : n + 3] for n in range(0, 81, 3)]
    assert all(sorted(some) == sorted(paragraphs) for some in rounds)
    assert len({tuple(some) for some in rounds}) > 3


def test_ratios_are_of_pairs():
    slower, faster = [10.0, 40.0, 9.0], [5.0, 10.0, 3.0]
    assert harness.median_ratio(slower, faster) == 3.0
    assert statistics.median(slower) / statistics.median(faster) == 2.0  # what it is not
