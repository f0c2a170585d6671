"""The report: the curves drawn are the numbers logged, each on its panel, and bad input ends with one message."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.report import count_confusion, draw, draw_confusion, find_panels, main, read_log, table

LOG = [
    {"step": 0, "epoch": 0, "initial_eval_loss": 10.4, "initial_perplexity": 33000.5, "initial_eval_accuracy": 0.0},
    {"step": 10, "epoch": 0.5, "loss": 9.8, "learning_rate": 4.9e-05, "grad_norm": 1.2},
    {"step": 20, "epoch": 1.0, "loss": 5.1, "learning_rate": 2e-05, "grad_norm": 1.1},
    {"step": 20, "epoch": 1.0, "eval_loss": 4.5, "perplexity": 90.0, "eval_accuracy": 0.25, "eval_runtime": 3.2},
]


@pytest.fixture
def make_run(tmp_path):
    def make(name, log=LOG, results=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
        if results is not None:
            (folder / "all_results.json").write_text(json.dumps(results), encoding="utf-8")
        return folder

    return make


def curves(figure):
    """What a figure shows, as {title of the panel: {"run/metric": [(step, value), ...]}}."""
    return {
        axes.get_title(loc="left"): {line.get_gid(): [*map(tuple, line.get_xydata())] for line in axes.get_lines()}
        for axes in figure.axes
    }


def assert_refused(capsys, arguments, *parts):
    """The command ends with status 2 and one message on stderr that has all the parts."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    for part in parts:
        assert str(part) in printed.err


def test_the_curves_are_the_numbers_logged(make_run):
    entries, note = read_log(make_run("mlm"))
    assert note == ""
    assert curves(draw({"mlm": entries})) == {
        "Loss (nats)": {"mlm/loss": [(10, 9.8), (20, 5.1)], "mlm/eval_loss": [(0, 10.4), (20, 4.5)]},
        "Perplexity (log scale)": {"mlm/perplexity": [(0, 33000.5), (20, 90.0)]},
        "Accuracy": {"mlm/eval_accuracy": [(0, 0.0), (20, 0.25)]},
    }


def test_only_perplexity_has_a_logarithmic_axis(make_run):
    figure = draw({"mlm": read_log(make_run("mlm"))[0]})
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]


def test_several_runs_share_the_panels_and_are_told_apart(make_run):
    other = [{"step": 5, "loss": 8.0}, {"step": 30, "eval_loss": 7.0, "eval_f1": 88.1}]
    figure = draw({"mlm": read_log(make_run("mlm"))[0], "other": read_log(make_run("other", other))[0]})
    shown = curves(figure)
    assert shown["Loss (nats)"]["other/eval_loss"] == [(30, 7.0)]
    assert shown["Loss (nats)"]["mlm/eval_loss"] == [(0, 10.4), (20, 4.5)]
    assert shown["F1"]["other/eval_f1"] == [(30, 88.1)]
    lines = {line.get_gid(): line for axes in figure.axes for line in axes.get_lines()}
    assert lines["mlm/eval_loss"].get_color() != lines["other/eval_loss"].get_color()
    assert lines["mlm/eval_loss"].get_color() == lines["mlm/eval_accuracy"].get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mlm", "other"]


def test_last_values_are_written_beside_the_panels_without_overlap(make_run):
    near = [{"step": 1, "eval_f1": 80.0}, {"step": 9, "eval_f1": 88.1}]
    nearer = [{"step": 1, "eval_f1": 70.0}, {"step": 9, "eval_f1": 88.2}]
    figure = draw({"a": near, "b": nearer})
    figure.canvas.draw()
    low, high = (text.get_window_extent() for text in figure.axes[0].texts)
    assert [text.get_text() for text in figure.axes[0].texts] == ["88.1", "88.2"]
    assert low.y1 < high.y1 and low.y0 < high.y0 and not low.overlaps(high)


