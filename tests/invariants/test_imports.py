"""Imports go down: which folder may import which, without circles; and what stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.invariants import imports
from tests.invariants.imports import FLOORS, PACKAGE, ROOT, circles, module_graph, not_down, sources

HEAVY = (
    "torch transformers datasets trl peft bitsandbytes accelerate pandas scipy matplotlib gradio"
)
SHARED = ("callbacks", "conversations", "inputs", "keep_best", "table", "trl")  # by the stages
SHARED += ("held_out", "preference_alarms", "preference_run", "preference_watch", "step_size")


def test_folders_import_lower_floors_only() -> None:
    assert not_down(module_graph()) == []


def test_there_is_no_circle_of_modules_or_folders() -> None:
    graph = module_graph()
    assert circles(graph) == []
    assert circles(imports.folder_graph(graph)) == []


def test_every_folder_is_on_a_floor_and_two_files_at_most_lie_beside_them() -> None:
    top = {path.name for path in (ROOT / PACKAGE).iterdir() if not path.name.startswith("__pyc")}
    named = {name for names in FLOORS for name in names}
    assert len(top - named) <= 2 and len(FLOORS) <= 7
    assert imports.height(imports.folder_graph(module_graph())) <= 7


def test_stages_do_not_import_one_another() -> None:
    def stage(module: str) -> str:
        parts = module.split(".")
        inside = parts[:2] == [PACKAGE, "stages"] and len(parts) > 2
        # RLOO and GRPO are algorithms of the command ppo, and rounds belong to the command dpo; the
        # stages reward, sft and ditto have several files.
        same = {"critic_free": "ppo", "assistant_turns": "sft", "ditto_callbacks": "ditto"}
        same |= dict.fromkeys(("reward_view", "reward_examples"), "reward_model")
        rounds = ("iterated_dpo", "round_inputs", "round_alarms")
        same |= dict.fromkeys(rounds, "dpo_orpo")
        return same.get(parts[2], parts[2]) if inside and parts[2] not in SHARED else ""

    graph = module_graph()
    crossed = [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name in names
        if stage(module) and stage(name) and stage(module) != stage(name)
    ]
    assert crossed == []
    for module in graph:
        if module.startswith(f"{PACKAGE}.stages.trl"):
            assert not any(stage(name) for name in graph[module]), module


def test_recipes_use_only_this_package_and_no_private_name() -> None:
    for path in sorted((ROOT / "recipes").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [name for name in imports.imports(tree) if name.startswith(PACKAGE)]
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
        "lorarlhf.cli.main",
        "lorarlhf.cli.commands",
        "lorarlhf.stages.table lorarlhf.project.project lorarlhf.preferences.store",
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


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_checks_see_every_kind_of_arrow(tmp_path: Path) -> None:
    write(
        tmp_path,
        lorarlhf__data__a="from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from lorarlhf.cli.b import main\n",
        lorarlhf__cli__b="def main():\n    import lorarlhf.backbone.c\n",
        lorarlhf__backbone__c="from importlib import import_module\n"
        "import_module('lorarlhf_ui.d')\nRUN = 'lorarlhf.data.a:name'\n",
        ui__d="from lorarlhf_ui import e\n",
        ui__e="import lorarlhf_ui.d\n",
    )
    graph = module_graph(tmp_path)
    assert graph == {
        "lorarlhf.data.a": {"lorarlhf.cli.b"},
        "lorarlhf.cli.b": {"lorarlhf.backbone.c"},
        "lorarlhf.backbone.c": {"lorarlhf_ui.d", "lorarlhf.data.a"},
        "lorarlhf_ui.d": {"lorarlhf_ui.e"},
        "lorarlhf_ui.e": {"lorarlhf_ui.d"},
    }
    assert not_down(graph) == [  # for types alone, by importlib up, by name sideways
        "lorarlhf.backbone.c imports lorarlhf.data.a",
        "lorarlhf.backbone.c imports lorarlhf_ui.d",
        "lorarlhf.data.a imports lorarlhf.cli.b",
    ]
    assert circles(graph) == [
        ["lorarlhf_ui.d", "lorarlhf_ui.e"],
        ["lorarlhf.backbone.c", "lorarlhf.cli.b", "lorarlhf.data.a"],
    ]
    assert imports.height({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == 2


def test_the_figures_can_be_printed() -> None:
    command = [sys.executable, "-m", "tests.invariants.imports"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "circles of modules 0, of rooms 0" in done.stdout
    assert "imports up or sideways 0" in done.stdout
