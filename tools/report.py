"""Draw the curves of one or several runs from the log.jsonl in their output folders, and list their last scores.

    python -m tools.report outputs/mlm                            writes outputs/mlm/curves.png
    python -m tools.report outputs/mlm outputs/mlm-2              writes curves.png, with both runs in each panel
    python -m tools.report outputs/mlm --output docs/mlm.png
    python -m tools.report outputs/ner                            writes confusion.png, too: which types of words of the
                                                                  test data were taken for which

All losses share a panel, in nats; perplexity, on a logarithmic axis, and every other score of an evaluation get a panel
each. Which scores there are is read from the log, so this serves all scripts.
"""

import argparse
import itertools
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow, too pale for a line on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vPX"
DASHES = ["-", "--", ":", "-."]
GREY = "#444444"
STYLE = {
    "font.size": 12, "axes.titlesize": 13, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelcolor": GREY, "xtick.labelcolor": GREY, "ytick.labelcolor": GREY, "text.color": "#222222",
    "axes.edgecolor": "#999999", "xtick.color": "#999999", "ytick.color": "#999999",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#E6E6E6", "legend.frameon": False, "legend.labelspacing": 0.3, "figure.titlesize": 13,
}  # fmt: skip
DPI = 150
NO_SCORE = re.compile(r"_(per_second|runtime|time|samples|steps|total|thresh)$")  # times, counts and thresholds


def read_log(folder):
    """Read the log of a run.

    Args:
        folder: output folder of the run, a pathlib.Path.

    Returns:
        (entries, note): a dict for each logged step, where "initial_" is cut off the names of scores; and a remark for
        the user about a half-written last line, "" where there is none.

    Raises:
        ValueError: no such folder, no log in it, nothing in the log, or a damaged line, which is named.
    """
    path = folder / "log.jsonl"
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder. Give the --output_dir of a run.")
    if not path.is_file():
        raise ValueError(f"{folder}: no log.jsonl in it. Give the --output_dir of a run that has begun to train.")
    entries, note = [], ""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not is_number(entry["step"]):
                raise TypeError
            entries.append({name.removeprefix("initial_"): value for name, value in entry.items()})
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # it has a line break at its end, so it was not cut off
                raise ValueError(
                    f"{path}, line {number}: expected a JSON object with a number as its step, found "
                    f"{line[:40].decode('utf-8', 'replace')!r}. Repair the line or delete it."
                ) from None
            note = f"{path}, line {number}: left out, for the run ended while it wrote this line."
    if not entries:
        raise ValueError(f"{path}: nothing is logged in it yet. Come back when the run has logged its first loss.")
    return entries, note


def read_results(folder):
    """Return the final scores of a run by name, none where it has not come to its end.

    Raises:
        ValueError: all_results.json is not a JSON object.
    """
    path = folder / "all_results.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise ValueError(f"{path}: expected one JSON object of scores. Delete the file to do without it.") from None


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_loss(name):
    return name.endswith("loss") and not name.startswith(("train_", "initial_"))  # train_loss: the mean of a whole run


def is_training(name):
    return is_loss(name) and not name.startswith(("eval_", "predict_"))


def is_score(name):
    scored = name == "perplexity" or name.startswith(("eval_", "predict_"))
    return scored and not is_loss(name) and not NO_SCORE.search(name)


def pretty(name):
    """Name a score for readers: "eval_nsp_accuracy" is "NSP accuracy", "eval_loss" is "Loss"."""
    words = name.removeprefix("eval_").split("_")
    words = [word.upper() if word in ("mlm", "nsp", "f1") else word for word in words]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def role(name):
    """Name a loss among losses: "loss" is "training", "eval_nsp_loss" is "evaluation NSP"."""
    part = name.removeprefix("eval_").removesuffix("loss").strip("_").upper()
    return f"{'training' if is_training(name) else 'evaluation'} {part}".strip()