def test_panels_hold_what_can_be_compared():
    names = ["loss", "mlm_loss", "eval_mlm_loss", "eval_nsp_loss", "train_loss", "learning_rate", "grad_norm", "epoch",
             "eval_nsp_accuracy", "perplexity", "eval_HasAns_f1", "eval_HasAns_total", "eval_best_f1_thresh",
             "eval_samples_per_second", "eval_model_preparation_time", "train_runtime", "total_flos"]
    entry = {"step": 1, **dict.fromkeys(names, 1.0), "eval_note": "text", "eval_flag": True}
    assert find_panels({"run": [entry]}) == {
        "Loss (nats)": ["loss", "mlm_loss", "eval_mlm_loss", "eval_nsp_loss"],
        "Perplexity (log scale)": ["perplexity"],
        "NSP accuracy": ["eval_nsp_accuracy"],
        "HasAns F1": ["eval_HasAns_f1"],
    }


def test_values_that_are_not_finite_are_gaps():
    entries = [{"step": 1, "eval_loss": math.inf, "perplexity": math.inf}, {"step": 2, "eval_loss": 3.0},
               {"step": 3, "eval_loss": math.nan, "loss": math.nan}]
    figure = draw({"run": entries})
    figure.canvas.draw()
    values = figure.axes[0].get_lines()[0].get_ydata()
    np.testing.assert_array_equal(values, [math.nan, 3.0, math.nan])
    assert [text.get_text() for text in figure.axes[0].texts] == ["3.00"]


def test_the_table_prefers_final_scores_and_leaves_out_what_is_no_score():
    runs = {"long_name": [{"step": 1, "eval_f1": 80.0, "loss": 1.5}], "b": [{"step": 1, "perplexity": 33000.9}]}
    results = {"long_name": {"eval_f1": 81.23, "train_samples_per_second": 9.0, "initial_eval_f1": 1.0}, "b": {}}
    assert table(runs, results).splitlines() == [
        "            long_name       b",
        "eval_f1          81.2       -",
        "loss             1.50       -",
        "perplexity          -  33,001",
    ]


