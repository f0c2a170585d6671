"""The copy checker: each way in which a section can be broken is named with file and line, and --fix repairs sections.

Each test writes a small repository: the modules below in utils/, and a script that holds them as sections.
"""

from pathlib import Path

import pytest

from tools.check_copies import MARKER, main

TEXT = '''\
"""Loud and quiet text.

This line stands in the module alone.
"""

import numpy as np
from pathlib import Path

LIMIT = 3


def shout(text):
    """Say it loudly."""
    # Once is enough.
    return text.upper()[:LIMIT] + "!"


class Counter:
    def add(self, values):
        return np.sum(values), Path()
        # the end
'''

TWICE = '''\
"""Twice."""

from utils.text import shout


def twice(text):
    return shout(text) * 2
'''

TEXT_SECTION = MARKER.replace("NAME", "text") + "\n# Loud and quiet text.\n" + TEXT[TEXT.index("\nLIMIT") :]
TWICE_SECTION = MARKER.replace("NAME", "twice") + "\n# Twice.\n" + TWICE[TWICE.index("\n\ndef") + 1 :]
OWN = "# ==== run_x.py ====\n"

SCRIPT = f'''\
"""A script."""

import numpy as np
from pathlib import Path


def main():
    print(twice("a"), Counter())


{TEXT_SECTION}

{TWICE_SECTION}

{OWN}

if __name__ == "__main__":
    main()
'''


@pytest.fixture
def repo(tmp_path, capsys):
    """A function that writes a repository, runs the checker and gives (exit status, lines printed but for the last)."""

    def run(script=SCRIPT, *arguments, text=TEXT, twice=TWICE, **others):
        files = {"utils/__init__.py": "", "utils/text.py": text, "utils/twice.py": twice, "run_x.py": script}
        files |= {name.replace("__", "/") + ".py": content for name, content in others.items()}
        (tmp_path / "utils").mkdir(exist_ok=True)
        for name, content in files.items():
            if content is not None:
                (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        status = main(list(arguments), root=tmp_path)
        return status, capsys.readouterr().out.splitlines()[:-1]

    run.root = tmp_path
    return run


def changed(old, new, text=SCRIPT):
    """The script, or another text, with the first `old` replaced."""
    assert old in text
    return text.replace(old, new, 1)


def line_of(part, script=SCRIPT):
    """The number of the line where a part of a script begins."""
    return script[: script.index(part)].count("\n") + 1


def fault(part, words, script=SCRIPT):
    """What is returned for one fault on the line where a part of a script begins."""
    return 1, [f"run_x.py:{line_of(part, script)}: {words}"]


def test_this_repository_is_clean(capsys):
    assert main([]) == 0, capsys.readouterr().out


def test_whole_sections_pass(repo, capsys):
    assert repo() == (0, [])  # LIMIT is used by its own section alone, shout by another, add by none
    assert main([], root=repo.root) == 0
    assert capsys.readouterr().out == "2 modules, 1 scripts: no faults\n"


def test_crlf_and_a_byte_order_mark_make_no_difference(repo):
    assert repo(("\ufeff" + SCRIPT).replace("\n", "\r\n")) == (0, [])
    assert repo(text=TEXT.replace("\n", "\r\n")) == (0, [])


def test_imports_that_follow_other_code_of_a_module_are_part_of_its_section(repo):
    late = "LIMIT = 3\nimport late\n\ntry:\n    import fast\nexcept ImportError:\n    fast = None\n"
    assert repo(changed("LIMIT = 3\n", late), text=changed("LIMIT = 3\n", late, TEXT)) == (0, [])


@pytest.mark.parametrize(
    "marker",
    ["# === run_x.py ====", "# ==== run_x ====", "# ==== run_y.py ====", "  # ==== run_x.py ====",
     "# ==== run_x.py ==== ", "# ---- run_x.py ----", "# run_x.py", "# run_x ====", "#== utils/text.py, whole",
     MARKER.replace("NAME", "text").replace("copies", "writes"), MARKER.replace("NAME", "text") + " ",
     MARKER.replace("utils/NAME", "util/text").replace("====", "----")],
)
def test_a_misspelt_marker_is_named(repo, marker):
    script = changed(OWN, f"{marker}\n{OWN}")
    words = f"a misspelt marker: expected '# ==== run_x.py ====' or {MARKER!r}"
    assert repo(script) == fault(f"{marker}\n", words, script)


def test_a_comment_that_speaks_of_a_file_is_no_marker(repo):
    comment = "# utils/text.py: a == b, and see run_x.py.\n"
    assert repo(changed("\n\ndef main", f"\n\n{comment}def main")) == (0, [])


def test_an_unknown_module_is_named(repo):
    marker = MARKER.replace("NAME", "texts")
    script = changed(OWN, f"{marker}\n\n\n{OWN}")
    assert repo(script) == fault(marker, "there is no utils/texts.py", script)


@pytest.mark.parametrize(
    ("old", "new", "stem"), [(OWN, "", "twice"), ("# the end\n", "# the end\n\n\n# ----- main\n", "text")])
def test_a_section_without_end_is_named_and_fix_leaves_it(repo, old, new, stem):
    script = changed(old, new)
    words = f"utils/{stem}.py has no end: put '# ==== run_x.py ====' behind it"
    assert repo(script, "--fix") == fault(MARKER.replace("NAME", stem), words, script)
    assert (repo.root / "run_x.py").read_text(encoding="utf-8") == script


def test_a_second_copy_of_a_section_is_named(repo):
    script = changed(OWN, f"{TWICE_SECTION}\n\n{OWN}")
    words = "utils/twice.py stands in this script twice", "twice is defined twice: first on line 32"
    assert repo(script) == (1, [f"run_x.py:36: {words[0]}", f"run_x.py:39: {words[1]}"])


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("# Loud and quiet", "# Loud", 12),
        ("quiet text.\n\n", "quiet text.\n", 13),
        ("LIMIT = 3", "LIMIT = 3 ", 14),
        ("Once is enough", "Once will do", 19),
        ("    # Once is enough.\n", "", 19),
        ('"!"', '"?"', 20),
        ("        # the end\n", "", 26),
        ("        # the end\n", "        # the end\n        # no, here\n", 27),
    ],
    ids=["title", "blank line", "blank", "comment", "lost", "code", "lost at the end", "added at the end"],
)
def test_a_section_that_differs_in_anything_is_named_with_the_line(repo, old, new, line):
    script = changed(old, new)
    assert repo(script) == (1, [f"run_x.py:{line}: differs from utils/text.py"])
    assert (repo.root / "run_x.py").read_text(encoding="utf-8") == script


