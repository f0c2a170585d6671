"""The figures of the scripts, against counts made by hand."""

import pytest

from tools.sizes import main, measure_script

SCRIPT = '''\
"""A script
of two lines."""

import os  # above the sections that scripts share: plumbing


class Box:
    """A box."""

    def fill(self, things, *, quickly=True):
        """Fill it."""; self.things = "things"
        self.note = """not
a docstring"""


# ---------------- sections that scripts share: plumbing


def walk(first, /, second, third=None):
    if first:
        return 1
    elif second:
        for _ in second:
            pass
    else:
        if third:
            with third:
                while True:
                    pass

    def inner():
        try:
            pass
        except OSError:
            if True:
                if True:
                    if True:
                        if True:
                            pass
'''

# import os 2; class Box : 3; def fill ( self , things , * , quickly = True ) : 14; ; 1; self . things = 4, as "things"
# on the line of a docstring is taken for one; self . note = """…""" 5
BOX = 2 + 3 + 14 + 1 + 4 + 5
# def walk ( first , / , second , third = None ) : 14; if first : 3; return 1 2; elif second : 3;
# for _ in second : 5; pass 1; else : 2; if third : 3; with third : 3; while True : 3; pass 1
WALK = 14 + 3 + 2 + 3 + 5 + 1 + 2 + 3 + 3 + 3 + 1
# def inner ( ) : 5; try : 2; pass 1; except OSError : 3; four times if True : 12; pass 1
INNER = 5 + 2 + 1 + 3 + 12 + 1


def test_a_script_is_measured_as_by_hand():
    assert measure_script(SCRIPT) == (BOX + WALK + INNER, 39, 0, 15, "walk 21", "walk 3", "inner 5")


def test_comments_blank_lines_and_line_breaks_cost_no_tokens():
    packed = "def f(a):\n    return [a, a]\n"
    airy = '\n\ndef f(\n    a\n):\n    """Twice."""\n\n    # Why.\n    return [\n        a, a\n    ]\n'
    assert measure_script(packed)[0] == measure_script(airy)[0] == 12


def test_lines_over_100_columns_are_counted():
    assert measure_script(f"x = '{'a' * 94}'\ny = '{'a' * 95}'\nz = '{'ä' * 95}'\n")[2] == 2


@pytest.mark.parametrize(("body", "depth"), [
    ("pass", 0),
    ("if a: pass\n    elif b: pass\n    elif c: pass", 1),
    ("if a: pass\n    else:\n        if b: pass", 2),
    ("if a: pass\n    elif b:\n        for c in b: pass", 2),
    ("with a:\n        while b: pass", 2),
    ("async with a:\n        async for b in a: pass", 2),
    ("x = [a for a in b if a] if b else (lambda: c)", 0),
])
def test_nesting_counts_statements_and_no_elif(body, depth):
    assert measure_script(f"async def f():\n    {body}\n")[6] == f"f {depth}"


def test_the_table_has_a_row_for_each_script(tmp_path, capsys):
    (tmp_path / "run_b.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "run_a.py").write_text("def f(): pass\n", encoding="utf-8")
    main([], root=tmp_path)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["script", "tokens", "lines"]
    assert [row.split() for row in rows] == [
        ["run_a.py", "6", "1", "0", "-", "f", "1", "f", "0", "f", "0"],
        ["run_b.py", "3", "1", "0", "-", "-", "-", "-"],
    ]
