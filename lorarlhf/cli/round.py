"""The command `round`: from the votes so far to a new policy, evaluated, and a card about it.

Each step is noted in `round.json` when it is done, and the stages have checkpoints of their own. So
the same command continues where a killed one stopped.
"""

import time
from argparse import Namespace
from contextlib import suppress
from typing import Any

from lorarlhf.cli.queued import queue_round, warn_if_busy
from lorarlhf.cli.result import Result
from lorarlhf.cli.round_plan import begin, check_plan, recorded_options
from lorarlhf.cli.round_steps import FUNCTIONS, result_of
from lorarlhf.evaluation.eval_results import aligned
from lorarlhf.evaluation.report_format import duration
from lorarlhf.evaluation.round_card import advice, blind_votes, card_page, card_text
from lorarlhf.project.project import Project
from lorarlhf.project.rounds import (
    DROPPED,
    KEPT,
    ROUNDS,
    STEPS,
    UNDECIDED,
    Round,
    decide,
    rounds,
    unfinished,
)
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_bytes
from lorarlhf.runtime.lock import hold
from lorarlhf.runtime.terminal import log_to_stderr

Row = dict[str, Any]
IN_USE = "Wait until that round ends."


def project_round(args: Namespace) -> Result:
    """Make a round or continue one; keep, drop or list rounds.

    Raises:
        UserError: see `begin`; there is no such round; or another process makes one.
    """
    project = Project(args.project)
    if args.list:
        return _listed(project)
    if args.queue and args.keep is None and args.drop is None:
        return _queued(project, args)
    with hold(project.folder / ROUNDS, IN_USE):
        if args.keep is not None:
            return _decided(project, args.keep, KEPT)
        if args.drop is not None:
            return _decided(project, args.drop, DROPPED)
        warn_if_busy()
        one = unfinished(project)
        if one is None:
            one = begin(project, args)
        else:
            one.options |= recorded_options(args)
            log_to_stderr(f"Round {one.number} continues.")
        _run(project, one)
        return _card(project, one)


def _queued(project: Project, args: Namespace) -> Result:
    """Start the round as a job, unless it would refuse to begin."""
    if unfinished(project) is None:
        check_plan(project, args)
    return queue_round(project, args)


def _run(project: Project, one: Round) -> None:
    """Do the steps that are not done yet."""
    from lorarlhf.backbone.oom import free_memory

    for place, (name, title) in enumerate(STEPS.items(), start=1):
        if one.is_done(name):
            continue
        started, which = time.monotonic(), f"{place} of {len(STEPS)}"
        before = one.steps.get(name, {}).get("seconds", 0.0)  # of attempts that were stopped
        words = f"{title}, by {one.method}" if name == "method" else title
        log_to_stderr(f"Round {one.number}, step {which}: {words}")
        try:
            made = FUNCTIONS[name](project, one)
        except BaseException:
            with suppress(UserError):  # a full disk must not hide the first error
                one.note(name, seconds=_since(started, before))
            log_to_stderr(
                f"Round {one.number} stopped in step {which}. `lorarlhf round {project.folder}` "
                "continues it; --drop gives it up."
            )
            raise
        free_memory()  # of the step's base
        seconds = _since(started, before)
        one.note(name, **made, done=True, seconds=seconds)
        log_to_stderr(f"Step {which} took {duration(seconds)}.")
    one.result = result_of(one)
    _card(project, one)  # before the round counts as finished, so that no card is missing
    one.save()


def _since(started: float, before: float) -> float:
    return round(before + time.monotonic() - started, 1)


# ---- results


def _card(project: Project, one: Round) -> Result:
    """The card of a finished round, also written into its folder."""
    about, people = one.about(), _people(project, one)
    text = card_text(about, people)
    write_bytes(one.folder / "card.html", card_page(about, people).encode())
    write_bytes(one.folder / "card.txt", f"{text}\n".encode("utf-8", "replace"))
    said = advice(about["result"], people)
    data = about | {"people": people, "advice": {"action": said.action, "sure": said.sure}}
    lines = [text, f"Page: {one.folder / 'card.html'}"]
    if one.verdict == UNDECIDED:
        lines.append(
            f"Decide with `lorarlhf round {project.folder} --keep` or --drop. A dropped round "
            "costs nothing: the next one starts where this one did, with its votes."
        )
    return Result(data, "\n".join(lines))


def _people(project: Project, one: Round) -> Row | None:
    comparison = one.steps["compare"]
    store = project.store()
    try:
        return blind_votes(store, comparison["first"], comparison["second"])
    finally:
        store.close()


def _decided(project: Project, number: int, verdict: str) -> Result:
    """Keep or drop the newest round (0), or the one with a number."""
    found = [one for one in rounds(project) if number in (0, one.number)]
    if not found:
        which = f"no round {number}" if number else "no round yet"
        raise UserError(
            f"The project {project.folder} has {which}. `lorarlhf round {project.folder} --list` "
            "shows what there is."
        )
    decide(project, found[0], verdict)
    if found[0].finished:
        return _card(project, found[0])
    return Result(found[0].about(), f"Round {found[0].number} is dropped.")


def _listed(project: Project) -> Result:
    """All rounds, and the card of the newest one."""
    found = rounds(project)
    text = _table(found)
    if found and found[0].finished:
        text += f"\n\n{card_text(found[0].about(), _people(project, found[0]))}"
    return Result([one.about() for one in found], text)


def _table(found: list[Round]) -> str:
    if not found:
        return "No round yet."
    rows = [["round", "started", "method", "from", "votes", "new", "state"]]
    for one in found:
        start = one.parents["round"]
        rows.append(
            [
                str(one.number),
                one.started.replace("T", " "),
                one.method,
                f"round {start}" if start is not None else (one.parents["policy"] or "base"),
                f"{one.votes['count']:,}",
                f"{one.votes['new']:,}",
                one.verdict if one.finished or one.verdict == DROPPED else "unfinished",
            ]
        )
    return "\n".join(aligned(rows))
