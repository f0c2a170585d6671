"""Hold each section of the scripts against its module in utils/: python -m tools.check_copies [--fix]

A script (run_*.py) imports nothing from this repository. A module of utils/ that it shares stands in it
whole: a marker, the first line of the module's docstring as a comment, and all that follows the module's
imports, up to the next marker. `# ==== run_mlm.py ====` marks where the script's own lines go on.
"""

import argparse
import ast
import builtins
import re
import symtable
from itertools import takewhile, zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKER = "# ==== utils/NAME.py, whole (to change it, change it there; `make fix` copies it) ===="
PATTERN = re.compile(re.escape(MARKER).replace("NAME", r"(\w+)"))
ALIKE = re.compile(r"\s*#(\W*==|.*====|.*`make fix` copies|\W*(utils/\w+|run_\w+)\.py\W*$)")
REPOSITORY = re.compile(r"(import|from) (\.|(utils|tools|tests|benchmarks|run_\w+)\b)")
IMPORTS = ast.Import | ast.ImportFrom
APART = ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.ExceptHandler


class Source:
    """A script or a module, taken apart. SyntaxError or ValueError if it is no Python or no UTF-8."""

    def __init__(self, path, data):
        self.path = path
        self.raw = data.decode("utf-8").split("\n")
        self.lines = [line.rstrip("\r") for line in self.raw]
        self.tree = ast.parse(data, path.name)
        self.bound = list(bound_names(self.tree))
        self.first = {name: (line, statement) for name, line, statement in reversed(self.bound)}
        self.defined = {name for name, _, statement in self.bound if not statement}
        self.used = used_names(symtable.symtable(data, path.name, "exec"))
        self.sections = []  # [module, line of the marker, last line that is not blank]
        for number, line in enumerate(self.lines, 1):
            shared = PATTERN.fullmatch(line)
            if shared or line == f"# ==== {path.name} ====":
                self.sections.append([shared[1] if shared else "", number, number])
            elif ALIKE.match(line):  # a misspelt marker
                self.sections.append([None, number, number])
            elif line.strip() and self.sections:
                self.sections[-1][2] = number

    def as_section(self):
        """The lines that stand under the marker of this module in a script."""
        imports = takewhile(lambda node: isinstance(node, IMPORTS), self.tree.body[1:])
        start = [self.tree.body[0], *imports][-1].end_lineno
        body = "\n".join(self.lines[start:]).strip("\n")
        return [f"# {ast.get_docstring(self.tree).splitlines()[0]}", "", *body.split("\n")]


def bound_names(node):
    """Yield (name, line, statement) of what the top level binds. statement: for an import, else ""."""
    if isinstance(node, IMPORTS):
        origin = f"from {'.' * node.level}{node.module or ''} " if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            yield alias.asname or alias.name, node.lineno, f"{origin}import {ast.unparse(alias)}"
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name, node.lineno, ""
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id, node.lineno, ""
    elif not isinstance(node, APART):
        for child in ast.iter_child_nodes(node):
            yield from bound_names(child)


def used_names(table):
    """Names of the top level, and builtins, that are used; a use by itself does not count."""
    used = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    for child in table.get_children():
        itself = {child.get_name()} if table.get_type() == "module" else set()
        used |= used_names(child) - itself
    return used


def compare(script, modules):
    """Hold sections against modules: (faults as (line, words), modules that differ, lines when mended)."""
    faults = []
    differing = []
    lines = list(script.raw)
    stems = [stem for stem, _, _ in script.sections]
    for number, (stem, start, last) in reversed([*enumerate(script.sections)]):
        text = script.lines[start:last]
        original = modules[stem].as_section() if stem in modules else text
        if stem is None:
            faults.append((start, f"a misspelt marker: expected '# ==== {script.path.name} ====' or {MARKER!r}"))
        elif stem and stem not in modules:
            faults.append((start, f"there is no utils/{stem}.py"))
        elif stem and (number == len(stems) - 1 or any(line.startswith("# -----") for line in text)):
            faults.append((start, f"utils/{stem}.py has no end: put '# ==== {script.path.name} ====' behind it"))
        elif text != original:
            same = [line == expected for line, expected in zip_longest(text, original)]
            faults.append((start + 1 + same.index(False), f"differs from utils/{stem}.py"))
            differing.insert(0, stem)
            line_end = "\r" if lines[start - 1].endswith("\r") else ""
            lines[start:last] = [line + line_end for line in original]
        if stem and stem in stems[:number]:
            faults.append((start, f"utils/{stem}.py stands in this script twice"))
    return faults, differing, lines


