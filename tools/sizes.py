"""Print the size of each script in figures: python -m tools.sizes

Size is counted in tokens of Python, without comments, docstrings and line ends, so that packing gains
nothing. A function's lines do not count its decorators; self counts as a positional parameter.
"""

import argparse
import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNCOUNTED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
NESTING = ast.If | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Try | ast.TryStar
BANNER = "sections that scripts share: plumbing"
COLUMNS = ("script", "tokens", "lines", "over 100", "story", "longest function", "most parameters", "deepest nesting")


def count_tokens(text, tree):
    """Tokens of a file. A string that begins on the line of a docstring is taken for one."""
    documented = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS | ast.ClassDef | ast.Module)]
    docstrings = {node.body[0].lineno for node in documented if ast.get_docstring(node, clean=False) is not None}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in UNCOUNTED]
    return sum(token.type != tokenize.STRING or token.start[0] not in docstrings for token in tokens)


def nesting(node):
    """How deep if, for, while, with and try stand in each other within a node, inner functions left out."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, FUNCTIONS):
            is_elif = isinstance(node, ast.If) and child.col_offset == node.col_offset
            deepest = max(deepest, nesting(child) + (isinstance(child, NESTING) and not is_elif))
    return deepest


def largest(functions, measure):
    """The first function that is largest by a measure, with its figure, in words."""
    if not functions:
        return "-"
    function = max(functions, key=measure)
    return f"{function.name} {measure(function)}"


def measure_script(text):
    """The figures of a script, in the order of COLUMNS but for its name."""
    tree = ast.parse(text)
    lines = text.splitlines()
    banners = [at for at, line in enumerate(lines) if line.startswith("# -----") and line.endswith(BANNER)]
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    return (
        count_tokens(text, tree),
        len(lines),
        sum(len(line) > 100 for line in lines),
        banners[0] if banners else "-",
        largest(functions, lambda function: function.end_lineno - function.lineno + 1),
        largest(functions, lambda function: len(function.args.posonlyargs + function.args.args)),
        largest(functions, nesting),
    )


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(prog="python -m tools.sizes", description="Print the size of each script.")
    parser.parse_args(argv)
    table = [COLUMNS]
    for path in sorted(root.glob("run_*.py")):
        table.append((path.name, *measure_script(path.read_text(encoding="utf-8"))))
    widths = [max(len(str(cell)) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
