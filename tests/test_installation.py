"""The wheel, installed in a new environment without a clone, in a folder with a space in its name.

The libraries are those of this environment: a new torch would be a download of gigabytes.
"""

import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorarlhf.runtime.files import read_json
from tests.test_packaging import build, source  # noqa: F401  (a fixture)

WITHOUT_CLONE = ("PYTHONPATH", "PYTHONHOME", "MYPYPATH", "VIRTUAL_ENV")


@pytest.fixture(scope="module")
def program(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The command `lorarlhf` of the wheel, in an environment of its own."""
    place = tmp_path_factory.mktemp("new") / "my tools"
    wheel = build("wheel", source, place / "wheel")
    venv.create(place / "env", with_pip=True)
    bin_folder = place / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    python = bin_folder / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, env=environment())
    paths = {name: str(place / "env") for name in ("base", "platbase")}
    (site,) = {sysconfig.get_path(name, "venv", vars=paths) for name in ("purelib", "platlib")}
    libraries = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(site) / "libraries.pth").write_text("\n".join(libraries) + "\n", encoding="utf-8")
    return bin_folder / "lorarlhf"


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in WITHOUT_CLONE}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a space in its name."""
    (tmp_path / "my work").mkdir()
    return tmp_path / "my work"


def run(program: Path, *words: str, cwd: Path, status: int = 0) -> str:
    """What a command prints."""
    done = subprocess.run(
        [program, *words], cwd=cwd, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_the_wheel_work_in_a_folder_with_a_space(program: Path, here: Path) -> None:
    where = [program.with_name("python"), "-c", "import lorarlhf; print(lorarlhf.__file__)"]
    done = subprocess.run(where, cwd=here, env=environment(), capture_output=True, text=True)
    assert "my tools" in done.stdout  # the wheel's modules, and not those of the checkout
    assert "3_dpo" in run(program, "recipe", "list", cwd=here)
    run(program, "recipe", "copy", "3_dpo", cwd=here)
    assert (here / "recipes" / "3_dpo.py").is_file()
    assert "Nothing is wrong." in run(program, "doctor", cwd=here)
    assert "is ready" in run(program, "new", "my assistant", cwd=here)
    assert (here / "my assistant" / "project.yaml").is_file()
    assert "0" in run(program, "votes", "my assistant", cwd=here)


@pytest.fixture
def address(program: Path, here: Path) -> Iterator[str]:
    """Where the pages of a new project answer."""
    run(program, "new", "my assistant", cwd=here)
    words = [program, "ui", "my assistant", "--no-model", "--no-browser", "--port", "0"]
    with subprocess.Popen(
        words, cwd=here, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://\S+", process.stderr.readline())
            assert found is not None
            yield found[0]
        finally:
            process.kill()


@pytest.mark.slow
def test_the_pages_of_the_wheel_answer(address: str) -> None:
    page = urllib.request.urlopen(address, timeout=60).read().decode()
    assert "my assistant" in page
    files = re.findall(r'(?:src|href)="(?:\./|/)?((?:static|assets)/[^"]+\.(?:js|css))"', page)
    assert files  # Gradio's, which come with the wheel's requirements
    for name in files:
        assert urllib.request.urlopen(f"{address}/{name}", timeout=60).status == 200


@pytest.mark.slow
def test_the_demo_of_the_wheel_runs(program: Path, here: Path) -> None:
    run(program, "demo", "--quick", "--out", "my demo", cwd=here)
    assert (here / "my demo" / "report.html").is_file()
    assert read_json(here / "my demo" / "run.json")["status"] == "done"
