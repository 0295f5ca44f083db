"""Arrows point one way: what may import what, read from the source, and what stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "lorarlhf"

# From the ground up; a module may import its own floor and those below (docs/architecture.md).
FLOORS: list[tuple[str, ...]] = [
    (
        *("__init__", "errors", "quiet", "processes", "runs", "data"),
        *("data_checks", "data_files", "checkpoints", "interrupt"),
        *("backbone", "preferences", "workspace", "memory"),
    ),
    ("generation", "stepwise", "sampling", "rewards"),
    ("stages", "ppo", "evaluation", "report", "report_plots", "report_text", "export"),
    (
        *(
            "settings",
            "settings_sources",
            "parents",
            "folders",
            "room",
            "row_checks",
            "training",
            "training_ppo",
            "workspace_commands",
            "votes_commands",
        ),
        *("chat", "doctor", "estimating", "demo", "demo_verdict", "commands"),
        *("cli_parser", "cli"),
    ),
    ("recipes", "benchmarks", "ui"),
]
HEAVY = (
    "torch transformers datasets trl peft bitsandbytes accelerate pandas scipy matplotlib gradio"
)


def module_name(path: Path) -> str:
    """`lorarlhf/ppo/config.py` -> `lorarlhf.ppo.config`; a package by its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def sources() -> dict[str, Path]:
    folders = ("lorarlhf", "recipes", "benchmarks", "ui")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {module_name(path): path for path in paths}


def part(module: str) -> str:
    """The piece of the design a module belongs to: `lorarlhf.ppo.config` -> `ppo`."""
    names = module.split(".")
    if names[0] != PACKAGE:
        return names[0]
    return names[1] if len(names) > 1 else "__init__"


def floor(module: str) -> int:
    for number, names in enumerate(FLOORS):
        if part(module) in names:
            return number
    raise AssertionError(f"{module} stands on no floor: add {part(module)!r} to FLOORS")


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports(tree: ast.AST, types_too: bool) -> Iterator[str]:
    """Names that a file imports anywhere, inside functions as well."""
    for node in ast.iter_child_nodes(tree):
        if not types_too and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield from _names(node)
        yield from imports(node, types_too)


def graph(types_too: bool) -> dict[str, set[str]]:
    """Each module with the modules of this project that it imports."""
    known = sources()
    known[PACKAGE] = ROOT / PACKAGE / "__init__.py"
    known.pop(f"{PACKAGE}.__init__", None)
    found = {}
    for module, path in known.items():
        names = set(imports(ast.parse(path.read_text(encoding="utf-8")), types_too))
        found[module] = {name for name in names if name in known and name != module}
    return found


def test_no_arrow_points_up() -> None:
    up = [
        f"{module} imports {name}"
        for module, names in graph(types_too=True).items()
        for name in sorted(names)
        if floor(name) > floor(module)
    ]
    assert up == []


def test_there_is_no_circle() -> None:
    try:
        order = list(TopologicalSorter(graph(types_too=False)).static_order())
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' -> '.join(error.args[1])}")
    assert "lorarlhf.backbone.base" in order


def test_stages_do_not_import_one_another() -> None:
    shared_modules = ("stages", "common", "careful", "resuming", "together")

    def stage(module: str) -> str | None:
        if part(module) == "ppo":
            return "ppo"
        last = module.rsplit(".", 1)[-1]
        return last if part(module) == "stages" and last not in shared_modules else None

    crossed = [
        f"{module} imports {name}"
        for module, names in graph(types_too=True).items()
        for name in names
        if stage(module) and stage(name) and stage(module) != stage(name)
    ]
    assert crossed == []
    shared = graph(types_too=True)["lorarlhf.stages.trl.arguments"]
    assert not any(stage(name) for name in shared)


def test_recipes_use_only_this_package_and_no_private_name() -> None:
    for path in sorted((ROOT / "recipes").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [name for name in imports(tree, types_too=True) if name.startswith(PACKAGE)]
        assert names, path
        assert not any(piece.startswith("_") for name in names for piece in name.split(".")), path


def test_relative_imports_are_not_used() -> None:
    """They would be arrows that the tests above do not see."""
    for path in sources().values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree)), path


@pytest.mark.parametrize(
    "modules",
    [
        "lorarlhf",
        "lorarlhf.cli",
        "lorarlhf.cli.commands",
        "lorarlhf.data lorarlhf.runtime.errors lorarlhf.runtime.run lorarlhf.rewards.raters "
        "lorarlhf.rewards.functions lorarlhf.evaluation.win_rate lorarlhf.evaluation.report",
    ],
)
def test_what_must_stay_light_imports_nothing_heavy(modules: str) -> None:
    code = "import sys\n" + "".join(f"import {name}\n" for name in modules.split())
    code += f"print([name for name in {HEAVY.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_the_checks_above_see_an_arrow(tmp_path: Path) -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from lorarlhf.cli import main\n"
        "def f():\n    import lorarlhf.cli.demo\n    from lorarlhf.stages import sft\n"
    )
    eager = {name for name in imports(tree, types_too=False) if name.startswith(PACKAGE)}
    assert eager == {"lorarlhf.cli.demo", "lorarlhf.stages", "lorarlhf.stages.sft"}
    everything = {name for name in imports(tree, types_too=True) if name.startswith(PACKAGE)}
    assert everything - eager == {"lorarlhf.cli", "lorarlhf.cli.main.main"}
    assert floor("lorarlhf.cli") > floor("lorarlhf.stages.sft") > floor("lorarlhf.backbone.roles")
