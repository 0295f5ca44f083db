"""The requests of the Train page, as plain functions: start a run, watch it, stop it, resume it.

A run is a job: a process of its own that outlives the page and the server (`project/jobs.py`).
"""

import json
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorarlhf.project import device_queue
from lorarlhf.project.jobs import (
    RUNNING,
    Job,
    find_job,
    list_jobs,
    resume_job,
    start_job,
    stop_job,
)
from lorarlhf.project.project import Project
from lorarlhf.project.rounds import DROPPED, KEPT, start_round
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.process import python_command
from lorarlhf_ui.train_curves import curves
from lorarlhf_ui.train_form import Kind, kinds_of
from lorarlhf_ui.train_html import earlier_html, estimate_html, job_sections, note_html, queue_html
from lorarlhf_ui.train_rounds import check_round, decide_round, round_html
from lorarlhf_ui.train_run import Rows, alarms, log_lines, messages, progress, samples
from lorarlhf_ui.votes import View

PARTS = ("alarms", "curves", "samples", "log")
NOTHING = "Nothing has been started on this page yet. Choose what to train below."
CARD_SECONDS = 10.0
KEPT_SECONDS, ERROR_KEPT_SECONDS = 120.0, 5.0
"""How long an estimate counts: votes and runs may be added, and mistakes mended."""
MOST_SECONDS = 600
CHECKED_SECONDS, LOOK_SECONDS = 20.0, 0.05
"""How long the start waits for the estimate, which knows what is wrong. Otherwise a job that can't
run would say so only when its turn comes. The run checks the same once more."""
DOUBLE_CLICK = 1.0
Wanted = tuple[str, ...]
"""A stage and the options of its command."""


class Training:
    """The requests of the Train page.

    Args:
        project: whose runs are started.
        stages: of the stage table.
    """

    def __init__(self, project: Project, stages: Iterable[Stage]) -> None:
        self.project, self.kinds = project, kinds_of(stages)
        self._card = -CARD_SECONDS, ""
        self.estimates = Estimates(project)
        self._folder = project.folder.resolve()
        self._metrics, self._samples = Rows(), Rows()
        self._stopped: dict[int, float] = {}  # when each job was last asked to stop

    def look(self, rater: str, data: View) -> View:
        """Where everything stands: `sections`, HTML by name; `busy`, whether anything goes on.

        It shows the job that runs, or else the newest one.
        """
        jobs, tickets = list_jobs(self.project), device_queue.queue()
        now = next((job for job in jobs if job.state == RUNNING), jobs[0] if jobs else None)
        sections = {"now": note_html(NOTHING), **dict.fromkeys(PARTS, "")}
        sections |= {} if now is None else self._job(now, tickets)
        sections["queue"] = queue_html(tickets, self._folder)
        sections["earlier"] = earlier_html([job for job in jobs if job is not now])
        sections["round"] = self._newest_round()
        return {"sections": sections, "busy": bool(tickets) or any(job.alive for job in jobs)}

    def estimate(self, rater: str, data: View) -> View:
        """Memory and time of what is chosen: `html`; `busy`, while they are being computed.

        Raises:
            UserError: the settings are wrong, or the project lacks what the stage needs.
        """
        kind, settings = self._chosen(data)
        found = self.estimates.get(kind, settings)
        if found is None:
            return {"busy": True}
        if "error" in found:
            raise UserError(found["error"])
        values = {key: _shown(value) for key, value in found.get("settings", {}).items()}
        return {"busy": False, "html": estimate_html(found), "values": values}

    def start(self, rater: str, data: View) -> View:
        """Start what is chosen as a job.

        Raises:
            UserError: the settings are wrong, or nothing can be written.
        """
        kind, settings = self._chosen(data)
        words = [kind.stage, str(self._folder), *kind.words(settings)]
        if data.get("anyway") is True:
            words.append("--no-memory-check")
        found = self.estimates.wait(kind, settings, CHECKED_SECONDS)
        if found is not None and "error" in found:
            raise UserError(found["error"])
        start_job(self.project, words, kind.title(settings), kind.stage)
        return self.look(rater, {})

    def tonight(self, rater: str, data: View) -> View:
        """Start a round as a job.

        Raises:
            UserError: a round waits or runs already, the last one is not decided, there are too few
                new votes, or nothing can be written.
        """
        check_round(self.project)
        start_round(self.project)
        return self.look(rater, {})

    def stop(self, rater: str, data: View) -> View:
        """Ask a job to stop; see `stop_job`.

        After the first click the button means something else, so a double click counts once.
        """
        job, now = self._named(data), time.monotonic()
        if now - self._stopped.get(job.id, -DOUBLE_CLICK) >= DOUBLE_CLICK:
            self._stopped[job.id] = now
            stop_job(job)
        return self.look(rater, {})

    def resume(self, rater: str, data: View) -> View:
        """Let a job go on."""
        job = self._named(data)
        resume_job(job)
        self._stopped.pop(job.id, None)
        return self.look(rater, {})

    def keep(self, rater: str, data: View) -> View:
        """Keep a round: the next one starts from its policy."""
        return self._decided(data, KEPT)

    def drop(self, rater: str, data: View) -> View:
        """Drop a round: nothing starts from its policy by itself, and its votes count again."""
        return self._decided(data, DROPPED)

    # ---- parts

    def _decided(self, data: View, verdict: str) -> View:
        decide_round(self.project, data.get("round"), verdict)
        self._card = -CARD_SECONDS, ""
        return self.look("", {})

    def _job(self, job: Job, tickets: list[device_queue.Ticket]) -> dict[str, str]:
        ours = [(ticket.project, ticket.job) for ticket in tickets]
        mine = (self._folder, job.id)
        ahead = ours.index(mine) if mine in ours else 0
        lines = log_lines(job.log)
        run = job.run or self._run_made_by(job)
        rows = self._metrics.of(run / "metrics.jsonl") if run else []
        answers = self._samples.of(run / "samples.jsonl") if run else []
        parts = job_sections(
            job, progress(lines), alarms(rows), samples(answers), messages(lines), ahead
        )
        return parts | {"curves": curves(rows, job.stage)}

    def _run_made_by(self, job: Job) -> Path | None:
        """The newest run of a job that makes several, as a round does; None if there is none."""
        if job.stage or job.started is None:
            return None
        for run in self.project.runs():
            try:
                written = (run / "run.json").stat().st_mtime
            except OSError:  # it has not begun
                continue
            if job.started <= written <= (job.ended or written) + 1:
                return run
        return None

    def _newest_round(self) -> str:
        """The card; it reads votes and results, so it is not made anew for every request."""
        at, card = self._card
        if time.monotonic() - at > CARD_SECONDS:
            card = round_html(self.project)
            self._card = time.monotonic(), card
        return card

    def _named(self, data: View) -> Job:
        number = data.get("job")
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError("The server does not know this job. Reload the page.")
        return find_job(self.project, number)

    def _chosen(self, data: View) -> tuple[Kind, dict[str, str]]:
        kind, settings = self.kinds.get(str(data.get("kind"))), data.get("settings")
        if kind is None or not isinstance(settings, dict):
            raise UserError("The server does not know this choice. Reload the page.")
        typed = {str(key): str(value).strip() for key, value in settings.items()}
        return kind, {key: value for key, value in typed.items() if value}


