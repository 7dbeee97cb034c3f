"""Draws which package imports which, from the code: the diagram of docs/architecture.md.

An arrow that follows from others is left out (transitive reduction), so that the diagram shows the layers.

run:    python docs/import_graph.py          writes the diagram into docs/architecture.md
        python docs/import_graph.py --check  exits with 1 if the page is out of date
"""

import re
import sys
from pathlib import Path

import grimp

PAGE = Path(__file__).with_name("architecture.md")
BLOCK = re.compile(r"```mermaid\n.*?```", re.DOTALL)


def package_imports() -> dict[str, set[str]]:
    """Return, for each entry of dilated_seg/, the entries that its modules import."""
    graph = grimp.build_graph("dilated_seg", cache_dir=None)
    imports: dict[str, set[str]] = {}
    for module in sorted(graph.modules - {"dilated_seg"}):
        importer = module.split(".")[1]
        imported = {name.split(".")[1] for name in graph.find_modules_directly_imported_by(module) if "." in name}
        imports.setdefault(importer, set()).update(imported - {importer})
    return imports


def reachable(imports: dict[str, set[str]], start: str) -> set[str]:
    """Return every entry that can be reached from ``start`` in one import or several."""
    found: set[str] = set()
    queue = list(imports[start])
    while queue:
        entry = queue.pop()
        if entry not in found:
            found.add(entry)
            queue += imports[entry]
    return found


def draw() -> str:
    """Return the diagram in Mermaid's language."""
    imports = package_imports()
    lines = ["```mermaid", "flowchart TD"]
    for importer, imported in imports.items():
        implied = set().union(*(reachable(imports, entry) for entry in imported))
        lines += [f"    {importer} --> {entry}" for entry in sorted(imported - implied)]
    return "\n".join([*lines, "```"])


def main(arguments: list[str]) -> int:
    """Write or check the diagram."""
    before = PAGE.read_text("utf-8")
    after = BLOCK.sub(draw(), before)
    if "--check" in arguments:
        return int(before != after)
    PAGE.write_text(after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
