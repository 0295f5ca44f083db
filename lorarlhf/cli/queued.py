"""`--queue`: a command as a job, which waits for its turn and outlives the terminal."""

from argparse import Namespace

from lorarlhf.cli.jobs import as_data
from lorarlhf.cli.result import Result
from lorarlhf.evaluation.report_headline import stage_label
from lorarlhf.project import device_queue
from lorarlhf.project.jobs import Job, job_title, start_job
from lorarlhf.project.project import Project
from lorarlhf.project.rounds import start_round
from lorarlhf.project.settings import resolve
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf.stages.table import STAGES

NOT_PASSED_ON = ("--queue", "--json")


def queue_training(args: Namespace) -> Result:
    """Start a training command on a project as a job.

    Raises:
        UserError: it is not on a project, it names the run itself, or a setting is wrong.
    """
    if distributed.world_size() > 1:
        raise UserError("--queue starts one process: leave out accelerate launch or torchrun.")
    if args.project is None:
        raise UserError(
            f"--queue is for the runs of a project: `lorarlhf {args.command} mine --queue`."
        )
    if args.out or args.resume:
        raise UserError(
            "With --queue the run gets the project's next number: leave out --out and --resume. "
            f"`lorarlhf jobs {args.project} --resume N` continues a job."
        )
    stage, project = STAGES[args.command], Project(args.project)
    settings = resolve(stage, config=args.config, sets=args.set)  # what is wrong is known now
    title = job_title(stage_label(settings.own.get("algorithm", stage.name)), args.set)
    return _started(project, start_job(project, _words(args), title, stage.name))


def queue_round(project: Project, args: Namespace) -> Result:
    """Start a round as a job.

    Raises:
        UserError: a round waits or runs already.
    """
    options = _words(args)
    options.remove(args.command)
    options.remove(args.project)
    return _started(project, start_round(project, options))


def warn_if_busy() -> None:
    """Say so if a job has the device: a command in a terminal does not wait for it."""
    if distributed.is_main() and (ticket := device_queue.busy_with()) is not None:
        log_to_stderr(
            f"Job {ticket.job} of {ticket.project} ({ticket.title}) has the device. Both will be "
            "slow, and memory may run out. With --queue, a command on a project waits for its turn."
        )


def _words(args: Namespace) -> list[str]:
    return [word for word in args.argv if word not in NOT_PASSED_ON]


def _started(project: Project, job: Job) -> Result:
    before = len(device_queue.queue()) - 1
    wait = f"waits behind {before} other{'s' * (before > 1)}" if before > 0 else "begins"
    text = f"Job {job.id} ({job.title}) {wait}. `lorarlhf jobs {project.folder}` shows it; its "
    return Result(as_data(job), f"{text}output is in {job.log}.")
