"""Uploads to the hub by huggingface_hub's own library, against a hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from lorarlhf.cli.main import main
from lorarlhf.export.hub import DATASET, MODEL, Target, check_login, push, push_policy
from lorarlhf.export.upload_check import check_upload
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.project.project import create
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_json
from tests.fake_hub import READER, WRITER, Hub, Repo, hub, serve_hub

__all__ = ["hub"]  # a fixture


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags:\n- lorarlhf\n---\n\n# A policy\n")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(4096))
    return folder


def project_with_votes(folder: Path) -> Path:
    project = create(folder)
    store = project.store()
    answers = (("One.", "base"), ("Two.", "base"))
    rows = [
        ImportedVote(f"Question {n}?", answers, Verdict("ranked", [[0], [1]]), rater="Zebedee")
        for n in range(3)
    ]
    add_votes(store, rows)
    store.close()
    return project.folder


# ---- what is uploaded


def test_a_folder_is_uploaded_as_it_is_and_only_its_owner_sees_it(hub: Hub, export: Path) -> None:
    target = check_login("my-policy", MODEL)
    assert target == Target("ann/my-policy", MODEL)
    said: list[str] = []
    assert push(export, target, said.append) == f"{hub.address}/ann/my-policy"
    repo = hub.repos["ann/my-policy"]
    assert repo.kind == "model" and repo.private
    assert repo.files == {file.name: file.read_bytes() for file in export.iterdir()}
    assert said[0].startswith("Uploading 3 files")
    assert hub.tokens == {WRITER}


def test_a_second_upload_sends_what_has_changed(hub: Hub, export: Path) -> None:
    target = check_login("ann/my-policy", MODEL)
    push(export, target, lambda text: None)
    (export / "README.md").write_text("---\nlicense: mit\n---\n\n# A policy\n")
    hub.requests.clear()
    push(export, target, lambda text: None)
    repo = hub.repos["ann/my-policy"]
    assert repo.files["README.md"] == (export / "README.md").read_bytes()
    assert len(repo.commits) == 2
    # The weights are not sent again.
    assert hub.blobs and not [path for path, _ in hub.requests if "adapter_model" in path]


def test_a_public_repository_is_made_only_where_that_is_said(hub: Hub, export: Path) -> None:
    push(export, check_login("open", DATASET, public=True), lambda text: None)
    assert not hub.repos["ann/open"].private and hub.repos["ann/open"].kind == "dataset"


def test_nothing_private_goes_into_a_public_repository(hub: Hub, export: Path) -> None:
    hub.repos["ann/there"] = Repo("model", private=False)
    with pytest.raises(UserError, match="this repository is public, so nothing was uploaded"):
        push(export, check_login("ann/there", MODEL), lambda text: None)
    assert hub.repos["ann/there"].files == {}


def test_a_private_repository_stays_private(hub: Hub, export: Path) -> None:
    hub.repos["ann/there"] = Repo("model", private=True)
    said: list[str] = []
    push(export, check_login("ann/there", MODEL, public=True), said.append)
    assert hub.repos["ann/there"].private
    assert any("stays so until you change that" in text for text in said)


# ---- before the work


def test_without_a_token_it_says_how_to_log_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="nobody is logged in to the hub. Log in with `hf auth"):
        check_login("ann/x", MODEL)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (READER, "the token may only read"),
        ("hf_" + "x" * 34, "the hub does not know the token"),
    ],
)
def test_a_token_that_can_not_write_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=words) as refused:
        check_login("ann/x", MODEL)
    assert token not in str(refused.value)


@pytest.mark.parametrize("name", ["a/b/c", "", "with blanks", "ann/x--y", "https://host/ann/x"])
def test_a_name_that_can_be_no_repository_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(UserError, match="this can't be a repository"):
        check_login(name, MODEL)
    assert hub.requests == []


def test_offline_nothing_is_tried(hub: Hub, monkeypatch: pytest.MonkeyPatch, export: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        check_login("ann/x", MODEL)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        push(export, Target("ann/x", MODEL))


def test_a_hub_that_is_not_there_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub can't be asked who is logged in"):
        check_login("ann/x", MODEL)


def test_a_repository_of_somebody_else_is_refused(hub: Hub, export: Path) -> None:
    with pytest.raises(UserError, match="The token may not write to bob/x"):
        push(export, check_login("bob/x", MODEL), lambda text: None)
    assert hub.repos == {}


# ---- what must not leave


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("preferences.sqlite", "x", "is no part of an export"),
        ("model.bin", "x", "is no part of an export"),
        (".env", "HF_TOKEN=x", "is no part of an export"),
        ("notes.md", f"my token is {WRITER}", "line 1: there is a key"),
        ("train.jsonl", '{"prompt": "x"}\n{"prompt": "sk-' + "a" * 30 + '"}', "line 2: there is a"),
        ("export.json", '{"a": {"_name_or_path": "/old/place/base"}}', 'field "a._name_or_path"'),
        ("export.json", r'{"a": "C:\\Users\\ann\\base"}', 'field "a"'),
        ("Modelfile", f"FROM {sys.executable}", "line 1: /.* is a path of this machine"),
    ],
)
def test_what_must_not_leave_stops_the_upload(
    hub: Hub, export: Path, name: str, content: str, words: str
) -> None:
    (export / name).write_text(content)
    with pytest.raises(UserError, match=words):
        push(export, Target("ann/x", MODEL))
    assert hub.requests == []


def test_a_policys_files_name_the_base_and_no_path(hub: Hub, export: Path, tmp_path: Path) -> None:
    """PEFT's file names the folder of the base, which nobody else has."""
    run = tmp_path / "runs/ppo"
    run.mkdir(parents=True)
    base = {"base": "smollm2-135m", "base_path": str(tmp_path / "bases/smollm2-135m")}
    write_json(run / "run.json", {"stage": "ppo"} | base)
    config = {"base_model_name_or_path": base["base_path"], "r": 16, "target_modules": ["q_proj"]}
    write_json(export / "adapter_config.json", config)
    record = {"run": str(run), "made": "2026-11-30T09:00:00", "load_with": {"base": str(tmp_path)}}
    write_json(export / "export.json", record)
    said: list[str] = []
    push_policy(run, export, Target("ann/x", MODEL), said.append)
    files = hub.repos["ann/x"].files
    hub_id = "HuggingFaceTB/SmolLM2-135M-Instruct"
    named = config | {"base_model_name_or_path": hub_id}
    assert json.loads(files["adapter_config.json"]) == named
    expected = record | {"run": "ppo", "load_with": {"base": hub_id}}
    assert json.loads(files["export.json"]) == expected
    assert said[0].endswith("names in adapter_config.json, export.json.")
    assert str(tmp_path).encode() not in b"".join(files.values())


