"""Hold every copy of a shared function or class against its original in utils/.

    python -m utils.check_copies           names file and line of whatever is wrong; exit status 1 if anything is
    python -m utils.check_copies --fix     rewrites the copies that differ, then names what is left

A script (run_*.py) imports nothing from this repository. What it shares stands in it verbatim, comments included, under

    # Copied from utils.module.name

All names that a copy uses must mean in the script what they mean in utils/module.py: a builtin, an import of both files
or another copy. So a module-level constant cannot be used in one.
"""

import argparse
import ast
import builtins
import difflib
import io
import os
import re
import shutil
import symtable
import sys
import textwrap
import tokenize
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.compile(r"# Copied from utils\.([^\W\d]\w*)\.([^\W\d]\w*)")
NEAR_MARKER = re.compile(r"\bcop\w*\W+(\w+\W+){0,2}utils?[\W_]{1,2}\w", re.IGNORECASE)  # "copy of utils/loss.py"
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FOREIGN = re.compile(r"(utils|tests|benchmarks|run_\w+)?(\.|$)")  # what a script must not import, relative imports too


class Problem(NamedTuple):
    file: str
    line: int
    message: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.message}"


class SourceFile:
    """A Python file, read so that comments count in a comparison and the kind of line ends does not.

    Attributes:
        label: path from the root, as reports name it.
        raw: lines with their own line ends; joined, they are the file.
        lines: the same without line ends.
        comments: (line, column, text) of each comment; lines from 1, columns from 0.
        definitions: syntax node of each function and class at top level, by name.
        bound: names that the module binds at top level, in whatever way.
        imports: what each imported name stands for, as {"np": {"numpy"}, "Path": {"pathlib.Path"}}.
        modules: dotted names of all modules that the top level imports.

    Raises:
        SyntaxError, ValueError: the file is not Python, or not UTF-8.
    """

    def __init__(self, path, root):
        self.path = path
        self.label = path.relative_to(root).as_posix()
        self.raw = list(io.StringIO(path.read_bytes().decode("utf-8"), newline=""))
        self.lines = [line.rstrip("\r\n") for line in self.raw]
        text = "\n".join(self.lines).removeprefix("\ufeff")
        self.tree = ast.parse(text)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comments = [(*token.start, token.string) for token in tokens if token.type == tokenize.COMMENT]
        self.definitions = {node.name: node for node in self.tree.body if isinstance(node, DEFINITION)}
        symbols = symtable.symtable(text, self.label, "exec").get_symbols()
        self.bound = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
        self.imports, self.modules = defaultdict(set), set()
        for node in top_level(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    parts = alias.name.split(".")
                    self.modules.update(".".join(parts[:n]) for n in range(1, len(parts) + 1))
                    self.imports[alias.asname or parts[0]].add(alias.name if alias.asname else parts[0])
            elif isinstance(node, ast.ImportFrom):
                package = ["utils"] if node.level else []  # a relative import, which only a utils module may have
                module = ".".join([*package, *filter(None, [node.module])])
                self.modules.add(module)
                for alias in node.names:
                    self.imports[alias.asname or alias.name].add(f"{module}.{alias.name}")

    def span(self, node):
        """Return (start, end) such that lines[start:end] is a definition with its decorators and closing comments."""
        start = min(part.lineno for part in [node, *node.decorator_list]) - 1
        end = node.end_lineno
        for number, line in enumerate(self.lines[end:], end + 1):
            if re.match(r"\s+#", line):  # the syntax tree ends before an indented comment
                end = number
            elif line.strip():
                break
        return start, end

    def source(self, node):
        start, end = self.span(node)
        return "\n".join(self.lines[start:end])


class Copy(NamedTuple):
    script: SourceFile
    node: ast.stmt
    module: SourceFile
    original: ast.stmt

    @property
    def origin(self):
        return f"utils.{self.module.path.stem}.{self.original.name}"

    @property
    def differs(self):
        return self.script.source(self.node) != self.module.source(self.original)

    def problem(self, message):
        return Problem(self.script.label, self.node.lineno, f"{self.node.name} {message}")


def top_level(node):
    """Yield the nodes that run when a module is imported, those inside if, try and with included."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, DEFINITION):
            yield from top_level(child)


def looks_like_a_marker(comment):
    """Tell whether a comment was probably meant as a marker, such as `#Coppied form: utils.collators.pad`."""
    first, second = [*re.findall(r"[a-z]+", comment.lower()), "", ""][:2]
    likeness = [difflib.SequenceMatcher(None, *pair).ratio() for pair in [(first, "copied"), (second, "from")]]
    return min(likeness) >= 0.75 or NEAR_MARKER.search(comment) is not None


def find_copies(script, modules):
    """Read the markers of a script.

    Args:
        script: SourceFile of the script.
        modules: SourceFile of each utils module, by module name.

    Returns:
        (copies, attempts, problems): Copy by name, for the markers that are right; the lines of all markers, also of
        those that are wrong; and a Problem for each of the latter.
    """
    copies, attempts, problems = {}, set(), []
    starts = {script.span(node)[0]: node for node in script.tree.body if isinstance(node, DEFINITION)}
    for line, column, comment in script.comments:
        marker = MARKER.fullmatch(comment)
        if marker is None and not looks_like_a_marker(comment):
            continue
        attempts.add(line)
        node = starts.get(line) if column == 0 else None  # lines count from 1 and starts from 0: it is the next line
        module = modules.get(marker[1]) if marker else None
        if marker is None:
            fault = f"{comment!r} is misspelt: write '# Copied from utils.module.name', and nothing after the name"
        elif node is None:
            fault = f"{comment!r} is misplaced: put it right above the def, the class or its first decorator"
        elif module is None:
            fault = f"{comment!r} names nothing: there is no utils/{marker[1]}.py"
        elif marker[2] not in module.definitions:
            fault = f"{comment!r} names nothing: {module.label} has no function or class {marker[2]} at top level"
        elif node.name != marker[2]:
            fault = f"{node.name} is a renamed copy of {marker[2]} in {module.label}: a copy keeps the name"
        elif node.name in copies:
            fault = f"{node.name} is copied twice: the other copy is on line {copies[node.name].node.lineno}"
        else:
            copies[node.name] = Copy(script, node, module, module.definitions[node.name])
            continue
        problems.append(Problem(script.label, line, fault))
    return copies, attempts, problems


def outside_names(source):
    """Return the names that a definition takes from around it: in its body, defaults, decorators and annotations."""
    tables, names = [symtable.symtable(source, "copy", "exec")], set()
    while tables:
        table = tables.pop()
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        tables += table.get_children()
    return names


def unresolved_names(copy, copies):
    """Yield a Problem for each name that would mean something else, or nothing, in the script of a copy.

    Args:
        copy: the Copy; its original is looked at, which is what it has to become where it differs.
        copies: all right copies of its script, by name.
    """
    module, script = copy.module, copy.script
    here = {**script.imports, **{name: {other.origin} for name, other in copies.items()}}
    there = {**module.imports, **{name: {f"utils.{module.path.stem}.{name}"} for name in module.definitions}}
    for name in sorted(outside_names(module.source(copy.original))):
        if name in module.bound or name in script.bound:
            resolved = name in there and there[name] == here.get(name)
        else:
            resolved = hasattr(builtins, name)
        if not resolved:
            yield copy.problem(f"uses {name}, which is neither a builtin, an import of both files nor another copy")
    for chain in {ast.unparse(node) for node in ast.walk(copy.original) if isinstance(node, ast.Attribute)}:
        first, _, rest = chain.partition(".")
        for used in {f"{meaning}.{rest}" for meaning in module.imports.get(first, ())} & module.modules:
            if used not in script.modules:  # `import pyarrow` alone does not make pyarrow.parquet
                yield copy.problem(f"uses {used}, which {module.label} imports and {script.label} does not")


def foreign_imports(script):
    """Yield a Problem for each import of a part of this repository, wherever in the script it stands."""
    for node in ast.walk(script.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            continue
        for name in names:
            if FOREIGN.match(name):
                message = f"imports {name}: a script must run alone, so copy what it needs from there"
                yield Problem(script.label, node.lineno, message)


def unmarked_copies(script, attempts, copied, modules):
    """Yield a Problem for each definition without a marker that has the name, or the very text, of an original.

    Args:
        script: SourceFile of the script.
        attempts: lines of its markers, right or wrong.
        copied: origin of everything that any script copies, by name.
        modules: SourceFile of each utils module, by module name.
    """
    originals = {}
    for stem, module in modules.items():
        originals |= {module.source(node): f"utils.{stem}.{name}" for name, node in module.definitions.items()}
    for node in top_level(script.tree):
        if not isinstance(node, DEFINITION) or script.span(node)[0] in attempts:
            continue
        origin = copied.get(node.name) or originals.get(textwrap.dedent(script.source(node)))
        if origin:
            message = f"{node.name} is an unmarked copy: write '# Copied from {origin}' above it, or rename it"
            yield Problem(script.label, node.lineno, message)


def check(root=ROOT):
    """Look at all scripts of a repository.

    Args:
        root: folder with run_*.py and utils/.

    Returns:
        (problems, copies): what is wrong, as sorted Problems; and every Copy under a right marker, also if it differs.
    """
    files, problems = {}, []
    for path in [*sorted(root.glob("utils/*.py")), *sorted(root.glob("run_*.py"))]:
        try:
            files[path] = SourceFile(path, root)
        except (SyntaxError, ValueError) as error:
            line, reason = getattr(error, "lineno", None) or 1, getattr(error, "msg", error)
            problems.append(Problem(path.relative_to(root).as_posix(), line, f"cannot be read: {reason}"))
    if problems:
        return problems, []  # with a file missing, every other finding would be a guess
    modules = {path.stem: file for path, file in files.items() if path.parent != root}
    scripts = [file for path, file in files.items() if path.parent == root]
    found = {script: find_copies(script, modules) for script in scripts}
    all_copies = [copy for copies, _, _ in found.values() for copy in copies.values()]
    copied = {copy.node.name: copy.origin for copy in all_copies}
    for script, (copies, attempts, marker_problems) in found.items():
        problems += marker_problems
        problems += foreign_imports(script)
        problems += unmarked_copies(script, attempts, copied, modules)
        for copy in copies.values():
            if copy.differs:
                problems.append(copy.problem(f"differs from {copy.module.label}"))
            problems += unresolved_names(copy, copies)
    return sorted(problems), all_copies


def repair(script, copies):
    """Rewrite the copies in one script from their originals; all other bytes of the file stay.

    Args:
        script: SourceFile of the script.
        copies: those of its Copies that differ.
    """
    raw = list(script.raw)
    spans = sorted(((script.span(copy.node), copy) for copy in copies), key=lambda pair: pair[0], reverse=True)
    for (start, end), copy in spans:  # from the bottom up, so that the line numbers above stay right
        line_end = raw[start - 1][len(script.lines[start - 1]) :]  # of the marker: LF or CRLF
        last_end = raw[end - 1][len(script.lines[end - 1]) :]  # nothing, perhaps, on the last line of the file
        new = copy.module.source(copy.original).split("\n")
        raw[start:end] = [line + line_end for line in new[:-1]] + [new[-1] + last_end]
    unfinished = script.path.with_name(script.path.name + ".tmp")
    unfinished.write_bytes("".join(raw).encode("utf-8"))
    shutil.copymode(script.path, unfinished)
    os.replace(unfinished, script.path)


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(
        prog="python -m utils.check_copies",
        description="Compare the copies of shared functions in the scripts with their originals in utils/.",
        allow_abbrev=False,
    )
    parser.add_argument("--fix", action="store_true", help="rewrite the copies that differ from their original")
    args = parser.parse_args(argv)
    problems, copies = check(root)
    if args.fix:
        outdated = defaultdict(list)
        for copy in copies:
            if copy.differs:
                outdated[copy.script].append(copy)
                print(f"{copy.script.label}: rewrote {copy.node.name} from {copy.module.label}")
        for script, differing in outdated.items():
            repair(script, differing)
        problems, copies = check(root)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{len(copies)} copies agree with their originals in utils/")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
