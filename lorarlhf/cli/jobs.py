"""The command `jobs`: what runs or waits in a project, and on the device; stop it, or go on."""

import time
from argparse import Namespace
from typing import Any

from lorarlhf.cli.result import Result
from lorarlhf.project import device_queue
from lorarlhf.project.jobs import Job, find_job, list_jobs, resume_job, stop_job
from lorarlhf.project.project import Project


def jobs(args: Namespace) -> Result:
    """List a project's jobs, or stop or resume one of them."""
    project = Project(args.project)
    if args.stop is not None:
        job = stop_job(find_job(project, args.stop))
        return Result(as_data(job), f"Job {job.id} ({job.title}): {_stopping(job)}")
    if args.resume is not None:
        job = resume_job(find_job(project, args.resume))
        return Result(as_data(job), f"Job {job.id} ({job.title}) waits for its turn again.")
    found, waiting = list_jobs(project), device_queue.queue()
    data = {"jobs": [as_data(job) for job in found], "queue": [_ticket(one) for one in waiting]}
    return Result(data, as_text(project, found, waiting))


def as_data(job: Job) -> dict[str, Any]:
    """A job for --json."""
    shown = ("id", "title", "state", "queued", "started", "ended", "message", "stops")
    return {name: getattr(job, name) for name in shown} | {
        "argv": list(job.argv),
        "run": None if job.run is None else str(job.run),
        "log": str(job.log),
    }


def as_text(project: Project, found: list[Job], waiting: list[device_queue.Ticket]) -> str:
    """The jobs as a table, and the queue for the device."""
    lines = [_line(job) for job in found] or [
        f"The project {project.folder} has no jobs. The Train page of "
        f"`lorarlhf ui {project.folder}` starts them, and commands with --queue."
    ]
    here = project.folder.resolve()
    others = [one for one in waiting if one.project != here]
    if others:
        lines.append("Jobs of other projects on this device:")
        lines += [f"  {_state(one)}  {one.title} ({one.project})" for one in others]
    return "\n".join(lines)


def _line(job: Job) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started or job.queued))
    where = job.run.name if job.run else ""
    line = f"{job.id:4}  {job.state:11}  {when}  {job.title:24}  {where}".rstrip()
    return f"{line}\n      {job.message}" if job.message else line


def _state(ticket: device_queue.Ticket) -> str:
    return "running" if ticket.running else "waiting"


def _stopping(job: Job) -> str:
    if job.stops > 2:
        return "its processes are being ended."
    if job.stops == 2:
        return "it stops at once; the running step is lost."
    return (
        "it stops after the running step and saves it. Give the command again to stop it at once."
    )


def _ticket(one: device_queue.Ticket) -> dict[str, Any]:
    named: dict[str, Any] = {"project": str(one.project), "job": one.job, "title": one.title}
    return named | {"state": _state(one), "since": one.since}
