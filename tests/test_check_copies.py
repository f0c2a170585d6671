"""The copy checker: each way in which a copy can be broken is reported with file and line, and --fix repairs copies.

Each test writes a small repository: utils/text.py, whose originals are below, and a script with copies of them.
"""

import pytest

from tools.check_copies import main

ORIGINALS = '''\
import numpy as np

LIMIT = 3


def shout(text):
    """Say it loudly."""
    # Once is enough.
    return text.upper() + "!"


class Counter:
    step = 1

    def add(self, n):
        return sum([n * self.step for n in range(n)])
        # the end


def average(values):
    return np.mean(values)


def whisper(text):
    return text.lower()
'''

SHOUT = '''\
# Copied from utils.text.shout
def shout(text):
    """Say it loudly."""
    # Once is enough.
    return text.upper() + "!"
'''

COUNTER = '''\
# Copied from utils.text.Counter
class Counter:
    step = 1

    def add(self, n):
        return sum([n * self.step for n in range(n)])
        # the end
'''

AVERAGE = '''\
# Copied from utils.text.average
def average(values):
    return np.mean(values)
'''


@pytest.fixture
def repo(tmp_path, capsys):
    """A function that writes files into a repository, runs the checker and returns (exit status, lines printed)."""

    def run(script, *arguments, original=ORIGINALS, **others):
        files = {"utils/__init__.py": "", "utils/text.py": original, "run_x.py": script}
        files |= {name.replace("__", "/") + ".py": text for name, text in others.items()}
        (tmp_path / "utils").mkdir(exist_ok=True)
        for name, text in files.items():
            if text is not None:
                (tmp_path / name).write_bytes(text.encode("utf-8"))
        status = main(list(arguments), root=tmp_path)
        return status, capsys.readouterr().out.splitlines()

    run.root = tmp_path
    return run


def original_of(definition, head=""):
    """utils/text.py with nothing but the definition of a copy: the same lines without the marker."""
    return head + definition.split("\n", 1)[1]


# What is right


def test_this_repository_is_clean(capsys):
    assert main([]) == 0, capsys.readouterr().out


def test_verbatim_copies_pass(repo):
    script = f"import numpy as np\n\n\ndef main():\n    shout('a')\n\n\n{SHOUT}\n\n{COUNTER}\n\n{AVERAGE}\n\nmain()\n"
    assert repo(script) == (0, ["3 copies agree with their originals in utils/"])


def test_the_scripts_own_functions_and_ordinary_comments_pass(repo):
    script = """\
# Copies stand at the end of this file; see `python -m tools.check_copies`.
HELP = '''
# copied from utils.text.shout
'''


def main():  # copied to every worker
    whisper = "# Copied from nowhere"  # a whisper, but never copied anywhere
    return whisper
"""
    assert repo(script)[0] == 0


def test_a_byte_order_mark_and_crlf_make_no_difference(repo):
    assert repo(("\ufeff" + SHOUT).replace("\n", "\r\n"))[0] == 0
    assert repo(SHOUT, original=("\ufeff" + ORIGINALS).replace("\n", "\r\n"))[0] == 0


def test_a_decorated_copy_has_its_marker_above_the_first_decorator(repo):
    definition = "@np.vectorize\n@np.frompyfunc(\n    2,\n)\ndef f(x):\n    return x\n"
    script = "import numpy as np\n# Copied from utils.text.f\n{}"
    original = f"import numpy as np\n{definition}"
    assert repo(script.format(definition), original=original)[0] == 0
    status, lines = repo(script.format(definition.replace("2", "3")), original=original)
    assert (status, lines) == (1, ["run_x.py:7: f differs from utils/text.py"])


# Copies that differ


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"!"', '"?"'),
        ("# Once is enough.", "# Once is quite enough."),
        ("    # Once is enough.\n", ""),
        ('upper() + "!"\n', 'upper() + "!"\n    # an afterthought\n'),
        ("    return", "    text = str(text)\n    return"),
        ("def shout", "@cache\ndef shout"),
        ("(text):", "(text): "),
    ],
    ids=["code", "comment", "shortened", "comment at the end", "lengthened", "decorator", "blank at a line's end"],
)
def test_a_copy_that_differs_in_anything_is_reported(repo, old, new):
    status, lines = repo(f"import os\n{SHOUT.replace(old, new, 1)}")
    line = 4 if new.startswith("@") else 3
    assert (status, lines) == (1, [f"run_x.py:{line}: shout differs from utils/text.py"])


def test_a_comment_that_the_copy_lost_at_its_end_is_a_difference(repo):
    assert repo(COUNTER.replace("        # the end\n", "")) == (1, ["run_x.py:2: Counter differs from utils/text.py"])


