"""What a run leaves behind: model and tokenizer, results, a model card, and what trackers and the
Hub are told."""

import html
import json
import os
from pathlib import Path

import huggingface_hub

from utils.errors import blame
from utils.writing import write_json

OURS = "<!-- Written by the run that trained this model. -->"


def start_trackers(accelerator, project, settings, run_id, step):
    """Start the trackers of --report_to; where a run is resumed, go on with its own.

    Args:
        settings: dict of all flags.
        run_id: the same after a resume.
        step: updates done.
    """
    name, folder = settings["run_name"], settings["output_dir"]
    shown = {flag: value if isinstance(value, int | float) else f"{value}" for flag, value
             in settings.items()}
    accelerator.project_configuration.logging_dir = f"{folder}/runs"
    with blame(f"--report_to {' '.join(settings['report_to'])}: cannot start", "For wandb, 'wandb "
               "login' or WANDB_MODE=offline."):
        # Hides what stood there from here on.
        accelerator.init_trackers(os.environ.get("WANDB_PROJECT", project), shown,
                                  {"wandb": {"name": name, "id": run_id, "resume": "allow",
                                             "dir": folder},
                                   "trackio": {"name": name, "resume": "allow" if step
                                               else "never"},
                                   "tensorboard": {"purge_step": step + (step > 0)}})


def claim_repository(hub_model_id, output_dir):
    """Make the repository that the model is to be pushed to: its full name.

    Before the training, in case it fails.
    """
    with blame("--push_to_hub: cannot start", "Log in with 'hf auth login', and give "
               "--hub_model_id NAME/MODEL."):
        return huggingface_hub.create_repo(hub_model_id or Path(output_dir).resolve().name,
                                           exist_ok=True).repo_id


def upload(output_dir, repository):
    """Push what the output folder holds, but for checkpoints, to a repository of the Hub."""
    with blame("--push_to_hub", f"The model is safe in {output_dir}; upload it with: hf upload "
               f"NAME/MODEL {output_dir}"):
        print("Uploaded to",
              huggingface_hub.upload_folder(repo_id=repository, folder_path=output_dir,
                                            ignore_patterns=["checkpoint-*", "eval-*", "tmp-*",
                                                             "wandb/*"]))


def save_model(output_dir, model, tokenizer):
    """Leave model and tokenizer in the output folder, none of their files by half."""
    aside = Path(output_dir, "tmp-model")
    with blame(f"--output_dir {output_dir}: the model cannot be saved", "The last checkpoint is "
               "whole."):
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    umask = os.umask(0)
    os.umask(umask)
    for path in aside.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors lets the owner alone read its files
        os.replace(path, Path(output_dir, path.name))
    aside.rmdir()


def write_results(output_dir, results, same_model):
    """Write all_results.json, beside what stands there already if that is of the same model."""
    path = Path(output_dir, "all_results.json")
    older = json.loads(path.read_text(encoding="utf-8")) if path.exists() and same_model else {}
    write_json(path, older | results)


def score_rows(results):
    """List (name, before, after) of the scores, as text."""
    scores = {name: [results.get(f"initial_{name}", "-"), value] for name, value in results.items()
              if name.startswith(("eval_", "perplexity", "predict_"))}
    return [(name, *(f"{value:,.4f}" if isinstance(value, float) else f"{value}" for value
                     in values)) for name, values in scores.items()]


def write_model_card(output_dir, base, task, *, tag, data, results, settings, tables=()):
    """Write README.md: what the model was made of, and its scores.

    MODEL_CARD.md beside a README.md of the user's.

    Args:
        base: Hub name or folder of the model it began with.
        task: what was done with it, and what of it started at random, in words.
        tag: the Hub's name of the task, or None.
        data: dict of split to what it is, in words.
        settings: dict of all flags.
        tables: more lines to stand below the scores.
    """
    path = Path(output_dir, "README.md")
    if path.exists() and OURS not in path.read_text(encoding="utf-8", errors="replace"):
        path = path.with_name("MODEL_CARD.md")
    head = huggingface_hub.ModelCardData(library_name="transformers", pipeline_tag=tag,
                                         base_model=None if os.path.exists(base) else base)
    rows = [("score", "before", "after"), ("---", "---:", "---:"), *score_rows(results)]
    chosen = {flag: value for flag, value in sorted(settings.items()) if value not in (None, [])
              and value is not False}
    lines = ["---", head.to_yaml(), "---", "", OURS, "", f"# {Path(output_dir).resolve().name}", "",
             f"{Path(base).name}, {task}.", ""]
    lines += [f"- {split}: {html.escape(words)}" for split, words in data.items()]
    lines += ["", *(f"| {' | '.join(row)} |" for row in rows), "", "Losses are in nats, a mean "
              "over what is predicted.", "", *tables, "```yaml"]
    lines += [f"{flag}: {json.dumps(value)}" for flag, value in chosen.items()]
    path.write_text("\n".join([*lines, "```", ""]), encoding="utf-8")


def show_results(results, note, output_dir, say):
    """Print the scores, before the training and after it, and where they are.

    Args:
        note: what started at random.
    """
    if results:
        for name, before, after in [("", "before", "after"), *score_rows(results)]:
            say(f"{name:<36}{before:>16}{after:>16}")
        if any(name.startswith("initial_") for name in results):
            say(f"Before: {note}")
        say(f"Results are in {Path(output_dir, 'all_results.json')}")
