"""The Runs page's button Export: a job that writes a new folder in the project."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorarlhf.cli.export_options import FORMS as KNOWN
from lorarlhf.project.jobs import DONE, list_jobs, read_job
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.runs import EXPORTS, FORMS, Runs
from tests.job_program import stand_in
from tests.run_folders import write_run
from tests.waiting import until

RUN = "0001-ppo"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """The page of a project with a policy and a reward role; its jobs run a stand-in."""
    with stand_in(tmp_path, monkeypatch) as project:
        write_run(project, RUN)
        write_run(project, "0002-reward", role="reward")
        yield Runs(project, project.store())


def test_an_export_is_a_job_with_a_new_folder(runs: Runs) -> None:
    project: Project = runs.project
    exports = project.folder.resolve() / EXPORTS
    said = runs.export("me", {"run": RUN, "form": "ollama"})["message"]
    assert said.startswith("Job 1 exports PPO") and str(exports / f"{RUN}-ollama") in said
    (job,) = list_jobs(project)
    run = str(project.folder.resolve() / "runs" / RUN)
    target = str(exports / f"{RUN}-ollama")
    assert job.argv == ("export", run, "--to", target, "--as", "ollama")
    until(lambda: read_job(job.file).state == DONE, 60)
    (exports / f"{RUN}-ollama").mkdir()
    runs.export("me", {"run": RUN, "form": "ollama"})
    assert list_jobs(project)[0].argv[3] == str(exports / f"{RUN}-ollama-2")
    for wrong in ({"run": RUN, "form": "zip"}, {"run": "0009-ppo", "form": "gguf"}, {"run": RUN}):
        with pytest.raises(UserError):
            runs.export("me", wrong)
    assert len(list_jobs(project)) == 2


def test_only_a_policy_has_the_button(runs: Runs) -> None:
    assert 'data-do="export"' in runs.details("me", {"run": RUN})["html"]
    assert 'data-do="export"' not in runs.details("me", {"run": "0002-reward"})["html"]


def test_the_forms_are_those_of_the_command() -> None:
    assert set(FORMS) == set(KNOWN)
    text = (Path(__file__).parents[1] / "ui/static/runs.html").read_text(encoding="utf-8")
    assert all(f'<option value="{form}">' in text for form in FORMS)
