"""The command `lorarlhf ui`: who can use the pages, and what the terminal shows."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from lorarlhf.preferences.accounts import set_password
from lorarlhf.project.project import create
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import app


def words(folder: Path, **more: object) -> Namespace:
    """The command line as the parser gives it."""
    plain = {"project": str(folder), "port": 0, "no_browser": True, "no_model": True, "set": []}
    return Namespace(**(plain | {"rater": "me", "lan": False, "base": None} | more))


def test_lan_is_refused_before_somebody_can_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = create(tmp_path / "mine")
    served = []
    monkeypatch.setattr(app, "_serve", lambda *output: served.append(output))
    with pytest.raises(UserError, match="raters need passwords. Add one first: `lorarlhf raters"):
        app.main(words(project.folder, lan=True))
    assert served == []
    set_password(project.store(), "ann", "quiet harbour 7")
    app.main(words(project.folder, lan=True))
    ((guard, sock, _),) = served
    assert guard._access.login and sock.getsockname()[0] == "0.0.0.0"
    sock.close()
    app.main(words(project.folder))
    guard, sock, _ = served[1]
    assert not guard._access.login and sock.getsockname()[0] == "127.0.0.1"
    sock.close()


def test_lan_prints_every_address_with_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(app, "addresses", lambda: ["192.168.1.5", "10.0.0.7"])
    app._announce(7860, words(tmp_path, lan=True))
    output = capsys.readouterr().err
    for address in ("192.168.1.5", "10.0.0.7"):
        assert f"For others in this network: http://{address}:7860\n" in output
    assert sum(len(line) > 20 and not line.isascii() for line in output.splitlines()) > 20
    app._announce(7860, words(tmp_path))
    assert capsys.readouterr().err == "The pages are at http://127.0.0.1:7860 (Ctrl-C ends them).\n"


def test_gradio_imports_without_stubs_and_is_complete() -> None:
    """Its own sources are not parsed meanwhile, and afterwards `inspect` is as it was."""
    code = (
        "import inspect; before = inspect.getfile\n"
        "from lorarlhf_ui import gradio_startup\n"
        "import gradio as gr\n"
        "assert inspect.getfile is before\n"
        "with gradio_startup.without_apps(), gr.Blocks() as blocks: gr.Textbox().change(None)\n"
        "assert blocks.app is None and gr.routes.App.create_app(blocks) is not None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
