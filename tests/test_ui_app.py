"""The command `lorarlhf ui`: who can use the pages, and what the terminal shows."""

import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.preferences.accounts import set_password
from lorarlhf.project.project import create
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import app, network


def words(folder: Path, **more: object) -> Namespace:
    """The command line as the parser gives it."""
    plain = {"project": str(folder), "port": 0, "no_browser": True, "no_model": True, "set": []}
    plain |= {"rater": "me", "lan": False, "base": None}
    plain |= {"allowed_host": [], "root_path": ""}
    return Namespace(**(plain | more))


def addresses_of(sockets: list[socket.socket]) -> list[str]:
    """Where they listen, all on one port; they are closed. A machine may have no IPv6."""
    names = [sock.getsockname() for sock in sockets]
    assert len({name[1] for name in names}) == 1
    for sock in sockets:
        sock.close()
    return [name[0] for name in names] + ["::1"] * (not IPV6)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = has_ipv6()


def test_lan_is_refused_before_somebody_can_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = create(tmp_path / "mine")
    served = []
    monkeypatch.setattr(app, "_serve", lambda *output: served.append(output))
    with pytest.raises(
        UserError, match="raters need passwords. Add yourself first: `lorarlhf raters"
    ):
        app.main(words(project.folder, lan=True))
    assert served == []
    set_password(project.store(), "ann", "quiet harbour 7")
    app.main(words(project.folder, lan=True))
    ((guard, sockets, _),) = served
    assert guard._access.login and addresses_of(sockets) == ["0.0.0.0", "::1"]
    app.main(words(project.folder))
    guard, sockets, _ = served[1]
    assert not guard._access.login and addresses_of(sockets) == ["127.0.0.1", "::1"]


def test_lan_prints_every_address_with_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(app, "addresses", lambda: ["192.168.1.5", "10.0.0.7"])
    monkeypatch.setattr(app, "in_container", lambda: False)
    app._announce(7860, words(tmp_path, lan=True))
    output = capsys.readouterr().err
    for address in ("192.168.1.5", "10.0.0.7"):
        assert f"For others in this network: http://{address}:7860\n" in output
    assert sum(len(line) > 20 and not line.isascii() for line in output.splitlines()) > 20
    app._announce(7860, words(tmp_path))
    assert capsys.readouterr().err == "The pages are at http://127.0.0.1:7860 (Ctrl-C ends them).\n"


def test_in_a_container_its_own_addresses_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Others reach the port that it publishes, and not the addresses that it has within."""
    monkeypatch.setattr(network, "_CONTAINER_SIGNS", (tmp_path / ".dockerenv",))
    monkeypatch.setattr(app, "addresses", lambda: ["172.17.0.2"])
    app._announce(7860, words(tmp_path, lan=True))
    assert "For others in this network: http://172.17.0.2:7860" in capsys.readouterr().err
    (tmp_path / ".dockerenv").touch()
    app._announce(7860, words(tmp_path, lan=True))
    said = capsys.readouterr().err
    assert "-p 127.0.0.1:7860:7860" in said and "--allowed-host" in said
    assert "172.17.0.2" not in said


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


def test_a_proxy_needs_a_login_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = create(tmp_path / "mine")
    served: list[Any] = []
    monkeypatch.setattr(app, "_serve", lambda *output: served.append(output))
    for options in ({"allowed_host": ["rate.example.org"]}, {"root_path": "/x"}):
        with pytest.raises(UserError, match="raters need passwords. Add yourself first"):
            app.main(words(project.folder, **options))
    set_password(project.store(), "ann", "quiet harbour 7")
    for name in ("https://rate.example.org", "rate.example.org:8443", "a b", "", "rate.org/x"):
        with pytest.raises(UserError, match="is no host name"):
            app.main(words(project.folder, allowed_host=[name]))
    for path in ("x", "/x y", "/../x", "/login", "/chat/x", "//x", "/x?", "https://x"):
        with pytest.raises(UserError, match="can't be used"):
            app.main(words(project.folder, root_path=path))
    assert served == []
    app.main(words(project.folder, allowed_host=["Rate.Example.ORG."], root_path="/rate/me/"))
    ((guard, sockets, _),) = served
    assert addresses_of(sockets) == ["127.0.0.1", "::1"]  # the proxy is on this machine
    access = guard._access
    assert access.login and access.proxied and access.root == "/rate/me"
    assert "rate.example.org" in access.hosts and access.project == "mine"
