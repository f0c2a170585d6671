"""What a run leaves behind: trackers, results, model and card."""

import html
import json
import os
from pathlib import Path

import huggingface_hub

from utils.checkpoints import write_json
from utils.errors import InputError


def start_trackers(accelerator, project, settings, state):
    """Start the trackers of --report_to; where a run is resumed, go on with its own. settings: dict of all flags."""
    shown = {k: value if isinstance(value, int | float | str) else str(value) for k, value in settings.items()}
    name = settings["run_name"]
    try:
        accelerator.init_trackers(os.environ.get("WANDB_PROJECT", project), shown, {
            "wandb": {"name": name, "id": state["run_id"], "resume": "allow", "dir": settings["output_dir"]},
            "trackio": {"name": name, "resume": "allow" if state["step"] else "never"},
            "tensorboard": {"purge_step": state["step"] + (state["step"] > 0)}})  # hides what stood there from here on
    except Exception as error:  # no account, no network, a server that refuses
        fault = " ".join(str(error).split())[:200]
        raise InputError(f"--report_to {' '.join(settings['report_to'])}: cannot start: {fault}. For wandb, 'wandb "
                         "login' or WANDB_MODE=offline.") from None


def claim_repository(hub_model_id, output_dir):
    """Make the repository that the model is to be pushed to: its full name. Before the training, in case it fails."""
    try:
        return huggingface_hub.create_repo(hub_model_id or Path(output_dir).resolve().name, exist_ok=True).repo_id
    except Exception as error:  # no account, no network, a name that is not allowed
        raise InputError(f"--push_to_hub: cannot start: {' '.join(str(error).split())[:200]}. Log in with 'hf auth "
                         "login', and give --hub_model_id NAME/MODEL.") from None


def score_rows(results):
    """List (name, before, after) of the scores, as text."""
    names = [name for name in results if name.startswith(("eval_", "perplexity", "predict_"))]
    values = [[results.get(f"initial_{name}"), results.get(name)] for name in names]
    return [(name, *("-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
                     for value in pair)) for name, pair in zip(names, values, strict=True)]


def write_model_card(output_dir, base, task, tag, data, results, settings, tables=()):
    """Write README.md: what the model was made of, and its scores before and after.

    Args:
        base: Hub name or folder of the model it began with. task: a sentence that says what was done with it.
        tag: the Hub's name of the task, or None. data: dict of split to (examples, tokens, name of the source).
        settings: dict of all flags. tables: more lines to stand below the scores.
    """
    named = [] if os.path.exists(base) else [f"base_model: {base}"]
    sizes = [f"| {split} | {examples:,} | {tokens:,} | {html.escape(name).replace('|', '&#124;')} |"
             for split, (examples, tokens, name) in data.items()]
    scores = [f"| {' | '.join(row)} |" for row in score_rows(results)]
    chosen = {name: value for name, value in sorted(settings.items())
              if not (value is None or value is False or value == [])}  # a 0 is a setting
    lines = ["---", "library_name: transformers", *([f"pipeline_tag: {tag}"] if tag else []), *named, "---", "",
             f"# {Path(output_dir).name}", "", f"{Path(base).name}, {task}", "",
             "| data | examples | tokens | source |", "| --- | ---: | ---: | --- |", *sizes, "",
             "| score | before | after |", "| --- | ---: | ---: |", *scores, "",
             "Losses are in nats, a mean over what is predicted.", "", *tables, "```yaml",
             *(f"{name}: {json.dumps(value)}" for name, value in chosen.items()), "```", ""]
    Path(output_dir, "README.md").write_text("\n".join(lines), encoding="utf-8")


def save_model(output_dir, model, tokenizer):
    """Leave model and tokenizer in the output folder, file by file, so that a kill leaves no half of one."""
    aside = Path(output_dir, "tmp-model")
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    umask = os.umask(0)
    os.umask(umask)
    for path in aside.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors lets the owner alone read its files
        os.replace(path, Path(output_dir, path.name))
    aside.rmdir()


def write_results(output_dir, results, same_model, trained):
    """Write all_results.json, beside the scores that stand there already if they are of the same model."""
    path = Path(output_dir, "all_results.json")
    older = json.loads(path.read_text(encoding="utf-8")) if path.exists() and same_model else {}
    # What was scored before the training may have been other data than these.
    if not trained and any(name.startswith("eval_") for name in results):
        older = {name: value for name, value in older.items() if not name.startswith("initial_")}
    write_json(path, older | results)


def upload(output_dir, repository):
    """Push what the output folder holds, but for checkpoints, to a repository of the Hub."""
    try:
        print("Uploaded to", huggingface_hub.upload_folder(
            repo_id=repository, folder_path=output_dir, ignore_patterns=["checkpoint-*", "tmp-*", "wandb/*"]))
    except Exception as error:  # network, rights, quota
        raise InputError(f"--push_to_hub: {' '.join(str(error).split())[:200]}. The model is safe in {output_dir}; "
                         f"upload it with: hf upload NAME/MODEL {output_dir}") from None


def show_results(results, note, output_dir, say):
    """Print the scores, before the training and after it, and where things are. note: what started at random."""
    trained, rows = any(name.startswith("initial_") for name in results), score_rows(results)
    width = max([20, *(len(name) + 2 for name, *_ in rows)])
    for name, *values in ([("", "before", "after")] * trained + rows if results else ()):
        say(f"{name:<{width}}" + "".join(f"{value:>16}" for value in values[0 if trained else 1 :]))
    if trained:
        say(f"Before: {note}")
    if results:
        say(f"Results are in {Path(output_dir, 'all_results.json')}"
            + (f", model and log in {output_dir}" if "step" in results else ""))