def test_the_licences_that_came_with_the_base_are_part_of_an_export(export: Path) -> None:
    names = ("LICENSE", "LICENSE-MODEL", "LICENCE.txt", "NOTICE", "USE_POLICY.md")
    for name in names:
        (export / name).write_text("Do as you like.\n")
    assert set(names) <= {str(file) for file in check_upload(export)}
    (export / "LICENSES").mkdir()
    (export / "LICENSES" / "id_rsa").write_text("x")
    with pytest.raises(UserError, match="no part of an export"):
        check_upload(export)


def test_a_link_to_another_place_stops_the_upload(export: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("x")
    (export / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match="no part of an export"):
        check_upload(export)


def test_ordinary_texts_pass(export: Path) -> None:
    (export / "README.md").write_text("See https://huggingface.co/org/base/tree/main and/or 1/2/3.")
    (export / "tokenizer.json").write_text('{"vocab": {"/usr/bin": 1}, "a": ["/usr/bin/python"]}')
    (export / "chat_template.jinja").write_text("{{ '</think>/n/m' }}")
    (export / "train.jsonl").write_text('{"prompt": "What is in /etc/hosts?"}')
    assert len(check_upload(export)) == 6
    with pytest.raises(UserError, match="holds no files"):
        (export / "empty").mkdir()
        check_upload(export / "empty")


# ---- the command


def test_the_command_uploads_the_votes(tmp_path: Path) -> None:
    project, out = project_with_votes(tmp_path / "mine"), tmp_path / "votes"
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITER}
    words = ["votes", str(project), "--export", "dataset", "--out", str(out), "--push", "my-votes"]
    with serve_hub() as hub:
        env |= {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "lorarlhf.cli", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        repo = hub.repos["ann/my-votes"]
        assert f"Uploaded to {hub.address}/datasets/ann/my-votes; only you can see it." in (
            done.stdout
        )
        asked = {path for path, _ in hub.requests}
    assert repo.kind == "dataset" and repo.private
    assert repo.files == {file.name: file.read_bytes() for file in out.iterdir()}
    assert set(repo.files) == {"README.md", "train.jsonl"}
    assert WRITER not in done.stdout + done.stderr
    whole = b"".join(repo.files.values())
    assert str(tmp_path).encode() not in whole and b"Zebedee" not in whole
    routes = ("whoami", "repos/create", "preupload", "commit", "validate-yaml", "ann/my-votes")
    assert all(any(route in path for route in routes) for path in asked), asked


def test_nothing_is_written_where_the_upload_will_not_be_possible(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    project, out = project_with_votes(tmp_path / "mine"), tmp_path / "votes"
    words = ["votes", str(project), "--export", "dataset", "--out", str(out), "--push", "my-votes"]
    assert main(words) == 2
    assert "hf auth login" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--export", "trl", "--out", "x.jsonl", "--push", "ann/x"], "--push belongs to"),
        (["--export", "trl", "--out", "x.jsonl", "--with-notes"], "--with-notes belongs to"),
        (["--with-raters"], "--with-raters belongs to"),
        (["--export", "dataset", "--out", "x", "--public"], "--public belongs to --push"),
        (["--export", "dataset"], "needs a folder to write"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    project = project_with_votes(tmp_path / "mine")
    assert main(["votes", str(project), *words]) == 2
    assert said in capsys.readouterr().err
