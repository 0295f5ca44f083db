"""The sections of the Train page as safe HTML: a job as it stands, the queue, earlier jobs.

Whatever models, commands or people wrote is escaped, or drawn by `markdown.render`.
"""

import html
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lorarlhf.evaluation.report_format import duration, number
from lorarlhf.project.device_queue import Ticket
from lorarlhf.project.jobs import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    WAITING,
    Job,
)
from lorarlhf_ui.markdown import prompt_html, render
from lorarlhf_ui.train_run import Progress, Sample

Row = Mapping[str, Any]
SHOWN_EARLIER = 20
GOES_ON = "Resume it, and it goes on after its last checkpoint."
STOP_LABELS = ("Stop after this step", "Stop at once", "End the processes")


def note_html(text: str) -> str:
    """A sentence instead of a section."""
    return f'<p class="faint">{html.escape(text)}</p>'


# ---- a job


def job_sections(
    job: Job,
    step: Progress | None,
    alarms: Sequence[Row],
    samples: Sequence[Sample],
    lines: Sequence[str],
    ahead: int = 0,
) -> dict[str, str]:
    """A job as it stands, in parts that are drawn anew only when they change.

    Args:
        step: its newest progress bar.
        lines: the end of its log.
        ahead: how many jobs stand before it in the queue.
    """
    head = (
        f'<div class="job" data-state="{job.state}"><h3>{html.escape(job.title)} '
        f"{badge(job.state)}</h3>"
        f'<p class="summary">{html.escape(standing(job, step, ahead))}</p>'
        f"{_bar(job, step)}{buttons(job)}</div>"
    )
    parts = {"alarms": alarms_html(alarms), "samples": samples_html(samples)}
    return {"now": head, "log": log_html(job, lines)} | parts


def badge(state: str) -> str:
    """The state in one word."""
    return f'<span class="badge {state}">{state}</span>'


def standing(job: Job, step: Progress | None, ahead: int = 0) -> str:
    """Where a job stands, in a sentence or two."""
    name = f" Its run is {job.run.name}." if job.run else ""
    took = _took(job)
    if job.state == WAITING:
        before = f"{ahead} other job{'s' * (ahead != 1)}" if ahead else "the device"
        return f"It waits for {before}."
    if job.state == RUNNING:
        left = f" {left_words(step)}" if step else " It is getting ready."
        stopping = _stopping(job)
        return f"It has run for {took}.{stopping or left}{name}"
    ends = {
        DONE: f"It is done, after {took}.",
        STOPPED: f"It was stopped{_after(job)}{_saved(job)}",
        FAILED: f"It failed. {job.message}".strip(),
        INTERRUPTED: "Its processes have ended before it was done, as when the machine is switched "
        f"off. {GOES_ON}",
    }
    if job.state == STOPPED and job.started is None:
        return "It was stopped before its turn came."
    return f"{ends[job.state]}{name}"


def _saved(job: Job) -> str:
    """What a stop has kept: only the first wish lets the running step end."""
    return f". {GOES_ON}" if job.stops > 1 else ", and what it had done is saved."


def left_words(step: Progress) -> str:
    """How far a job is and how long the rest takes, in a sentence."""
    part = f"{step.title or 'step'}: {step.done:,} of {step.total:,}"
    if step.done >= step.total:
        return f"{part}; what comes next has not been counted yet."
    if step.left is None:
        return f"{part}; the time that is left is not known yet."
    return f"About {duration(step.left)} left ({part})."


def _stopping(job: Job) -> str:
    if job.stops == 0:
        return ""
    if job.stops == 1:
        return " It stops after the running step and saves it."
    return " It is being ended."


def _took(job: Job) -> str:
    if job.started is None:
        return "no time"
    return duration(round((job.ended or time.time()) - job.started))


def _after(job: Job) -> str:
    return f" after {_took(job)}" if job.started is not None and job.ended is not None else ""


def _bar(job: Job, step: Progress | None) -> str:
    if job.state != RUNNING or step is None:
        return ""
    label = html.escape(step.title or "progress")
    return f'<progress max="{step.total}" value="{step.done}" aria-label="{label}"></progress>'


