"""Who may use the endpoint: keys, hosts, other sites; where it listens."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lorarlhf.preferences.thumbs import NamedAnswer
from lorarlhf.project.project import Project, create
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.sockets import is_loopback, listen
from lorarlhf.serve import server
from lorarlhf.serve.guard import Access, Guard
from lorarlhf.serve.key import own_key, read_key
from lorarlhf.serve.remembered import Remembered

KEY = "sk-quiet-harbour-0123456789"
SITE = "http://localhost:3000"


async def echo(request: Any) -> JSONResponse:
    return JSONResponse({"read": len(await request.body())})


def client(access: Access, base_url: str = "http://127.0.0.1:7870") -> TestClient:
    paths = ("/v1/models", "/v1/chat/completions", "/health")
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in paths]
    return TestClient(Guard(Starlette(routes=routes), access), base_url=base_url)


# ---- without a key


@pytest.mark.parametrize("host", ["127.0.0.1:7870", "localhost", "LOCALHOST:1", "[::1]:7870"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert client(Access()).get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.nip.io", "192.168.1.7:7870", "localhost.evil.example", ""]
)
def test_other_host_names_are_refused(host: str) -> None:
    for path in ("/v1/models", "/health"):
        answer = client(Access()).get(path, headers={"host": host})
        assert answer.status_code == 421, host
        assert "this machine alone" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": SITE},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_refused(headers: dict[str, str]) -> None:
    for access in (Access(), Access(key=KEY)):
        sent = headers | {"authorization": f"Bearer {KEY}", "content-type": "text/plain"}
        answer = client(access).post("/v1/chat/completions", content="{}", headers=sent)
        assert answer.status_code == 403 and "Refused" in answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers
        asked = client(access).options("/v1/chat/completions", headers=headers)
        assert asked.status_code in (403, 405) or not headers.get("origin")


def test_own_pages_and_plain_programs_are_served() -> None:
    for headers in ({}, {"origin": "http://127.0.0.1:7870"}, {"sec-fetch-site": "none"}):
        answer = client(Access()).post("/v1/chat/completions", content="{}", headers=headers)
        assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


def test_a_named_site_may_ask_from_a_browser() -> None:
    one = client(Access(origins={SITE}))
    asked = one.options(
        "/v1/chat/completions",
        headers={"origin": SITE, "access-control-request-method": "POST"},
    )
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == SITE
    assert "Authorization" in asked.headers["access-control-allow-headers"]
    answer = one.post("/v1/chat/completions", content="{}", headers={"origin": SITE})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == SITE
    assert answer.headers["vary"] == "Origin"
    other = one.get("/v1/models", headers={"origin": "http://localhost:3001"})
    assert other.status_code == 403


# ---- with a key


@pytest.mark.parametrize(
    "sent", [None, "", KEY, f"Basic {KEY}", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
)
def test_a_wrong_key_is_refused(sent: str | None) -> None:
    headers = {} if sent is None else {"authorization": sent}
    answer = client(Access(key=KEY)).get("/v1/models", headers=headers)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert client(Access(key=KEY)).get("/health").status_code == 200


def test_the_right_key_serves_under_any_name() -> None:
    headers = {"authorization": f"Bearer {KEY}", "host": "models.example.org"}
    assert client(Access(key=KEY)).get("/v1/models", headers=headers).status_code == 200


def test_large_bodies_are_refused() -> None:
    sent = {"content-length": str(9 * 2**20)}
    answer = client(Access()).post("/v1/chat/completions", content=b"x", headers=sent)
    assert answer.status_code == 413
    sent = {"content-length": "many"}
    answer = client(Access()).post("/v1/chat/completions", content=b"x", headers=sent)
    assert answer.status_code == 400


# ---- keys in files


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key, new = own_key(tmp_path)
    assert new and len(key) > 40 and own_key(tmp_path) == (key, False)
    file = tmp_path / "serve.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text() == f"{key}\n"
    assert os.listdir(tmp_path) == ["serve.key"]


@pytest.mark.parametrize("text", ["", "short", "two words in one line ....", "ä" * 20])
def test_files_without_a_key(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(UserError, match="holds no key"):
        read_key(tmp_path / "key")


def test_a_key_that_others_can_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "key").chmod(0o644)
    assert read_key(tmp_path / "key") == KEY and "chmod 600" in capsys.readouterr().err
    with pytest.raises(UserError, match="can't be read"):
        read_key(tmp_path / "none")


def test_beyond_this_machine_there_is_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = create(tmp_path / "mine")

    def key_of(**more: Any) -> str:
        options = server.Options(str(project.folder), **({"host": "127.0.0.1", "port": 0} | more))
        return server._key(options, server.Models(options.target))

    assert key_of() == "" and not (project.folder / "serve.key").exists()
    key = key_of(host="0.0.0.0")
    assert key in capsys.readouterr().err
    assert key_of(host="192.168.1.7") == key and key not in capsys.readouterr().err
    (tmp_path / "other").write_text(KEY)
    (tmp_path / "other").chmod(0o600)
    assert key_of(key_file=str(tmp_path / "other")) == KEY


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rows": 0}, "--rows is 1 or more"),
        ({"waiting": 0}, "--waiting is 1 or more"),
        ({"origins": ("localhost:3000",)}, "is no origin"),
        ({"origins": ("*",)}, "is no origin"),
        ({"origins": ("http://localhost:3000/x",)}, "is no origin"),
        ({"target": "nowhere"}, "there is no such folder"),
        ({"host": "203.0.113.5"}, "does not have"),
        ({"port": 70_000}, "can't use port 70000"),
    ],
)
def test_options_that_do_not_work(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    project: Project = create(tmp_path / "mine")
    plain = {"target": str(project.folder), "host": "127.0.0.1", "port": 0}
    with pytest.raises(UserError, match=said):
        server.serve(server.Options(**(plain | more)))


def test_a_port_that_is_taken_says_what_to_do(tmp_path: Path) -> None:
    project = create(tmp_path / "mine")
    (taken, *rest) = listen("127.0.0.1", 0, "A test")
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match=f"can't use port {port} .* 0 takes a free one"):
        server.serve(server.Options(str(project.folder), "127.0.0.1", port))
    for one in (taken, *rest):
        one.close()


def test_what_loopback_is() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.7", "example.org")))


# ---- answers that are remembered


def test_the_newest_answers_are_remembered_by_their_owner_alone(tmp_path: Path) -> None:
    def named(number: int) -> NamedAnswer:
        return NamedAnswer(f"chatcmpl-{number}#0", "Why?", f"secret {number} ä", "base", {"a": 1})

    kept = Remembered(tmp_path, most=3)
    for number in range(5):
        kept.keep([named(number)])
    assert stat.S_IMODE((tmp_path / "serve.sqlite").stat().st_mode) == 0o600
    again = Remembered(tmp_path, most=3)
    assert [again.find(f"chatcmpl-{n}#0") for n in range(5)] == [None, None, *map(named, (2, 3, 4))]
    assert b"secret 1" not in (tmp_path / "serve.sqlite").read_bytes()


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "serve.sqlite").write_text("not a database at all, but a text" * 50)
    with pytest.raises(UserError, match="--no-feedback"):
        Remembered(tmp_path)


def test_a_file_that_breaks_later_is_named_in_the_refusal(tmp_path: Path) -> None:
    kept = Remembered(tmp_path)
    kept.path.write_bytes(b"no database " * 100)
    with pytest.raises(UserError, match=r"serve\.sqlite can't be read"):
        kept.find("chatcmpl-1#0")
