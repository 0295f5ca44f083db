"""Downloads of votes, behind the real guard."""

import io
import json
import os
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import fastapi
from starlette.testclient import TestClient

from lorarlhf.cli.export_votes import dataset_zip
from lorarlhf.preferences.accounts import log_in, set_password
from lorarlhf.preferences.exports import EXPORTS
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import create
from lorarlhf_ui.downloads import FORMS, add_files
from lorarlhf_ui.login import COOKIE
from lorarlhf_ui.security import Access, Guard
from tests.history_votes import HERE, PASSWORD, filled_store, given


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled_store(tmp_path)


def client(store: Store, *, login: bool) -> TestClient:
    app = fastapi.FastAPI()
    add_files(app, store, everybody=not login)
    access = Access(frozenset({"localhost"}), login, "me")
    return TestClient(Guard(app, store, access), HERE, follow_redirects=False)


def rows_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.content.decode().splitlines()]


def test_every_form_is_offered() -> None:
    assert set(FORMS) == set(EXPORTS)


@pytest.mark.parametrize("form", sorted(EXPORTS))
def test_a_download_holds_what_the_export_does(store: Store, form: str) -> None:
    answer = client(store, login=False).get(f"/files/votes?form={form}&scope=all&purpose=all")
    assert rows_of(answer) == json.loads(json.dumps(EXPORTS[form](store.votes()).rows))
    assert answer.headers["content-disposition"] == f'attachment; filename="votes-{form}.jsonl"'
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_download_is_of_ones_own_training_votes_unless_more_is_asked(store: Store) -> None:
    pages = client(store, login=False)
    assert [row["prompt"] for row in rows_of(pages.get("/files/votes?form=own"))] == [
        "Question 1?",
        "Question 2?",
    ]
    assert len(rows_of(pages.get("/files/votes?form=own&purpose=compare"))) == 1
    assert len(rows_of(pages.get("/files/votes?form=own&scope=all&purpose=all"))) == 5
    assert rows_of(pages.get("/files/votes?form=demonstrations")) == []
    for wrong in ("form=xml", "scope=ann", "purpose=x", "form=../own"):
        answer = pages.get(f"/files/votes?{wrong}")
        assert answer.status_code == 400 and answer.headers["content-type"].startswith("text/plain")
    assert pages.get("/files/votes", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_download_under_a_login(store: Store) -> None:
    set_password(store, "ann", PASSWORD)
    pages = client(store, login=True)
    assert pages.get("/files/votes?form=own").status_code == 401
    pages.cookies.set(COOKIE, log_in(store, "ann"))
    own = rows_of(pages.get("/files/votes?form=own&purpose=all"))
    assert [row["rater"] for row in own] == ["ann"]
    assert pages.get("/files/votes?form=own&scope=all").status_code == 400


def test_odd_characters_neither_split_a_row_nor_stop_a_download(store: Store) -> None:
    odd = {"origin": {"half a character": "\ud83d"}, "prompt": "One\u2028two \U0001f600"}
    add_votes(store, [given(7, **odd)])
    content = client(store, login=False).get("/files/votes?form=own").content
    own = [json.loads(line) for line in content.decode().split("\n") if line]
    assert {name: own[-1][name] for name in odd} == odd


def test_a_data_set_is_a_zip_of_the_folder(store: Store, tmp_path: Path) -> None:
    project = create(tmp_path / "mine")
    app = fastapi.FastAPI()
    add_files(app, store, True, partial(dataset_zip, project))
    pages = TestClient(Guard(app, store, Access(frozenset({"localhost"}), False, "me")), HERE)
    answer = pages.get("/files/votes?form=dataset&scope=all&purpose=all")
    assert answer.status_code == 200, answer.text
    named = answer.headers["content-disposition"]
    assert named == 'attachment; filename="votes-dataset.zip"'
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == ["votes/README.md", "votes/train.jsonl"]
    rows = archive.read("votes/train.jsonl").decode().splitlines()
    assert len(rows) == len(EXPORTS["trl"](store.votes()).rows)
    assert "# Preference votes of mine" in archive.read("votes/README.md").decode()
    nothing = pages.get("/files/votes?form=dataset&scope=mine&purpose=wrong")
    assert nothing.status_code == 400
    # Without a maker the form is unknown.
    assert client(store, login=False).get("/files/votes?form=dataset").status_code == 400
