"""The wheel holds the package and its data and nothing else; every dependency is pinned."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ADDED = ("CHANGELOG.md", "constraints.txt")


def run(*command: str, cwd: Path) -> str:
    """Standard output of a command; its standard error is shown where it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def constraints() -> list[Requirement]:
    """The lines of constraints.txt without comments."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def asked_for() -> list[Requirement]:
    """Every requirement of pyproject.toml, the extras' too."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for group in (project["dependencies"], *extras) for line in group]


def applies(requirement: Requirement, python: str) -> bool:
    """Whether the requirement's marker holds on that Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    rubbish = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("lorarlhf", "ui", "recipes", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=rubbish)
    for name in ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", *ADDED):
        shutil.copy(ROOT / name, source / name)
    return source


def build(kind: str, source: Path, out: Path) -> Path:
    """The package of a kind (wheel or sdist) that is built from a folder."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out)]
    run(*command, cwd=source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    data = {f"lorarlhf/_data/{file.name}" for file in (ROOT / "recipes/data").glob("*.jsonl")}
    assert "lorarlhf/_data/prompts.jsonl" in data
    assert data <= set(names)
    recipes = {f"lorarlhf/_recipes/{file.name}" for file in (ROOT / "recipes").glob("*.py")}
    assert {name for name in names if name.startswith("lorarlhf/_recipes/")} == recipes
    assert "lorarlhf/_recipes/1_supervised.py" in recipes
    assert {"lorarlhf/__init__.py", "lorarlhf/runtime/errors.py", "lorarlhf/py.typed"} <= set(names)
    assert {name for name in names if name.startswith("lorarlhf_ui/")} == {
        f"lorarlhf_ui/{file.relative_to(ROOT / 'ui').as_posix()}"
        for file in (ROOT / "ui").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name.split("/")[0] for name in names} == {
        *("lorarlhf", "lorarlhf_ui", "lorarlhf-0.1.0.dist-info"),
    }
    assert {Path(name).suffix for name in names if name.startswith("lorarlhf/_data/")} == {".jsonl"}
    assert "lorarlhf-0.1.0.dist-info/licenses/LICENSE" in names


def test_the_source_package_builds_the_same_wheel(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    packed = build("sdist", source, tmp_path / "sdist")
    shutil.unpack_archive(packed, tmp_path)
    unpacked = tmp_path / packed.name.removesuffix(".tar.gz")
    assert all((unpacked / name).is_file() for name in ADDED)
    again = build("wheel", unpacked, tmp_path / "again")
    assert contents(again) == contents(wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel, without the list of their hashes, whose order is that of the folder."""
    archive = zipfile.ZipFile(wheel)
    return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}


def test_the_wheel_needs_no_compiler_and_names_its_command(wheel: Path) -> None:
    assert wheel.name == "lorarlhf-0.1.0-py3-none-any.whl"
    archive = zipfile.ZipFile(wheel)
    entry_points = archive.read("lorarlhf-0.1.0.dist-info/entry_points.txt").decode()
    assert "lorarlhf = lorarlhf.cli.main:main" in entry_points
    metadata = archive.read("lorarlhf-0.1.0.dist-info/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert re.search(r"^Requires-Python: .*>=3\.10", metadata, re.MULTILINE)


def test_the_data_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    # -I: without the checkout and its environment variables.
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from importlib.resources import files\n"
        "from lorarlhf.data.readers import bundled\n"
        "print(len(files('lorarlhf._data').joinpath('prompts.jsonl').read_bytes()))\n"
        "print(bundled('prompts'))\n"
    )
    size, path = run(sys.executable, "-I", "-c", script, cwd=tmp_path).split("\n")[:2]
    assert int(size) == (ROOT / "recipes/data/prompts.jsonl").stat().st_size
    assert Path(path) == tmp_path / "lorarlhf/_data/prompts.jsonl"


def test_the_recipes_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    # -I: without the checkout and its environment variables.
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
        "from lorarlhf.cli.main import main\n"
        "main(['recipe', 'copy', '3_dpo'])\n"
    )
    run(sys.executable, "-I", "-c", script, cwd=tmp_path)
    copied = (tmp_path / "recipes/3_dpo.py").read_bytes()
    assert copied == (ROOT / "recipes/3_dpo.py").read_bytes()


def test_every_subpackage_is_listed() -> None:
    found = {
        ".".join((package, *file.parent.relative_to(ROOT / folder).parts))
        for folder, package in (("lorarlhf", "lorarlhf"), ("ui", "lorarlhf_ui"))
        for file in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in file.parts
    }
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert found - listed == set(), "add these to [tool.setuptools] packages in pyproject.toml"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_once_within_its_range(python: str) -> None:
    pins: dict[str, list[Requirement]] = {}
    for pin in constraints():
        if applies(pin, python):
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    wanted = [requirement for requirement in asked_for() if applies(requirement, python)]
    assert len(wanted) > 20
    for requirement in wanted:
        (pin,) = pins[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert requirement.specifier.contains(Version(exact.version)), f"{pin} and {requirement}"


def test_the_version_is_the_same_everywhere() -> None:
    import lorarlhf

    assert lorarlhf.__version__ == PROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog
