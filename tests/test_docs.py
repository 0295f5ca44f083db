"""The documentation matches the code: trees, names, commands, examples and links are checked.

python -m tests.test_docs    # writes the output of `lorarlhf --help` into docs/commands.md
"""

import ast
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.backbone.memory import adapter_bytes, base_bytes, estimate
from lorarlhf.backbone.memory_plan import Plan
from lorarlhf.backbone.shape import Shape
from lorarlhf.cli.parser import SUMMARIES, build_parser
from lorarlhf.data.readers import (
    read_demonstrations,
    read_edits,
    read_labelled,
    read_preferences,
    read_prompts,
)
from lorarlhf.rewards.raters import RATERS
from tests.invariants.imports import FLOORS

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md", *PAGES]
INDEX = "docs/index.md"
MOST_WORDS = 1500
READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "demonstrations": read_demonstrations,
    "preferences": read_preferences,
    "labelled": read_labelled,
    "edits": read_edits,
    "prompts": read_prompts,
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(document: str, info: str = "") -> list[str]:
    """The fenced blocks of a document whose info string is `info`."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", text_of(document), re.MULTILINE | re.DOTALL)
    return [body for said, body in found if said.strip() == info]


def tree_paths(block: str) -> list[str]:
    """The paths of a tree drawn by indentation, one a line with a description behind it."""
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        folders = [(indent, folder) for indent, folder in folders if indent < depth]
        path = "".join(folder for _, folder in folders) + name
        assert line.split()[1:] or name.endswith("/"), f"{path} is not described"
        paths.append(path)
        if name.endswith("/"):
            folders.append((depth, name))
    return paths


@lru_cache
def names_in(path: Path) -> set[str]:
    """Functions, classes, methods (`Class.method`) and constants of a Python file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    targets = [t for n in tree.body for t in getattr(n, "targets", [getattr(n, "target", None)])]
    found |= {target.id for target in targets if isinstance(target, ast.Name)}
    for kind in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        found |= {f"{kind.name}.{m.name}" for m in kind.body if isinstance(m, ast.FunctionDef)}
    return found


# ---- docs/architecture.md


def test_the_tree_lists_every_file_of_the_package_once() -> None:
    (block,) = [b for b in blocks("docs/architecture.md") if b.startswith("lorarlhf/")]
    listed = [path for path in tree_paths(block) if not path.endswith("/")]
    real = {
        path.relative_to(ROOT).as_posix()
        for folder in ("lorarlhf", "ui")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(listed) == sorted(real)


def drawn_floors() -> list[list[str]]:
    """The modules on each floor of the picture, from the ground up."""
    lines = re.findall(r"^ floor (\d)   (.+)$", text_of("docs/architecture.md"), re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(len(lines), 0, -1))
    return [names.split() for _, names in reversed(lines)]


def test_the_floors_are_those_that_the_import_test_enforces() -> None:
    assert [set(names) for names in drawn_floors()] == [set(names) for names in FLOORS]


# ---- docs/ppo-details.md


def test_every_detail_names_code_and_tests_that_exist() -> None:
    found = re.findall(r"`([\w/]+\.py):([\w.]+)`", text_of("docs/ppo-details.md"))
    assert len(found) > 60
    missing = [
        f"{file}:{name}"
        for file, name in found
        for path in [ROOT / ("tests" if "test_" in file else "lorarlhf") / file]
        if not path.is_file() or name not in names_in(path)
    ]
    assert missing == []


def test_every_row_of_the_details_is_held_by_a_test_or_says_so() -> None:
    rows = [line for line in text_of("docs/ppo-details.md").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| detail |")]
    assert len(rows) > 25
    for row in rows:
        _, _, where, test, _, _ = row.split("|")
        assert ".py:" in where, row
        assert "test_" in test or "no test of our own" in test, row


# ---- docs/health.md


def test_every_alarm_is_shown_with_its_words_and_its_picture() -> None:
    from lorarlhf.ppo.alarms import ALARMS

    guide = text_of("docs/health.md")
    words = " ".join(guide.replace("\n> ", " ").split())
    for alarm in ALARMS:
        assert f"\n## {alarm.name}\n" in guide
        assert alarm.advice in words, alarm.name
        assert alarm.reason[1:] in words, alarm.name
        picture = f"images/health/{alarm.name}.svg"
        assert f"({picture})" in guide and (ROOT / "docs" / picture).is_file()


def test_every_alarm_of_preference_tuning_is_shown_with_its_words() -> None:
    from lorarlhf.stages.preference_alarms import ALARMS

    guide = text_of("docs/health.md")
    words = " ".join(guide.replace("\n> ", " ").split())
    for alarm in ALARMS:
        assert f"\n| {alarm.name} |" in guide and f"\n**{alarm.name}**\n" in guide
        assert alarm.advice in words, alarm.name
        assert alarm.reason[1:] in words, alarm.name


# ---- docs/data.md


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_the_examples_of_data_files_can_be_read(kind: str, ending: str, tmp_path: Path) -> None:
    examples = blocks("docs/data.md", f"{ending} {kind}")
    assert examples or ending == "csv"
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}.{ending}"
        file.write_text(example, encoding="utf-8")
        assert READERS[kind](file)


def test_the_examples_of_the_readme_can_be_read(tmp_path: Path) -> None:
    (block,) = [b for b in blocks("README.md") if b.startswith("demonstrations")]
    for line in block.splitlines():
        kind, row = line.split(maxsplit=1)
        file = tmp_path / f"{kind}.jsonl"
        file.write_text(row, encoding="utf-8")
        assert len(READERS[kind](file)) == 1


def test_the_reward_function_of_the_guide_works() -> None:
    (code,) = blocks("docs/data.md", "python")
    space: dict[str, Any] = {}
    exec(compile(code, "docs/data.md", "exec"), space)
    answers = [[{"role": "assistant", "content": "x" * 50}]] * 2
    assert space["reward"]([None] * 2, answers, kind=["writing", "question"]) == [0.5, 0.0]


def test_every_rater_is_described() -> None:
    named = re.findall(r"^\| `(\w+)` \| ", text_of("docs/data.md"), re.MULTILINE)
    assert named == list(RATERS)


# ---- docs/scaling.md


def figures_of_scaling() -> tuple[list[str], list[str]]:
    """The memory table's column and the sentences with figures, as docs/scaling.md must have them.

    python -c "from tests.test_docs import figures_of_scaling as f; print(*sum(f(), []), sep='\\n')"
    """
    config = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    config |= {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}
    config |= {"tie_word_embeddings": False}
    shape, plan = Shape.of(config), Plan("ppo")
    larger = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
    large = Shape.of(config | larger | {"intermediate_size": 28672})
    one, checkpointed = {"micro_batch_size": 1}, {"gradient_checkpointing": True}
    changes: list[dict[str, Any]] = [{}, one, one | checkpointed, one | {"adapter_layers": 8}]
    changes.append(one | checkpointed | {"adapter_layers": 8})
    peaks = [estimate(shape, replace(plan, **changed))["total"] for changed in changes]
    peaks.append(base_bytes(shape, 4))
    policy, value = (adapter_bytes(shape, plan) * layers / 16 for layers in (11, 6))
    both = 4 * (policy + value)
    linear = sum(a * b for a, b in shape.matrices) * 2  # bytes of a layer in 16 bit
    sentences = [
        f"({policy / 1e6:.1f} MB and {value / 1e6:.1f} MB above, float32)",
        f"4 x ({policy / 1e6:.1f} + {value / 1e6:.1f}) = {both / 1e6:.0f} MB",
        f"{both / 1e6:.0f} MB an update above is {8 * both / 1e10:.1f} s",
        f"{base_bytes(shape, 16) / 1e9:.1f} GB above",
        f"{16 * linear / 1e9:.2f} GB with the upper half; {16 * linear / 1e10:.1f} s at 10 GB/s",
        f"takes {base_bytes(large, 4) / 1e9:.1f} GB in 4 bit",
        f"{estimate(large, replace(plan, **one, **checkpointed))['total'] / 1e9:.1f} GB. Splitting",
    ]
    return [f"{peak / 1e9:.2f}" for peak in peaks], sentences


def test_the_figures_of_scaling_are_computed() -> None:
    column, sentences = figures_of_scaling()
    text = text_of("docs/scaling.md")
    assert re.findall(r"^\|.*\| (\d+\.\d\d) \|$", text, re.MULTILINE)[:6] == column
    for said in sentences:
        assert said in text, said


def test_the_speed_ups_of_scaling_are_amdahls() -> None:
    rows = re.findall(r"^\| (0\.\d) \| (.*) \|$", text_of("docs/scaling.md"), re.MULTILINE)
    assert len(rows) == 3
    for share, cells in rows:
        s = float(share)
        wanted = [1 / (1 - s + s / f) for f in (3, 10, float("inf"))]
        assert cells.split(" | ") == [f"{x:.2f}" for x in wanted]


# ---- docs/commands.md


def help_block(monkeypatch: pytest.MonkeyPatch) -> str:
    """`lorarlhf --help` as docs/commands.md shows it."""
    monkeypatch.setenv("COLUMNS", "100")
    return build_parser().format_help()


def write_help() -> None:
    """Replace the block in docs/commands.md."""
    path = ROOT / "docs" / "commands.md"
    with pytest.MonkeyPatch.context() as patch:
        block = f"```text\n{help_block(patch)}```"
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"```text\n.*?```", lambda _: block, text, count=1, flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")


def test_the_help_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks("docs/commands.md", "text")
    wanted = help_block(monkeypatch)
    assert block.split() == wanted.split(), "run `python -m tests.test_docs`"


def test_the_options_of_training_commands_are_those_of_the_parser() -> None:
    listed = re.findall(r"^\| `(--[a-z-]+)", text_of("docs/commands.md"), re.MULTILINE)
    for command in ("sft", "reward", "ppo", "dpo", "orpo", "kto", "ditto"):
        usage = build_parser().parse_args([command, "PROJECT"])
        missing = [o for o in listed if not hasattr(usage, o.removeprefix("--").replace("-", "_"))]
        assert missing == [], command


# ---- README.md


def test_the_python_example_runs(tiny_base: Path, tmp_path: Path) -> None:
    """As it stands, on a tiny base for one update, its files in a folder of the test."""
    (code,) = blocks("README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    for said, taken in [
        ('"smollm2-135m"', repr(str(tiny_base))),
        ('"runs/mine', f'"{(tmp_path / "mine").as_posix()}'),
        ("updates=20, max_new_tokens=32", "updates=1, max_new_tokens=4, num_ppo_epochs=1"),
    ]:
        assert said in code
        code = code.replace(said, taken)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "mine" / "adapters" / "policy" / "adapter_model.safetensors").is_file()


def test_the_readme_is_short_and_every_page_is_listed() -> None:
    text = text_of("README.md")
    assert len(text.split()) < MOST_WORDS
    linked = re.findall(r"\]\(([^)#]+\.md)\)", text)
    assert set(linked) >= {"CONTRIBUTING.md", "recipes/README.md"}
    listed = {f"docs/{page}" for page in re.findall(r"\]\((\w[\w-]*\.md)\)", text_of(INDEX))}
    assert set(PAGES) - {INDEX} <= listed | set(linked)


def test_the_tree_of_the_readme_exists() -> None:
    (block,) = [b for b in blocks("README.md") if b.startswith("lorarlhf/")]
    assert [path for path in tree_paths(block) if not (ROOT / path).exists()] == []


def test_the_table_lists_every_command() -> None:
    named = re.findall(r"^\| `lorarlhf ([\w-]+)[^`]*` \|", text_of("docs/commands.md"), re.M)
    assert list(dict.fromkeys(named)) == [
        *(
            "demo",
            "new",
            "ui",
            "serve",
            "votes",
            "raters",
            "report",
            "runs",
            "jobs",
            "sft",
            "reward",
        ),
        *("ppo", "dpo", "orpo", "kto", "ditto", "round", "chat", "score", "eval"),
        *("compare-methods", "export", "recipe", "estimate", "doctor"),
    ]
    assert set(named) == set(SUMMARIES)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_line_is_accepted(document: str) -> None:
    text = text_of(document)
    said = re.findall(r"`(lorarlhf \w[^`\n]*)`", text)
    shell = [block.replace("\\\n", " ") for block in blocks(document, "sh")]
    said += [line for block in shell for line in block.splitlines()]
    for line in said:
        _, *words = shlex.split(line)
        if words[0] in SUMMARIES and len(words) > 1:
            assert build_parser().parse_args(words).command == words[0], line
        elif words[0] != "COMMAND":
            assert words[0] in SUMMARIES, line
    for target in re.findall(r"(?:^ {4}|`)make (?:\w+=\S+ )?([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", text_of("Makefile"), re.MULTILINE), target
    for kind, words in re.findall(r"(?:python|bash) (recipes|benchmarks)/([^`\n]+)", text):
        script, *options = words.split("  #")[0].split()
        source = (ROOT / kind / script).with_suffix(".py").read_text(encoding="utf-8")
        assert (ROOT / kind / script).is_file(), script
        for option in (word for word in options if word.startswith("--")):
            name = option.removeprefix("--").replace("-", "_")
            assert f'"{option}"' in source or f'"{name}"' in source, f"{script} {option}"


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d != "CHANGELOG.md"])
def test_every_name_in_the_package_exists(document: str) -> None:
    """`lorarlhf.a.b` is a module, or a name in the module `lorarlhf.a`."""
    for dotted in re.findall(r"(?<![/\w])lorarlhf((?:\.\w+)+)", text_of(document)):
        path, rest = ROOT / "lorarlhf", dotted.split(".")[1:]
        while rest and ((path / rest[0]).is_dir() or (path / f"{rest[0]}.py").is_file()):
            path /= rest.pop(0)
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert not rest or re.search(rf"\b{rest[0]}\b", file.read_text()), f"lorarlhf{dotted}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)", text_of(document)):
        if not target.startswith("http"):
            assert (folder / target).exists(), target


def test_no_figure_is_left_open() -> None:
    names = [*DOCUMENTS, *(f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py"))]
    assert [name for name in names if re.search(r"\{\{\w+\}\}", text_of(name))] == []


if __name__ == "__main__":
    write_help()