def test_a_renamed_copy_is_reported(repo):
    status, lines = repo(SHOUT.replace("def shout", "def cry"))
    message = "cry is a renamed copy of shout in utils/text.py: a copy keeps the name"
    assert (status, lines) == (1, [f"run_x.py:1: {message}"])


def test_a_second_copy_in_one_script_is_reported(repo):
    status, lines = repo(f"{SHOUT}\n\n{SHOUT}")
    assert (status, lines) == (1, ["run_x.py:8: shout is copied twice: the other copy is on line 2"])


# Markers


@pytest.mark.parametrize(
    "comment",
    [
        "# copied from utils.text.shout",
        "#Copied from utils.text.shout",
        "#  Copied from utils.text.shout",
        "# Copied form utils.text.shout",
        "# Coppied from utils.text.shout",
        "# Copied from: utils.text.shout",
        "# Copied from utils.text.shout, shortened",
        "# Copied from utils.text.shout ",
        "# Copied from utils.text",
        "# Copied from utils/text.py",
        "# Copied from util.text.shout",
        "# Copied from text.shout",
        "# Copied from utils.text.shout  # noqa",
        "# Copied from",
        "# Copy of utils.text.shout",
        "# NOTE: copied from utils.text.shout",
    ],
)
def test_a_misspelt_marker_is_reported_wherever_it_stands(repo, comment):
    status, lines = repo(f"import os\n\n{comment}\ndef shout(text):\n    return os\n\n\nx = 1  {comment}\n")
    fault = f"{comment!r} is misspelt: write '# Copied from utils.module.name', and nothing after the name"
    assert (status, lines) == (1, [f"run_x.py:3: {fault}", f"run_x.py:8: {fault}"])


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("# Copied from utils.text.shout\n\ndef loud(): pass\n", 1),
        ("# Copied from utils.text.shout\n# at once\ndef loud(): pass\n", 1),
        ("# Copied from utils.text.shout\nLOUD = 1\n", 1),
        ("x = 1\nLOUD = 1  # Copied from utils.text.shout\ndef shout(): pass\n", 2),
        ("def loud():\n    # Copied from utils.text.shout\n    def quiet(): pass\n", 2),
        ("class Loud:\n    # Copied from utils.text.shout\n    def quiet(self): pass\n", 2),
        ("if True:\n    # Copied from utils.text.shout\n    def loud(): pass\n", 2),
        ("@staticmethod\n# Copied from utils.text.shout\ndef loud(): pass\n", 2),
        ("x = 1\n# Copied from utils.text.shout\n", 2),
    ],
    ids=["blank line", "comment", "assignment", "same line", "function", "method", "if", "decorator", "end of file"],
)
def test_a_misplaced_marker_is_reported(repo, script, line):
    fault = "is misplaced: put it right above the def, the class or its first decorator"
    assert repo(script) == (1, [f"run_x.py:{line}: '# Copied from utils.text.shout' {fault}"])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("utils.texts.shout", "there is no utils/texts.py"),
        ("utils.text.shot", "utils/text.py has no function or class shot at top level"),
        ("utils.text.LIMIT", "utils/text.py has no function or class LIMIT at top level"),
        ("utils.text.add", "utils/text.py has no function or class add at top level"),
    ],
)
def test_a_marker_that_names_nothing_is_reported(repo, name, fault):
    status, lines = repo(f"x = 1\n# Copied from {name}\ndef loud(): pass\n")
    assert (status, lines) == (1, [f"run_x.py:2: '# Copied from {name}' names nothing: {fault}"])


def test_an_unmarked_copy_is_reported_by_its_text(repo):
    status, lines = repo("try:\n    x = 1\nexcept OSError:\n    def whisper(text):\n        return text.lower()\n")
    message = "whisper is an unmarked copy: write '# Copied from utils.text.whisper' above it, or rename it"
    assert (status, lines) == (1, [f"run_x.py:4: {message}"])


def test_an_unmarked_copy_is_reported_by_the_name_of_what_another_script_copies(repo):
    status, lines = repo("x = 1\ndef shout(sound):\n    return sound\n", run_y=SHOUT)
    message = "shout is an unmarked copy: write '# Copied from utils.text.shout' above it, or rename it"
    assert (status, lines) == (1, [f"run_x.py:2: {message}"])


def test_a_name_that_no_script_copies_may_be_used_for_something_else(repo):
    assert repo("def shout(sound):\n    return sound\n")[0] == 0


# Names


def uses(name, line=2, copy="f"):
    return f"run_x.py:{line}: {copy} uses {name}, which is neither a builtin, an import of both files nor another copy"


