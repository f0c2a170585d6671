"""Data sets of the Hub, and what each split of a run is made of."""

from pathlib import Path

import datasets

from utils.errors import InputError, blame


def load_splits(dataset_name, dataset_config_name):
    """Load a data set of the Hub, of a folder, or of save_to_disk: dict of split to Dataset.

    InputError where that fails.
    """
    with blame(f"--dataset_name {dataset_name}: cannot be loaded", "Check the name and "
               "--dataset_config_name. Without network, give --train_file with a file of your "
               "own, or a folder that holds the data set, or bring along a cache from where there "
               f"is network: {datasets.config.HF_DATASETS_CACHE}"):
        if Path(dataset_name, "dataset_dict.json").exists():
            return datasets.load_from_disk(dataset_name)
        if Path(dataset_name, "state.json").exists():  # of one split, as save_to_disk writes it
            return {"train": datasets.load_from_disk(dataset_name)}
        return datasets.load_dataset(dataset_name, dataset_config_name)


def choose_parts(sources, args, splits=("train", "validation", "test")):
    """Say what each split of a run is made of: dict of split to (source, part).

    A part is (which, percent). Where there are no validation data, so many percent of the training
    data are "drawn" for it, and training takes the "rest"; else parts are "all".

    Args:
        sources: dict of split to where its data come from.
        args: Namespace of the flags.
        splits: those that the script takes from sources.

    Raises:
        InputError: something that the run is to do has no data.
    """
    parts = {split: (source, ("all", 0)) for split, source in sources.items()}
    percent = args.validation_split_percentage
    if "train" in sources and "validation" not in sources and percent:
        parts["train"] = sources["train"], ("rest", percent)
        parts["validation"] = sources["train"], ("drawn", percent)
    evaluates = args.do_eval and not args.do_train  # a training run can go without
    for flag, split, is_needed in (("do_train", "train", args.do_train),
                                   ("do_eval", "validation", evaluates),
                                   ("do_predict", "test", args.do_predict)):
        if is_needed and split in splits and split not in parts:
            raise InputError(f"--{flag} has no data: give --{split}_file, or a data set with a "
                             f"split named {split}")
    if not args.do_train:
        parts.pop("train", None)
        if not args.do_eval:
            parts.pop("validation", None)
    if not parts:
        raise InputError("there are no data to prepare: give --train_file, --validation_file or "
                         "--dataset_name")
    if args.load_best_model_at_end and "validation" not in parts:
        raise InputError("--load_best_model_at_end has nothing to tell the best by: give "
                         "--validation_file")
    return parts
