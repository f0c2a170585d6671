"""Data sets of the Hub, and what each split of a run is made of."""

import datasets

from utils.errors import InputError


def load_splits(dataset_name, dataset_config_name):
    """Load a data set of the Hub, or of a folder: dict of split to Dataset. InputError where that fails."""
    try:
        return datasets.load_dataset(dataset_name, dataset_config_name)
    except Exception as error:  # whatever the Hub, a proxy, the file system or a damaged file comes up with
        fault = " ".join(str(error).split())[:200]
        raise InputError(f"--dataset_name {dataset_name}: cannot be loaded: {fault} Check the name and "
                         "--dataset_config_name. Without network, give --train_file with a file of your own, or a "
                         "folder that holds the data set, or bring along a cache from where there is network: "
                         f"{datasets.config.HF_DATASETS_CACHE}") from None


def choose_parts(sources, percent, tasks, load_best_model_at_end):
    """Say what each split of a run is made of: dict of split to (source, part), a part being (which, percent).

    Where there are no validation data, so many percent of the training data are "drawn" for it, and training takes the
    "rest"; else parts are "all".

    Args:
        sources: as find_sources returns. percent: --validation_split_percentage.
        tasks: dict of "train", "validation" and "test" to whether the run does what needs it.

    Raises:
        InputError: something that the run is to do has no data.
    """
    parts = {split: (source, ("all", 0)) for split, source in sources.items()}
    if "validation" not in sources and "train" in sources and percent:
        parts["train"] = (sources["train"], ("rest", percent))
        parts["validation"] = (sources["train"], ("drawn", percent))
    if not tasks["train"]:
        parts.pop("train", None)
    if not (tasks["train"] or tasks["validation"]):
        parts.pop("validation", None)
    for flag, split in (("do_train", "train"), ("do_predict", "test"), ("do_eval", "validation")):
        if tasks[split] and split not in parts and not (tasks["train"] and split == "validation"):
            raise InputError(f"--{flag} has no data: give --{split}_file, or a data set with a split named {split}")
    if not parts:
        raise InputError("there are no data to prepare: give --train_file, --validation_file or --dataset_name")
    if load_best_model_at_end and "validation" not in parts:
        raise InputError("--load_best_model_at_end has nothing to tell the best by: give --validation_file")
    return parts