def buttons(job: Job) -> str:
    """What can be done with a job."""
    if job.alive:
        label = STOP_LABELS[min(job.stops, len(STOP_LABELS) - 1)]
        if job.state == WAITING:
            label = "Take it out of the queue"
        return f'<p class="line">{_button("stop", job, label)}</p>'
    if job.can_resume:
        anew = job.stage and (job.run is None or not job.run.is_dir())
        label = "Start again" if anew else "Resume"
        return f'<p class="line">{_button("resume", job, label)}</p>'
    return ""


def _button(name: str, job: Job, label: str) -> str:
    about = html.escape(f"{label}: job {job.id}, {job.title}")
    return (
        f'<button type="button" data-do="{name}" data-job="{job.id}" aria-label="{about}">{label}'
        "</button>"
    )


def alarms_html(alarms: Sequence[Row]) -> str:
    """The health alarms in words; empty without any."""
    if not alarms:
        return ""
    items = "".join(
        f"<li><b>{html.escape(str(row['alarm']).replace('_', ' '))}</b> (step "
        f"{html.escape(str(row.get('step', '?')))}): {html.escape(str(row['words']))}</li>"
        for row in alarms
    )
    return f"<h4>Something looks wrong</h4><ul>{items}</ul>"


def samples_html(samples: Sequence[Sample]) -> str:
    """What the policy answered at first and answers now; empty without samples."""
    if not samples:
        return ""
    shown = "".join(
        f'<li><div class="asked">{prompt_html(sample.prompt)}</div><div class="answers">'
        f"{_answer(sample.first)}{_answer(sample.last)}</div></li>"
        for sample in samples
    )
    return f"<ul>{shown}</ul>"


def _answer(row: Row) -> str:
    score = number(row.get("score"))
    scored = "" if score is None else f", score {score:.2f}"
    label = f"Step {html.escape(str(row.get('step', '?')))}{scored}"
    return (
        f'<article class="answer"><p class="label">{label}</p>'
        f"{render(str(row['completion']))}</article>"
    )


def log_html(job: Job, lines: Sequence[str]) -> str:
    """The end of what the command printed, and where the rest is."""
    said = html.escape("\n".join(lines)) or "Nothing yet."
    place = html.escape(f"{job.log.parent.name}/{job.log.name}")
    return (
        f'<pre tabindex="0" aria-label="The last lines">{said}</pre>'
        f'<p class="faint">All of it is in {place} in the project\'s folder.</p>'
    )


# ---- lists


def queue_html(tickets: Sequence[Ticket], project: Any) -> str:
    """The jobs on this machine's device, in their order."""
    if not tickets:
        return note_html("Nothing runs or waits on this machine.")
    items = []
    for ticket in tickets:
        state = RUNNING if ticket.running else WAITING
        where = "" if ticket.project == project else f" in {ticket.project.name}"
        text = f"{ticket.title}{where}"
        items.append(f"<li>{html.escape(text)} {badge(state)}</li>")
    return f'<ol class="queue">{"".join(items)}</ol>'


def earlier_html(jobs: Sequence[Job]) -> str:
    """Other jobs of the project, the newest first."""
    rows = "".join(
        f'<li><p>{html.escape(f"{job.id}. {job.title}")} {badge(job.state)} <span class="faint">'
        f'{_when(job)}</span></p><p class="faint">{html.escape(standing(job, None))}</p>'
        f"{buttons(job)}</li>"
        for job in jobs[:SHOWN_EARLIER]
    )
    return f'<ul class="earlier">{rows}</ul>' if rows else ""


def _when(job: Job) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started or job.queued))


# ---- the estimate


def estimate_html(found: Mapping[str, Any]) -> str:
    """Memory and time of what was chosen, as `lorarlhf estimate --project` gives them."""
    parts = []
    needed, free = number(found.get("needed")), number(found.get("free"))
    if needed is None:
        parts.append("Memory: how much this takes can't be estimated before it starts.")
    else:
        room = "" if free is None else f"; {free / 1e9:.1f} GB are free now"
        if found.get("busy"):
            room = "; how much will be free when its turn comes is not known yet"
        parts.append(f"Memory: about {needed / 1e9:.1f} GB at the peak{room}.")
    if found.get("advice"):
        parts.append(str(found["advice"]))
    parts.append(f"Time: {found['time']}")
    return "".join(f"<p>{html.escape(part)}</p>" for part in parts)