def _shown(value: Any) -> str:
    """A setting's value as one would type it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


class Estimates:
    """Estimates by `lorarlhf estimate`, in a process of its own, since they need torch.

    One is computed at a time. If another one is wanted meanwhile, it comes next, and what was
    wanted before it is forgotten.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self._known: dict[Wanted, tuple[float, dict[str, Any]]] = {}
        self._next: Wanted | None = None
        self._working: Wanted | None = None
        self._lock = threading.Lock()

    def known(self, kind: Kind, settings: Mapping[str, str]) -> dict[str, Any] | None:
        """The estimate if there is a recent one."""
        wanted = (kind.stage, *kind.words(settings))
        at, found = self._known.get(wanted, (0.0, {}))
        kept = ERROR_KEPT_SECONDS if "error" in found else KEPT_SECONDS
        return found if found and time.monotonic() - at < kept else None

    def get(self, kind: Kind, settings: Mapping[str, str]) -> dict[str, Any] | None:
        """The estimate, or None while it is computed; `error` in it says why there is none.

        Raises:
            UserError: the settings can't be those of a command.
        """
        if (found := self.known(kind, settings)) is not None:
            return found
        wanted = (kind.stage, *kind.words(settings))
        with self._lock:
            if self._working == wanted:
                return None
            self._next = wanted
            if self._working is None:
                self._working = wanted
                threading.Thread(target=self._work, daemon=True, name="estimate").start()
        return None

    def wait(
        self, kind: Kind, settings: Mapping[str, str], seconds: float
    ) -> dict[str, Any] | None:
        """The estimate as soon as it is there; None if it takes longer."""
        until = time.monotonic() + seconds
        while (found := self.get(kind, settings)) is None and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        return found

    def _work(self) -> None:
        while True:
            with self._lock:
                self._working, self._next = self._next, None
                wanted = self._working
            if wanted is None:
                return
            found = self._compute(wanted)
            self._known[wanted] = time.monotonic(), found

    def _compute(self, wanted: Wanted) -> dict[str, Any]:
        stage, *words = wanted
        folder = str(self.project.folder.resolve())
        asked = ("estimate", "--json", "--stage", stage, "--project", folder, *words)
        command = python_command("lorarlhf.cli", *asked)
        try:
            done = subprocess.run(command, capture_output=True, timeout=MOST_SECONDS)
            if done.returncode == 0:
                return dict(json.loads(done.stdout))
        except (OSError, TypeError, ValueError, subprocess.TimeoutExpired) as error:
            return {"error": f"The estimate could not be computed ({error})."}
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return {"error": said[-1] if said else "The estimate could not be computed."}