def check_names(script, modules):
    """Yield (line, words) for each fault of the names and imports of a script."""
    for name, line, statement in script.bound:
        first_line, first_statement = script.first[name]
        if line != first_line and (not statement or statement != first_statement):
            yield line, f"{name} is defined twice: first on line {first_line}"
    for node in ast.walk(script.tree):
        for _, line, statement in bound_names(node) if isinstance(node, IMPORTS) else ():
            if REPOSITORY.match(statement):
                yield line, f"`{statement}`: a script must run alone, so copy the module that it needs"
    names = [(node.id, node.lineno) for node in ast.walk(script.tree) if isinstance(node, ast.Name)]
    sections = [(modules[stem], start, last) for stem, start, last in script.sections if stem in modules]
    offers = {statement for _, _, statement in script.bound} | (set(dir(builtins)) - script.first.keys())
    for module, _, _ in sections:
        offers |= {f"from utils.{module.path.stem} import {name}" for name in module.defined}
    for module, start, last in sections:
        for name in (module.defined & script.defined) - script.used:
            yield script.first[name][0], f"{name} of utils/{module.path.name} is not used in this script"
        needs = [(name, statement) for name, _, statement in module.bound if statement]
        needs += [(name, name) for name in module.used - {name.partition(".")[0] for name in module.first}]
        for name, need in needs:
            if need not in offers:
                uses = [line for used, line in names if used == name and start < line <= last]
                yield min(uses, default=start), f"utils/{module.path.name} does not find its `{need}` here"


def write(script, stems):
    """Write a script so that a kill leaves no half of it, and say which modules were copied into it."""
    aside = script.path.with_name(f"{script.path.name}.tmp")
    aside.write_bytes("\n".join(script.raw).encode("utf-8"))
    aside.replace(script.path)
    print("\n".join(f"{script.path.name}: rewrote utils/{stem}.py" for stem in stems))


def read_all(root, pattern, faults):
    """Read scripts or modules: a dict of name to Source, and a fault for each that cannot be read."""
    sources = {}
    for path in sorted(root.glob(pattern)):
        data = path.read_bytes()
        try:
            sources[path.stem] = Source(path, data)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or data.count(b"\n", 0, getattr(error, "start", 0)) + 1
            faults.append((path.relative_to(root).as_posix(), line, f"is no Python in UTF-8: {error}"))
    return sources


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(prog="python -m tools.check_copies", description=__doc__.partition(":")[0])
    parser.add_argument("--fix", action="store_true", help="rewrite the sections that differ")
    fix = parser.parse_args(argv).fix
    faults = []
    modules = read_all(root, "utils/[!_]*.py", faults)
    faults += [(f"utils/{stem}.py", 1, "has no docstring, whose first line stands in the scripts")
               for stem, module in modules.items() if not ast.get_docstring(module.tree)]
    scripts = {} if faults else read_all(root, "run_*.py", faults)
    unused = set() if faults else set(modules)
    for script in scripts.values():
        _, stems, lines = compare(script, modules)
        if fix and stems:
            script = Source(script.path, "\n".join(lines).encode("utf-8"))
            write(script, stems)
        checks = {*compare(script, modules)[0], *check_names(script, modules)}
        faults += [(script.path.name, *fault) for fault in sorted(checks)]
        unused -= {stem for stem, _, _ in script.sections}
    faults += [(f"utils/{stem}.py", 1, "stands in no script") for stem in sorted(unused)]
    for name, line, words in faults:
        print(f"{name}:{line}: {words}")
    print(f"{len(modules)} modules, {len(scripts)} scripts: {len(faults) or 'no'} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
