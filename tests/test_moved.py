"""Programs that stood in utils/ once are answered with where they are now."""

import pytest
from helpers import ROOT, run_fresh


@pytest.mark.parametrize("words", [["-m", "utils.report", "outputs/mlm"], ["-X", "utf8", "-m", "utils.demo"]])
def test_the_old_name_of_a_program_gives_the_new_one(words):
    done = run_fresh(words, ROOT)
    name = next(word for word in words if word.startswith("utils.")).removeprefix("utils.")
    assert done.status == 2
    assert done.err == f"utils.{name} is now tools.{name}: python -m tools.{name}\n"