def short(value):
    """Write a score with three digits: 0.540, 2.31, 88.4, 33,000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def curve(entries, name):
    """Return (steps, values) of a metric, two lists of equal length; a value that is not finite is a gap, NaN."""
    points = [(entry["step"], entry[name]) for entry in entries if is_number(entry.get(name))]
    return [step for step, _ in points], [value if math.isfinite(value) else math.nan for _, value in points]


def find_panels(runs):
    """Return the panels to draw, as {title: names of metrics}: the losses, perplexity, then each other score."""
    names = {name: None for entries in runs.values() for entry in entries for name in entry if is_number(entry[name])}
    panels = {"Loss (nats)": [*filter(is_loss, names)], "Perplexity (log scale)": [*({"perplexity"} & set(names))]}
    panels |= {pretty(name): [name] for name in filter(is_score, names) if name != "perplexity"}
    return {title: metrics for title, metrics in panels.items() if metrics}


def look_of_run(i):
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def look_of_metric(name, names):
    """Return how the lines of one metric differ from those of the others on a panel: training losses are thin."""
    alike = [other for other in names if is_training(other) == is_training(name)]
    dashes = DASHES[alike.index(name) % len(DASHES)]
    if is_training(name):
        return {"linestyle": dashes, "linewidth": 1.2, "alpha": 0.65, "marker": ""}
    return {"linestyle": dashes, "linewidth": 2, "markersize": 6.5, "markeredgecolor": "white"}


def draw_panel(axes, runs, names):
    """Draw the curves of some metrics, with a key where there are several.

    Returns:
        list of (line, its last finite value), for the curves whose last value is to be written beside the panel.
    """
    ends = []
    for i, (run, entries) in enumerate(runs.items()):
        for name in names:
            steps, values = curve(entries, name)
            (line,) = axes.plot(steps, values, gid=f"{run}/{name}", **look_of_run(i) | look_of_metric(name, names))
            finite = list(filter(math.isfinite, values))
            if finite and (not is_training(name) or all(map(is_training, names))):
                ends.append((line, finite[-1]))
    if len(names) > 1:
        look = look_of_run(0) if len(runs) == 1 else {"color": GREY}
        axes.legend(handles=[Line2D([], [], label=role(name), **look | look_of_metric(name, names)) for name in names])
    return ends


def use_log_scale(axes):
    """Put the y axis on a logarithmic scale, with plain numbers at its ticks."""
    values = [value for line in axes.get_lines() for value in line.get_ydata() if value > 0]  # NaN is not
    axes.set_yscale("log")
    if values and max(values) > 10 * min(values):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=9))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def label_ends(axes, ends):
    """Write the last value of each line beside the panel, in its colour; where lines end at near heights, spread them.

    Args:
        axes: a panel whose height is final.
        ends: list of (line, its last finite value).
    """
    gap = 1.15 * STYLE["font.size"]  # points from one text to the next
    wanted = [axes.transData.transform((0, value))[1] * 72 / axes.figure.dpi for _, value in ends]  # heights in points
    placed = list(wanted)
    order = sorted(range(len(ends)), key=wanted.__getitem__)
    for _ in range(100):
        for low, high in itertools.pairwise(order):
            push = max(0, gap - (placed[high] - placed[low])) / 2
            placed[low], placed[high] = placed[low] - push, placed[high] + push
    for (line, value), before, after in zip(ends, wanted, placed, strict=True):
        axes.annotate(short(value), (1, value), (4, after - before), xycoords=("axes fraction", "data"),
                      textcoords="offset points", color=line.get_color(), va="center_baseline", annotation_clip=False)


def draw(runs):
    """Draw all curves of some runs.

    Args:
        runs: log entries, as read_log returns them, by name of the run.

    Returns:
        a matplotlib Figure; the gid of each line is "run/metric".

    Raises:
        ValueError: the logs hold neither a loss nor a score.
    """
    panels = find_panels(runs)
    if not panels:
        raise ValueError(f"{', '.join(runs)}: no loss and no score is logged, so there is nothing to draw.")
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    last_step = max(entry["step"] for entries in runs.values() for entry in entries) or 1
    with rc_context(STYLE):
        figure = Figure(figsize=(max(3.9 * columns, 5), 3.1 * rows + 0.4), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(wspace=0.06, hspace=0.04)
        all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in all_axes[len(panels) :]:
            axes.remove()
        ends = {}
        for axes, (title, names) in zip(all_axes, panels.items(), strict=False):
            ends[axes] = draw_panel(axes, runs, names)
            axes.set(title=title, xlabel="update", xlim=(-0.03 * last_step, 1.03 * last_step))
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            if names == ["perplexity"]:
                use_log_scale(axes)
        if len(runs) == 1:
            figure.suptitle(*runs, x=0.01, ha="left")
        else:
            handles = [Line2D([], [], label=run, linewidth=2, **look_of_run(i)) for i, run in enumerate(runs)]
            figure.legend(handles=handles, loc="outside upper left", ncols=4)
        figure.draw_without_rendering()  # settles the layout
        for axes, its_ends in ends.items():
            label_ends(axes, its_ends)
    return figure


def count_confusion(path):
    """Count which types of words were taken for which in a predictions.conll: word, tag, prediction.

    Returns:
        dict of (true type, predicted type) to words, by name, O last; empty where there is no such file, or no tags.

    Raises:
        ValueError: a line has another number of columns than the first; it is named.
    """
    counts, width = Counter(), 0
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        columns = line.split("\t")
        width = width or len(columns)
        if line and len(columns) != width:
            raise ValueError(f"{path}, line {number}: expected {width} columns, found {len(columns)} in {line[:40]!r}. "
                             "Delete the file to do without its picture.")
        if len(columns) == 3 and columns[0] != "-DOCSTART-":
            counts[tuple(tag[2:] or tag for tag in columns[1:])] += 1
    return counts


def draw_confusion(counts):
    """Draw which types of words were taken for which, a share of each row and counts: a matplotlib Figure."""
    names = sorted({name for pair in counts for name in pair}, key=lambda name: (name == "O", name))
    side = max(4.0, 0.75 * len(names) + 2)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(side + 1, side), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        totals = {true: sum(counts[true, name] for name in names) for true in names}
        shares = [[counts[true, name] / max(totals[true], 1) for name in names] for true in names]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="true", title="Words of the test data by type")
        for (row, true), (column, name) in itertools.product(enumerate(names), repeat=2):
            if counts[true, name]:
                colour = "white" if shares[row][column] > 0.5 else "#222222"
                axes.text(column, row, f"{counts[true, name]:,}", ha="center", va="center", fontsize=9, color=colour)
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true type's words")
    return figure


def save(figure, path):
    """Write a figure as PNG. A palette is all that curves need, and makes a third of the file."""
    figure.canvas.draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombuffer("RGBA", figure.canvas.get_width_height(physical=True), figure.canvas.buffer_rgba())
    image = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    image.save(path, "PNG", optimize=True, dpi=(DPI, DPI))


def table(runs, results):
    """Lay out the last scores as text, a row for each metric and a column for each run.

    Args:
        runs: log entries by name of the run.
        results: final scores by name of the run; they count before the last ones logged.
    """
    last = {}
    for run, entries in runs.items():
        for entry in [*entries, results[run]]:
            for name, value in entry.items():
                if (is_loss(name) or is_score(name)) and is_number(value):
                    last.setdefault(name, {})[run] = short(value)
    rows = [["", *runs], *([name, *(scores.get(run, "-") for run in runs)] for name, scores in last.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description="Draw the curves of one or several runs, and list their last scores.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", nargs="+", type=Path, help="output folder of a run, with its log.jsonl")
    parser.add_argument("--output", type=Path, metavar="FILE.png",
                        help="picture to write (default: curves.png, in the folder of the run if it is the only one)")
    args = parser.parse_args(argv)
    path = args.output or (args.folder[0] if len(args.folder) == 1 else Path()) / "curves.png"
    if path.suffix.lower() != ".png":
        parser.error(f"--output is {path}; pictures are written as PNG, so give a name that ends in .png")
    names = [folder.resolve().name for folder in args.folder]
    if len(set(names)) < len(names):
        names = map(str, args.folder)
    runs, results = {}, {}
    try:
        for name, folder in zip(names, args.folder, strict=True):
            runs[name], note = read_log(folder)
            results[name] = read_results(folder)
            if note:
                print(note, file=sys.stderr)
        save(draw(runs), path)
        pictures = [path]
        for folder in args.folder:
            if counts := count_confusion(folder / "predictions.conll"):
                pictures.append(folder / "confusion.png")
                save(draw_confusion(counts), pictures[-1])
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(runs, results), "", *pictures, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
