"""Hold each section of the scripts against its module in utils/.

    python -m tools.check_copies           names file and line of each fault; exit status 1 if there is one
    python -m tools.check_copies --fix     rewrites the sections that differ, then names what is left

A script (run_*.py) imports nothing from this repository. A module of utils/ that it shares with another stands in it
whole: a marker, the first line of the module's docstring as a comment, and all that follows the module's imports. The
section ends at the next marker; `# ==== run_mlm.py ====` marks where the script's own lines go on.
"""

import argparse
import ast
import builtins
import difflib
import re
import symtable
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECTION = "# ==== utils/{}.py, whole (to change it, change it there; `make fix` copies it) ===="
FOREIGN = re.compile(r"(utils|tools|tests|benchmarks|run_\w+)?(\.|$)")  # what a script must not import; relative, too


def read(path, root=ROOT):
    """Read a Python file: (its text with LF as line end, its syntax tree). SyntaxError names the file."""
    text = path.read_text(encoding="utf-8")
    return text, ast.parse(text, path.relative_to(root).as_posix())


def as_section(text, tree):
    """Turn a module into the text that stands under its marker in a script."""
    imports = [node.end_lineno for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    body = text.splitlines()[max([tree.body[0].end_lineno, *imports]) :]
    return f"# {ast.get_docstring(tree).splitlines()[0]}\n\n" + "\n".join(body).strip("\n") + "\n"


def find_markers(text, own):
    """List the markers of a script and what looks like one: (line from 0, module, "" for its own or None if wrong)."""
    right = re.compile(re.escape(SECTION).replace(r"\{\}", r"(\w+)"))
    markers = []
    for number, line in enumerate(text.splitlines()):
        section = right.fullmatch(line)
        if section:
            markers.append((number, section[1]))
        elif line == own:
            markers.append((number, ""))
        elif re.match(r"\s*#\W*==", line) or (line.lstrip().startswith("#") and max(
                difflib.SequenceMatcher(None, line, like).ratio() for like in (SECTION, own)) > 0.75):
            markers.append((number, None))
    return markers


def imported_names(tree):
    """What the imports of a module bind: (dict of name to what it stands for, dotted names of all modules)."""
    names, modules = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules.add(alias.name)
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names, modules


def defined_names(tree):
    """Names that the top level of a module binds other than by importing, with their line: a list of pairs."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append((node.name, node.lineno))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found += [(part.id, node.lineno) for part in ast.walk(node)
                      if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
    return found


def used_names(tree):
    """Names that a module takes from its top level, each counted once for each definition that uses it."""
    uses = Counter()
    for node in tree.body:
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
        uses.update(names - {getattr(node, "name", None)})
    return uses


def outside_names(text):
    """Names that functions and classes take from around them."""
    tables, names = [symtable.symtable(text, "section", "exec")], set()
    while tables:
        table = tables.pop()
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        tables += table.get_children()
    return names


def unresolved(module, tree, script_tree, sections):
    """Yield in words each name of a module that would mean nothing, or something else, in a script with `sections`."""
    names, needed = imported_names(tree)
    here, there = imported_names(script_tree)
    own = {name for name, _ in defined_names(tree)}
    for name in sorted(outside_names(ast.unparse(tree)) - own):
        meaning = names.get(name)
        if meaning and meaning.startswith("utils."):
            if meaning.split(".")[1] not in sections:
                yield f"uses {name} of {meaning.rpartition('.')[0].replace('.', '/')}.py: that section is missing"
        elif meaning != here.get(name) or not (meaning or hasattr(builtins, name)):
            yield f"uses {name}, which the script does not import as utils/{module}.py does"
    yield from (f"uses {name}, which the script does not import" for name in sorted(needed - there) if "." in name)


def check_script(path, modules, root):
    """Find what is wrong with a script: (list of (line, words), the text that it ought to have)."""
    text, tree = read(path, root)
    own, lines, faults = f"# ==== {path.name} ====", text.splitlines(), []
    markers = find_markers(text, own)
    sections = [module for _, module in markers if module]
    repaired = lines[: markers[0][0]] if markers else lines
    for (start, module), (end, _) in zip(markers, [*markers[1:], (len(lines), None)], strict=True):
        found = lines[start:end]
        repaired += found if module not in modules else [lines[start], *as_section(*modules[module]).splitlines(), "", ""]
        if module is None:
            faults.append((start, f"a misspelt marker; expected {own!r} or {SECTION.format('NAME')!r}"))
        elif module and module not in modules:
            faults.append((start, f"there is no utils/{module}.py"))
        elif module and end == len(lines):
            faults.append((start, f"the section utils/{module}.py has no end; expected {own!r} behind it"))
        elif module:
            if "\n".join(found[1:]).rstrip("\n") != as_section(*modules[module]).rstrip("\n"):
                faults.append((start, f"the section differs from utils/{module}.py"))
            faults += [(start, f"utils/{module}.py {words}")
                       for words in unresolved(module, modules[module][1], tree, sections)]
    defined, uses = defaultdict(list), used_names(tree)
    for name, line in defined_names(tree):
        defined[name].append(line - 1)
    for name, places in defined.items():
        if len(places) > 1:
            faults.append((places[-1], f"{name} is defined twice; the first time on line {places[0] + 1}"))
    for module in {*sections} & {*modules}:
        if sections.count(module) > 1:
            faults.append(([n for n, name in markers if name == module][-1], f"utils/{module}.py stands there twice"))
        for name, _ in defined_names(modules[module][1]):
            if name in defined and not uses[name]:
                faults.append((defined[name][0], f"{name} of utils/{module}.py is not used in this script"))
    for node in ast.walk(tree):
        imported = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                    ["." * node.level + (node.module or "")] if isinstance(node, ast.ImportFrom) else [])
        faults += [(node.lineno - 1, f"imports {name}; a script must run alone: copy the module that it needs")
                   for name in imported if FOREIGN.match(name)]
    return faults, "\n".join(repaired).rstrip("\n") + "\n"


def main(argv=None, root=ROOT):
    parser = argparse.ArgumentParser(prog="python -m tools.check_copies", allow_abbrev=False,
                                     description="Hold each section of the scripts against its module in utils/.")
    parser.add_argument("--fix", action="store_true", help="rewrite the sections that differ")
    fix = parser.parse_args(argv).fix
    modules = {path.stem: read(path, root) for path in root.glob("utils/*.py") if path.stem != "__init__"}
    faulty = copies = 0
    for path in sorted(root.glob("run_*.py")):
        if fix:
            path.write_text(check_script(path, modules, root)[1], encoding="utf-8")
        faults, text = check_script(path, modules, root)
        faulty += len(faults)
        copies += text.count("# ==== utils/")
        for line, words in sorted(faults):
            print(f"{path.name}:{line + 1}: {words}")
    if not faulty:
        print(f"{copies} sections agree with their modules in utils/")
    return faulty > 0


if __name__ == "__main__":
    sys.exit(main())