@pytest.mark.parametrize(
    "definition",
    [
        "def f(x):\n    return LIMIT\n",
        "def f(x=LIMIT):\n    return x\n",
        "def f(x: LIMIT):\n    return x\n",
        "def f() -> LIMIT:\n    return 1\n",
        "def f(xs):\n    return [x for x in xs if x < LIMIT]\n",
        "def f():\n    def g():\n        return lambda: LIMIT\n    return g\n",
        "def f():\n    global LIMIT\n    LIMIT = 4\n",
        "class f:\n    x = LIMIT\n",
        "class f(LIMIT):\n    pass\n",
        "class f:\n    def g(self, x=LIMIT):\n        pass\n",
    ],
    ids=["body", "default", "annotation", "result", "comprehension", "nested", "global", "class", "base", "method"],
)
def test_a_constant_of_the_module_is_reported_wherever_the_copy_uses_it(repo, definition):
    head = "LIMIT = 3\n\n"
    status, lines = repo(f"{head}# Copied from utils.text.f\n{definition}", original=head + definition)
    assert (status, lines) == (1, [uses("LIMIT", line=4)])


def test_a_decorator_counts_as_used(repo):
    status, lines = repo("# Copied from utils.text.f\n@LIMIT\ndef f(): pass\n", original="@LIMIT\ndef f(): pass\n")
    assert (status, lines) == (1, [uses("LIMIT", line=3)])


def test_locals_of_all_kinds_and_builtins_pass(repo):
    definition = """\
def f(a, *b, c=len, **d):
    import json as j
    from os import sep
    with open(a) as e:
        g = [h for h in e if (i := h)]
    try:
        pass
    except ValueError as k:
        print(k)
    for m, (n, *o) in b:
        del m
    def p():
        nonlocal g
        g = q
        return super, __name__
    class q(dict):
        r = 1
        s = r
        def t(self):
            return super().__len__(), __class__
    match a:
        case [u, *v]:
            return u, v
    return j, sep, c, d, i, n, o, p, f, {w: x for w, x in d}, lambda y: y
"""
    assert repo(f"# Copied from utils.text.f\n{definition}", original=definition)[0] == 0


@pytest.mark.parametrize(
    ("imported", "body", "in_script"),
    [
        ("import numpy as np", "np.mean(1)", "import numpy as np"),
        ("import os", "os.sep", "import os.path"),
        ("from pathlib import Path", "Path(1)", "from pathlib import Path"),
        ("import os.path as p", "p.sep", "from os import path as p"),
        ("try:\n    import fast\nexcept ImportError:\n    fast = None", "fast", "if True:\n    import fast"),
        ("import pyarrow as pa\nimport pyarrow.csv", "pa.csv.x", "import pyarrow as pa\nimport pyarrow.csv"),
    ],
)
def test_an_import_of_both_files_passes(repo, imported, body, in_script):
    definition = f"def f():\n    return {body}\n"
    script = f"{in_script}\n# Copied from utils.text.f\n{definition}"
    assert repo(script, original=f"{imported}\n{definition}")[0] == 0


@pytest.mark.parametrize(
    ("imported", "name", "in_script"),
    [
        ("import numpy as np", "np", "import numpy"),
        ("import numpy as np", "np", "import other as np"),
        ("from pathlib import Path", "Path", "from zipfile import Path"),
        ("from pathlib import Path", "Path", "from pathlib import PurePath as Path"),
        ("from pathlib import Path", "Path", "def main():\n    from pathlib import Path"),
        ("from pathlib import Path", "Path", "Path = str"),
        ("from io import open", "open", "import io"),
        ("import io", "open", "def open(): pass"),
    ],
)
def test_a_name_that_means_something_else_in_the_script_is_reported(repo, imported, name, in_script):
    definition = f"def f():\n    return {name}\n"
    script = f"{in_script}\n# Copied from utils.text.f\n{definition}"
    line = in_script.count("\n") + 3
    assert repo(script, original=f"{imported}\n{definition}") == (1, [uses(name, line=line)])


def test_a_submodule_that_only_the_original_imports_is_reported(repo):
    definition = "def f(file):\n    return pa.csv.read_csv(file)\n"
    script = f"import pyarrow as pa\n# Copied from utils.text.f\n{definition}"
    status, lines = repo(script, original=f"import pyarrow as pa\nimport pyarrow.csv\n{definition}")
    message = "f uses pyarrow.csv, which utils/text.py imports and run_x.py does not"
    assert (status, lines) == (1, [f"run_x.py:3: {message}"])


def test_a_copy_may_use_another_copy_and_not_a_missing_one(repo):
    caller = "# Copied from utils.other.twice\ndef twice(text):\n    return shout(text) * 2\n"
    for statement in ("from .text import shout", "from utils.text import shout"):
        other = original_of(caller, head=f"{statement}\n")
        assert repo(f"{caller}\n\n{SHOUT}", utils__other=other)[0] == 0
    assert repo(caller, utils__other=other) == (1, [uses("shout", copy="twice")])