def test_the_picture_has_the_stated_size_and_is_not_blank(make_run, capsys):
    folder = make_run("mlm", results={"perplexity": 88.0})
    assert main([str(folder)]) == 0
    path = folder / "curves.png"
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (1755, 525)
        pixels = np.asarray(image.convert("RGB"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert 0.01 < (pixels != 255).any(axis=-1).mean() < 0.5
    assert path.stat().st_size < 150_000
    out = capsys.readouterr().out
    assert out.endswith(f"{path}\n") and re.search(r"\nperplexity +88\.0\n", out)


def test_several_runs_go_to_the_current_folder_named_by_folder_or_by_path_where_those_clash(
    make_run, monkeypatch, tmp_path, capsys
):
    make_run("a/out"), make_run("b/out"), make_run("c")
    monkeypatch.chdir(tmp_path)
    assert main(["a/out", "c"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["out", "c"]
    assert (tmp_path / "curves.png").is_file()
    assert main(["a/out", "b/out", "--output", "new/folder/picture.png"]) == 0
    assert (tmp_path / "new" / "folder" / "picture.png").is_file()
    assert len(set(capsys.readouterr().out.split()[:2])) == 2


def test_a_half_written_last_line_is_left_out_with_a_note(make_run, capsys):
    folder = make_run("mlm")
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 30, "lo')
    assert len(read_log(folder)[0]) == len(LOG)
    assert main([str(folder)]) == 0
    assert f"{folder / 'log.jsonl'}, line 5: left out" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b'{"step": 3, "lo', b"[1, 2]", b'{"loss": 1.0}', b'{"step": "3"}', b"\xff\xfe"])
def test_a_damaged_line_is_named(make_run, capsys, line):
    folder = make_run("mlm")
    path = folder / "log.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:], b""]))
    assert_refused(capsys, [folder], f"{path}, line 3: expected a JSON object")


def test_a_missing_folder_is_refused(tmp_path, capsys):
    assert_refused(capsys, [tmp_path / "none"], tmp_path / "none", "no such folder")


def test_a_folder_without_a_log_is_refused(tmp_path, capsys):
    assert_refused(capsys, [tmp_path], tmp_path, "no log.jsonl")


def test_one_bad_run_of_several_is_named(make_run, tmp_path, capsys):
    assert_refused(capsys, [make_run("good"), tmp_path / "bad"], tmp_path / "bad")


@pytest.mark.parametrize(("log", "message"), [([], "nothing is logged"), ([{"step": 1, "epoch": 0.5}], "no loss")])
def test_an_empty_log_is_refused(make_run, capsys, log, message):
    assert_refused(capsys, [make_run("mlm", log)], message)


@pytest.mark.parametrize("results", ["{", "[1]", "3"])
def test_damaged_results_are_refused(make_run, capsys, results):
    folder = make_run("mlm")
    (folder / "all_results.json").write_text(results, encoding="utf-8")
    assert_refused(capsys, [folder], folder / "all_results.json")


def test_another_kind_of_picture_is_refused(make_run, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(make_run("mlm")), "--output", "curves.svg"])
    assert end.value.code == 2 and "ends in .png" in capsys.readouterr().err


def test_drawing_leaves_pyplot_and_the_settings_of_matplotlib_alone():
    code = """
import sys, matplotlib
names = [name for name in matplotlib.rcParams if name != "backend"]  # to read that one would load pyplot
before = [matplotlib.rcParams[name] for name in names]
from tools.report import draw
draw({"run": [{"step": 1, "loss": 2.0}]})
assert "matplotlib.pyplot" not in sys.modules
assert [matplotlib.rcParams[name] for name in names] == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


# ---------------------------------------------------------------- which types were taken for which

PREDICTIONS = """-DOCSTART-\tO\tO

Ada\tB-PER\tB-PER
Lovelace\tI-PER\tO
left\tO\tO
Oslo\tB-LOC\tB-PER

He\tO\tO
"""


def test_words_are_counted_by_true_and_predicted_type(tmp_path):
    path = tmp_path / "predictions.conll"
    path.write_text(PREDICTIONS, encoding="utf-8")
    assert count_confusion(path) == {("PER", "PER"): 1, ("PER", "O"): 1, ("O", "O"): 2, ("LOC", "PER"): 1}


def test_without_predictions_or_without_tags_nothing_is_counted(tmp_path):
    path = tmp_path / "predictions.conll"
    assert not count_confusion(path)
    path.write_text("Ada\tB-PER\nleft\tO\n", encoding="utf-8")
    assert not count_confusion(path)


def test_the_picture_shows_each_count_in_its_place_and_shares_of_the_true_type():
    (axes, _) = draw_confusion({("PER", "PER"): 3, ("PER", "O"): 1, ("O", "O"): 1200, ("LOC", "PER"): 1} | {
        pair: 0 for pair in (("PER", "LOC"), ("O", "PER"), ("O", "LOC"), ("LOC", "LOC"), ("LOC", "O"))
    }).axes  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["LOC", "PER", "O"]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (1, 1): "3", (2, 1): "1", (2, 2): "1,200", (1, 0): "1"}  # fmt: skip
    assert axes.get_images()[0].get_array().tolist() == [[0, 1, 0], [0, 0.75, 0.25], [0, 0, 1]]


def test_the_command_draws_both_pictures_and_names_them(make_run, capsys):
    folder = make_run("ner")
    (folder / "predictions.conll").write_text(PREDICTIONS, encoding="utf-8")
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    for name in ("curves.png", "confusion.png"):
        assert str(folder / name) in printed and (folder / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_a_damaged_line_of_predictions_is_named(make_run, capsys):
    folder = make_run("ner")
    (folder / "predictions.conll").write_text(PREDICTIONS + "torn\tO\n", encoding="utf-8")
    assert_refused(capsys, [folder], "predictions.conll, line 9", "expected 3 columns, found 2", "torn")