@pytest.mark.parametrize(
    "new",
    ["", "import numpy\n", "import other as np\n", "from numpy import np\n", "def f():\n    import numpy as np\n"],
)
def test_a_name_that_the_script_does_not_import_as_the_module_does_is_named(repo, new):
    script = changed("import numpy as np\n", new)
    words = "utils/text.py does not find its `import numpy as np` here"
    assert repo(script) == fault("        return np.sum", words, script)


def test_a_submodule_that_only_the_module_imports_is_named(repo):
    text = changed("import numpy", "import pyarrow.parquet\nimport numpy", TEXT).replace("Path()", "pyarrow")
    script = changed("Path()", "pyarrow").replace("import numpy", "import pyarrow\nimport numpy", 1)
    words = "utils/text.py does not find its `import pyarrow.parquet` here"
    assert repo(script, text=text) == fault(MARKER.replace("NAME", "text"), words, script)
    assert repo(changed("import pyarrow", "import pyarrow.parquet", script), text=text) == (0, [])


def test_a_name_of_a_section_that_is_missing_is_named(repo):
    script = changed(f"{TEXT_SECTION}\n\n", "").replace(", Counter()", "")
    words = "utils/twice.py does not find its `from utils.text import shout` here"
    assert repo(script, run_y=SCRIPT.replace("run_x", "run_y")) == fault("    return shout", words, script)


@pytest.mark.parametrize("other", ["from gzip import open", "def open():\n    return 1\n\n\nopen()"])
def test_a_builtin_that_is_something_else_in_the_script_is_named(repo, other):
    old, new = "text.upper()", "open(text).read()"
    script = changed(old, new).replace("import numpy", f"{other}\nimport numpy", 1)
    words = "utils/text.py does not find its `open` here"
    assert repo(script, text=changed(old, new, TEXT)) == fault("    return open(", words, script)


@pytest.mark.parametrize("other", ["LIMIT = 4", "def LIMIT(): pass", "from x import LIMIT", "if np:\n    LIMIT = 1"])
def test_a_name_that_is_defined_twice_is_named(repo, other):
    script = changed(OWN, f"{OWN}\n{other}\n")
    number = script[: script.rindex("LIMIT")].count("\n") + 1
    words = f"LIMIT is defined twice: first on line {line_of('LIMIT')}"
    assert repo(script) == (1, [f"run_x.py:{number}: {words}"])


def test_a_second_import_and_names_inside_of_other_things_are_not_defined_twice(repo):
    own = "import numpy as np\nSHARES = [LIMIT for LIMIT in range(3)]\nother = lambda: [shout := 1]\n"
    assert repo(changed(OWN, f"{OWN}\n{own}")) == (0, [])