def test_a_copy_of_the_same_name_from_another_module_is_not_what_the_original_uses(repo):
    caller = "# Copied from utils.other.twice\ndef twice(text):\n    return shout(text) * 2\n"
    other = original_of(caller, head="def shout(text):\n    return text\n\n")
    status, lines = repo(f"{caller}\n\n{SHOUT}", utils__other=other)
    assert (status, lines) == (1, [uses("shout", copy="twice")])


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("import utils.text", "utils.text"),
        ("import os, utils", "utils"),
        ("from utils.text import shout", "utils.text"),
        ("from utils import text", "utils"),
        ("from tests import helpers", "tests"),
        ("from benchmarks.speed import run", "benchmarks.speed"),
        ("from run_y import main", "run_y"),
        ("from . import text", "."),
        ("from .utils import text", ".utils"),
    ],
)
def test_an_import_from_this_repository_is_reported_wherever_it_stands(repo, statement, name):
    status, lines = repo(f"import utilities\n\ndef main():\n    {statement}\n")
    message = f"imports {name}: a script must run alone, so copy what it needs from there"
    assert (status, lines) == (1, [f"run_x.py:4: {message}"])


@pytest.mark.parametrize(("text", "reason"), [("x = 1\nx = (\n", "never closed"), ("x = '\udcff'", "utf-8")])
def test_a_file_that_is_not_python_is_named(repo, text, reason):
    (repo.root / "run_z.py").write_bytes(text.encode("utf-8", "surrogateescape"))
    status, lines = repo(SHOUT)
    assert status == 1 and len(lines) == 1
    assert lines[0].startswith("run_z.py:") and "cannot be read" in lines[0] and reason in lines[0]


# --fix


def test_fix_rewrites_all_copies_that_differ_and_nothing_else(repo):
    around = "import numpy as np\n\nTABLE = [1,2]   # stays\n\n{}\n\ndef main():\n\treturn 1\n\n{}\n{}\n\nmain()  \n"
    longer = SHOUT.replace("    return", "    # more\n    # and more\n    return")
    shorter = COUNTER.replace("    step = 1\n\n", "")
    changed = AVERAGE.replace("mean", "median")
    status, lines = repo(around.format(longer, shorter, changed), "--fix")
    assert status == 0
    assert lines == [
        "run_x.py: rewrote shout from utils/text.py",
        "run_x.py: rewrote Counter from utils/text.py",
        "run_x.py: rewrote average from utils/text.py",
        "3 copies agree with their originals in utils/",
    ]
    fixed = (repo.root / "run_x.py").read_bytes()
    assert fixed.decode("utf-8") == around.format(SHOUT, COUNTER, AVERAGE)
    assert repo(None) == repo(None, "--fix") == (0, lines[-1:])
    assert (repo.root / "run_x.py").read_bytes() == fixed
    assert sorted(path.name for path in repo.root.iterdir()) == ["run_x.py", "utils"]  # no temporary file is left


def test_fix_keeps_line_ends_byte_order_mark_and_a_missing_last_newline(repo):
    text = "\ufeffNAME = 'é'\n" + f"{SHOUT.replace('!', '?')}\n\n{COUNTER.replace('1', '2')}".replace("\n", "\r\n")[:-2]
    assert repo(text, "--fix")[0] == 0
    expected = "\ufeffNAME = 'é'\n" + f"{SHOUT}\n\n{COUNTER}".replace("\n", "\r\n")[:-2]
    assert (repo.root / "run_x.py").read_bytes().decode("utf-8") == expected


def test_fix_repairs_several_scripts_and_leaves_what_it_cannot_repair(repo):
    renamed = SHOUT.replace("def shout", "def cry")
    status, lines = repo(SHOUT.replace("!", "?"), "--fix", run_y=f"{renamed}\n\n{COUNTER.replace('1', '2')}")
    assert status == 1
    assert lines == [
        "run_x.py: rewrote shout from utils/text.py",
        "run_y.py: rewrote Counter from utils/text.py",
        "run_y.py:1: cry is a renamed copy of shout in utils/text.py: a copy keeps the name",
    ]
    assert (repo.root / "run_x.py").read_text(encoding="utf-8") == SHOUT
    assert (repo.root / "run_y.py").read_text(encoding="utf-8") == f"{renamed}\n\n{COUNTER}"


def test_without_fix_no_file_is_written(repo):
    text = SHOUT.replace("!", "?")
    assert repo(text)[0] == 1
    assert (repo.root / "run_x.py").read_text(encoding="utf-8") == text
