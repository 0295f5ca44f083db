"""The imports of this project, read from its source: a graph of modules and one of folders.

`python -m tests.invariants.imports` prints the figures; with a folder it counts another checkout.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE, PAGES = "lorarlhf", "lorarlhf_ui"

# From the ground up. A folder imports lower floors only (docs/architecture.md has the same list).
FLOORS: list[tuple[str, ...]] = [
    ("runtime",),
    ("backbone", "data"),
    ("preferences", "rewards"),
    ("ppo", "evaluation", "project"),
    ("stages", "ui", "export", "serve"),
    ("cli", "benchmarks"),
    ("recipes",),
]
NAMED = re.compile(rf"((?:{PACKAGE}|{PAGES})(?:\.\w+)*):\w+")  # module:name, imported when needed
LOADERS = ("import_module", "__import__", "find_spec")

Graph = dict[str, set[str]]


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the project by the name that it is imported by."""
    found = {}
    for folder in (PACKAGE, "ui", "recipes", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            parts = list(path.relative_to(root).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            if parts[0] == "ui":
                parts[0] = PAGES
            found[".".join(parts)] = path
    return found


def names_in(node: ast.AST) -> list[str]:
    """What one statement or expression imports, by its own or by another name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found = NAMED.fullmatch(node.value)
        return [found[1]] if found else []
    if isinstance(node, ast.Call) and node.args:
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        first = node.args[0]
        if called in LOADERS and isinstance(first, ast.Constant):
            return [str(first.value)]
    return []


def imports(tree: ast.AST) -> Iterator[str]:
    """Names that a file imports anywhere: in functions, for types alone, and by importlib."""
    for node in ast.walk(tree):
        yield from names_in(node)


def module_graph(root: Path = ROOT) -> Graph:
    """Each module with the modules of this project that it imports.

    The package's own `__init__` hands out the public names of all folders when they are first used,
    and is no part of the graph.
    """
    known = sources(root)
    graph: Graph = {}
    for module, path in known.items():
        names = set(imports(ast.parse(path.read_text(encoding="utf-8"))))
        graph[module] = {n for n in names if n in known and n not in (module, PACKAGE)}
    graph.pop(PACKAGE, None)
    return graph


def folder(module: str) -> str:
    """The folder that a module is in: `lorarlhf.ppo.config` -> `ppo`, `lorarlhf_ui.app` -> `ui`.

    A loose file of the package is a room of its own.
    """
    first, *rest = module.split(".")
    if first == PAGES:
        return "ui"
    return rest[0] if first == PACKAGE and rest else first


def folder_graph(graph: Graph) -> Graph:
    """The arrows between folders."""
    found: Graph = {}
    for module, names in graph.items():
        own = found.setdefault(folder(module), set())
        own |= {folder(name) for name in names} - {folder(module)}
    return found


def floor(name: str) -> int:
    """The floor of a folder, from 0."""
    for number, names in enumerate(FLOORS):
        if name in names:
            return number
    raise AssertionError(f"{name} is on no floor: add it to FLOORS")


def not_down(graph: Graph) -> list[str]:
    """Imports that go up, or sideways to another folder."""
    return [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name in sorted(names)
        if folder(name) != folder(module) and floor(folder(name)) >= floor(folder(module))
    ]


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import one another in a circle, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in sorted(graph.get(node, ())):
            if after not in index:
                visit(after)
            if after in stack:
                low[node] = min(low[node], low[after])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def height(graph: Graph) -> int:
    """Floors that a graph needs: modules on its longest chain of imports, a circle as one."""
    group_of = {name: number for number, names in enumerate(circles(graph)) for name in names}
    merged: dict[str | int, set[str | int]] = {}
    for node, names in graph.items():
        own = merged.setdefault(group_of.get(node, node), set())
        own |= {group_of.get(name, name) for name in names}
    heights: dict[str | int, int] = {}

    def of(node: str | int) -> int:
        if node not in heights:
            below = merged.get(node, set()) - {node}
            heights[node] = 1 + max(map(of, below), default=0)
        return heights[node]

    return max(map(of, merged))


def main() -> None:
    """Print the figures of a checkout."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    graph = module_graph(root)
    rooms = folder_graph(graph)
    inside = [room for room in rooms if room not in ("ui", "recipes", "benchmarks")]
    print(f"modules {len(graph)}, imports between them {sum(map(len, graph.values()))}")
    print(
        f"rooms {len(rooms)} ({len(inside)} in {PACKAGE}), arrows {sum(map(len, rooms.values()))}"
    )
    print(f"floors that the rooms need {height(rooms)}")
    print(f"circles of modules {len(circles(graph))}, of rooms {len(circles(rooms))}")
    if set(inside) <= {name for names in FLOORS for name in names}:
        print(f"imports up or sideways {len(not_down(graph))}")


if __name__ == "__main__":
    main()
