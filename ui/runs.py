"""The requests of the Runs page, as plain functions; `runs_page.py` only shows the results."""

from itertools import count
from pathlib import Path
from typing import Any

from lorarlhf.evaluation.run_wins import wins_by_run
from lorarlhf.preferences.store import Store
from lorarlhf.project.jobs import job_title, start_job
from lorarlhf.project.project import Project
from lorarlhf.project.run_deletion import delete_run, dependents, finish_deletions, votes_files
from lorarlhf.project.run_labels import set_dropped, write_title
from lorarlhf.project.run_list import RUNNING, RunInfo, folder_bytes, lineage, read_runs
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.runs_curves import MOST_RUNS, read_curves
from lorarlhf_ui.runs_html import Shown, curves_html, details_html, goes_html, table_html, tree_html
from lorarlhf_ui.votes import View

GONE = "This run is no longer there. Somebody has deleted it."
FORMS = ("gguf", "ollama", "merged", "adapter")
EXPORTS = "exports"
"""The folder of the project in which the page's exports are."""


class Runs:
    """The requests of the Runs page, for owners of the project.

    Args:
        project: its runs are shown.
        store: its votes; a store of its own, so that votes do not wait while it reads.
    """

    def __init__(self, project: Project, store: Store) -> None:
        self.project, self.store = project, store
        self._sizes: dict[str, tuple[Any, int]] = {}
        finish_deletions(project)  # one that was killed

    def runs(self, rater: str, data: View) -> View:
        """The table of all runs and their tree; whether one is running."""
        runs = read_runs(self.project)
        wins = wins_by_run(self.store, self.project.evaluations())
        shown = [Shown(run, wins.get(run.name), self._bytes(run)) for run in runs]
        running = any(run.state == RUNNING for run in runs)
        names = [run.name for run in runs]
        tree = tree_html(lineage(runs))
        return {"table": table_html(shown), "tree": tree, "running": running, "names": names}

    def details(self, rater: str, data: View) -> View:
        """What else is known of one `run`; its title; and what a deletion would remove.

        Raises:
            UserError: there is no such run.
        """
        run, runs = self._run(data)
        needed = dependents(self.project, run, runs, self.store)
        files = votes_files(run.folder)
        count = self._bytes(run) + sum(file.stat().st_size for file in files)
        return {
            "html": details_html(run, needed),
            "goes": goes_html(run, count, [file.name for file in files]),
            "needed": needed,
            "title": run.title,
            "label": run.label,
        }

    def curves(self, rater: str, data: View) -> View:
        """The curves of some `runs` over each other, of the `metric` or of one that they have.

        Raises:
            UserError: there is no such run, or there are more than `MOST_RUNS`.
        """
        wanted = data.get("runs")
        names = wanted if isinstance(wanted, list) else []
        runs = [run for run in read_runs(self.project) if run.name in names]
        if len(runs) > MOST_RUNS:
            raise UserError(f"Up to {MOST_RUNS} runs can be told apart in one picture.")
        found = read_curves([run.folder for run in runs], str(data.get("metric") or ""))
        return {
            "html": curves_html(found, runs),
            "metrics": [[name, words] for name, words in found.metrics.items()],
            "metric": found.metric,
        }

    def rename(self, rater: str, data: View) -> View:
        """Give a `run` a `title`, or take it away.

        Raises:
            UserError: there is no such run, or it can't have this title.
        """
        run, _ = self._run(data)
        title = write_title(run.folder, str(data.get("title") or "")).title
        if not title:
            return {"message": f"{run.name} has no title any more."}
        return {"message": f"{run.name} is called “{title}” now."}

    def keep(self, rater: str, data: View) -> View:
        """Drop a `run`, or keep it again if `kept`.

        Raises:
            UserError: there is no such run.
        """
        run, _ = self._run(data)
        kept = data.get("kept") is True
        set_dropped(run.folder, not kept)
        if kept:
            return {"message": f"{run.label} is kept."}
        return {
            "message": f"{run.label} is dropped: no list of models shows it, and nothing starts "
            "from it by itself. You can keep it again."
        }

    def delete(self, rater: str, data: View) -> View:
        """Delete a `run` for good.

        Raises:
            UserError: there is no such run, it is in use, or something depends on it.
        """
        run, _ = self._run(data)
        delete_run(self.project, run.name, self.store)
        return {"message": f"{run.label} ({run.name}) is deleted."}

    def export(self, rater: str, data: View) -> View:
        """Export the policy of a `run` in a `form`, as a job.

        Raises:
            UserError: there is no such run or form, or nothing can be written.
        """
        run, _ = self._run(data)
        form = str(data.get("form"))
        if form not in FORMS:
            raise UserError(f"An export is one of {', '.join(FORMS)}.")
        folder = _new_folder(self.project.folder / EXPORTS, f"{run.name}-{form}")
        words = ["export", str(run.folder.resolve()), "--to", str(folder), "--as", form]
        job = start_job(self.project, words, job_title(f"Export of {run.label}", [form]))
        return {
            "message": f"Job {job.id} exports {run.label}; the Train page shows how far it is. The "
            f"result will be in {folder}."
        }

    def _run(self, data: View) -> tuple[RunInfo, list[RunInfo]]:
        runs = read_runs(self.project)
        found = next((run for run in runs if run.name == data.get("run")), None)
        if found is None:
            raise UserError(GONE)
        return found, runs

    def _bytes(self, run: RunInfo) -> int:
        """The size of its folder, which is counted once as long as its record stays the same."""
        try:
            stamp = (run.folder / "run.json").stat().st_mtime_ns
        except OSError:
            stamp = None
        known = self._sizes.get(run.name)
        if known is None or known[0] != stamp or stamp is None or run.state == RUNNING:
            known = self._sizes[run.name] = (stamp, folder_bytes(run.folder))
        return known[1]


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that is not there yet; its parent is made."""
    try:
        parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{parent} can't be made ({error.strerror}).") from error
    taken = (parent / (name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(folder for folder in taken if not folder.exists()).resolve()