def test_a_use_in_a_method_of_the_same_name_counts(repo):
    script = changed("def main():\n    print(", "class main:\n    def twice(self):\n        print(")
    assert repo(script) == (0, [])


@pytest.mark.parametrize("body", ["return 1", "return spare()", "return n.spare"])
def test_a_name_that_the_script_does_not_use_is_named(repo, body):
    old, new = "\n\nclass Counter", f"\n\ndef spare(n=1):\n    {body}\n\n\nclass Counter"
    script = changed(old, new).replace("    print(", "    spare = 1\n    print(spare, ")
    words = "spare of utils/text.py is not used in this script"
    assert repo(script, text=changed(old, new, TEXT)) == fault("def spare", words, script)


@pytest.mark.parametrize(
    "statement",
    ["import utils.text", "import os, utils", "from utils.text import shout", "from tools import report",
     "from benchmarks.ner import main", "from tests import helpers", "from run_y import main", "from . import text",
     "from .text import shout"],
)
def test_an_import_of_the_repository_is_named_wherever_it_stands(repo, statement):
    script = changed("    print(", f"    import toolset\n    {statement}\n    print(")
    single = statement.replace("os, ", "")
    words = f"`{single}`: a script must run alone, so copy the module that it needs"
    assert repo(script) == fault(f"    {statement}\n", words, script)


def test_a_module_that_no_script_has_is_named(repo):
    assert repo(utils__spare='"""Spare."""\n\nSPARE = 1\n') == (1, ["utils/spare.py:1: stands in no script"])


@pytest.mark.parametrize("name", ["run_z", "utils__text"])
@pytest.mark.parametrize("text", [b"x = 1\nx = (\n", b"x = 1\n# \xff\n", b"x = 1\nx = '\xff'\n"])
def test_a_file_that_is_no_python_or_no_utf8_is_named_once(repo, name, text):
    status, lines = repo(**{name: text})
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith(f"{name.replace('__', '/')}.py:2: is no Python in UTF-8: ")


def test_a_module_without_docstring_is_named(repo):
    status, lines = repo(text=TEXT[TEXT.index("import") :])
    assert (status, lines) == (1, ["utils/text.py:1: has no docstring, whose first line stands in the scripts"])


def test_fix_rewrites_what_differs_says_so_and_leaves_the_rest(repo):
    broken = changed("Once is enough", "Once will do").replace("* 2", "* 3").replace("LIMIT = 3\n", "")
    lines = ["run_x.py: rewrote utils/text.py", "run_x.py: rewrote utils/twice.py"]
    assert repo(broken, "--fix", run_y=SCRIPT.replace("run_x", "run_y")) == (0, lines)
    assert (repo.root / "run_x.py").read_text(encoding="utf-8") == SCRIPT
    assert repo(None, "--fix") == (0, [])
    assert sorted(path.name for path in repo.root.iterdir()) == ["run_x.py", "run_y.py", "utils"]


def test_fix_keeps_line_ends_the_byte_order_mark_blank_lines_and_a_missing_last_newline(repo):
    script = ("\ufeff" + SCRIPT).replace("\n", "\r\n").replace("import numpy as np\r\n", "import numpy as np\n")
    script = script.replace(f"{OWN[:-1]}\r\n\r\n", f"\r\n  \r\n{OWN[:-1]}\r\n\r\n\r\n")[:-2]
    assert repo(changed("* 2", "* 3", script), "--fix") == (0, ["run_x.py: rewrote utils/twice.py"])
    assert (repo.root / "run_x.py").read_bytes() == script.encode("utf-8")


def test_fix_fills_a_section_of_which_only_the_marker_stands(repo):
    script = changed(TWICE_SECTION, TWICE_SECTION.splitlines()[0] + "\n")
    assert repo(script, "--fix") == (0, ["run_x.py: rewrote utils/twice.py"])
    assert (repo.root / "run_x.py").read_text(encoding="utf-8") == SCRIPT


def test_fix_names_what_it_cannot_repair(repo):
    script = changed("* 2", "* 3").replace("import numpy as np\n", "")
    status, lines = repo(script, "--fix")
    assert (status, lines[0]) == (1, "run_x.py: rewrote utils/twice.py")
    assert lines[1].endswith("utils/text.py does not find its `import numpy as np` here")


def test_a_kill_while_a_script_is_written_leaves_it_whole(repo, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    script = changed("* 2", "* 3")
    with pytest.raises(KeyboardInterrupt):
        repo(script, "--fix")
    assert (repo.root / "run_x.py").read_text(encoding="utf-8") == script
