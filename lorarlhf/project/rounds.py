"""Rounds of a project: from the votes so far to a new policy, and the decision about it.

A round is a folder, `PROJECT/rounds/0001`. Its `round.json` says which votes and which policy it
started from, which of its steps are done, and what came out, so a killed round continues from it.
"""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lorarlhf.preferences.statistics import PairVotes, count_pair_votes
from lorarlhf.project.jobs import JOBS, RUNNING, Job, list_jobs, start_job, starting
from lorarlhf.project.project import Project
from lorarlhf.project.run_labels import read_label, set_dropped
from lorarlhf.rewards.learning_curve import MIN_PROMPTS, MIN_VOTES, forecast, headline
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_json

Row = dict[str, Any]
ROUNDS, RECORD = "rounds", "round.json"
KEPT, DROPPED, UNDECIDED = "kept", "dropped", "undecided"
STEPS = {
    "reward": "the reward role, from the votes",
    "method": "the policy",
    "compare": "a blind comparison, prepared for you",
    "eval": "did it get better, and what was forgotten?",
    "card": "the card",
}
"""The steps of a round in their order, and the words for them."""
COMMAND, TITLE = "round", "A round: reward, tuning, comparison"
"""The command that makes a round, and what a job of it is called."""
FEWEST_SHARE = 0.1
"""New votes that a round needs, as a share of those before it. The error of the fit falls with the
votes at most like 1 / n (`rewards.learning_curve`), so fewer change it by less than a tenth."""


@dataclass
class Round:
    """One round. What changes is written with `save`.

    Attributes:
        folder: `rounds/0001` in the project.
        method: how the policy is tuned.
        votes: `count` of the votes that it learns from, `new` since the round before, and `newest`,
            the number of the newest one.
        parents: `round`, the number of the kept round that it starts from, and `policy`, the run
            that it starts from (`runs/0002-ppo`); both None for the base.
        options: those of the command that began it.
        steps: by name what each has noted: its run, `done`, `seconds`, and figures.
        result: what the card says; None until the round is finished.
        verdict: `kept`, `dropped` or `undecided`.
    """

    folder: Path
    method: str
    votes: Row
    parents: Row
    options: Row = field(default_factory=dict)
    started: str = ""
    steps: dict[str, Row] = field(default_factory=dict)
    result: Row | None = None
    verdict: str = UNDECIDED

    @property
    def number(self) -> int:
        """From 1."""
        return int(self.folder.name)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.result is not None

    @property
    def project_folder(self) -> Path:
        """The project that it belongs to."""
        return self.folder.parent.parent

    @property
    def runs(self) -> list[Path]:
        """The folders of its runs so far."""
        named = [step["run"] for step in self.steps.values() if "run" in step]
        return [self.project_folder / name for name in named]

    @property
    def policy(self) -> Path | None:
        """The run of its policy; None before it was begun."""
        run = self.steps.get("method", {}).get("run")
        return None if run is None else self.project_folder / run

    @property
    def has_policy(self) -> bool:
        """Whether the run of its policy is there."""
        return self.policy is not None and self.policy.is_dir()

    @property
    def starts_others(self) -> bool:
        """Whether the next round may start from its policy: somebody may have dropped that run."""
        if self.verdict != KEPT or self.policy is None or not self.has_policy:
            return False
        return not read_label(self.policy).dropped

    @property
    def run_names(self) -> set[str]:
        """The names of its runs, and of the one that it starts from."""
        start = self.parents.get("policy")
        return {run.name for run in self.runs} | ({Path(start).name} if start else set())

    def is_done(self, step: str) -> bool:
        """Whether a step is done."""
        return bool(self.steps.get(step, {}).get("done"))

    def note(self, step: str, **values: Any) -> None:
        """Add values to a step and save them."""
        self.steps[step] = self.steps.get(step, {}) | values
        self.save()

    def about(self) -> Row:
        """The record, as round.json holds it."""
        about = asdict(self)
        del about["folder"]
        return {"number": self.number} | about

    def save(self) -> None:
        """Write round.json.

        Raises:
            UserError: the folder can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RECORD, self.about())
        except OSError as error:
            raise UserError(
                f"{self.folder} can't be written ({error.strerror}). Check its rights and the "
                "space on the disk; the same command then continues."
            ) from error


KEYS = [known.name for known in fields(Round) if known.name != "folder"]


def rounds(project: Project) -> list[Round]:
    """The rounds of a project, the newest first."""
    found = []
    for folder in (project.folder / ROUNDS).glob("*"):
        about = read_json(folder / RECORD) if re.fullmatch(r"\d{4,}", folder.name) else {}
        if about:
            found.append(Round(folder, **{name: about[name] for name in KEYS if name in about}))
    return sorted(found, key=lambda one: one.number, reverse=True)


def unfinished(project: Project) -> Round | None:
    """The newest round, if it was stopped and not dropped."""
    newest = rounds(project)[:1]
    return next((one for one in newest if not one.finished and one.verdict != DROPPED), None)


def newest_kept(project: Project) -> Round | None:
    """The newest round that was kept, and its policy not dropped: the next one starts from it."""
    return next((one for one in rounds(project) if one.starts_others), None)


def make_round(project: Project, method: str, options: Row) -> Round:
    """A new round from all votes so far; it is not on the disk before `save`.

    It starts from the policy of the newest kept round. Without one it starts from the project's
    newest supervised run that is in no round, or from the base.
    """
    found, kept = rounds(project), newest_kept(project)
    policy = None if kept is None else kept.steps["method"]["run"]
    if kept is None and (supervised := _newest_supervised(project, found)) is not None:
        policy = f"runs/{supervised.name}"
    votes = votes_since(project, None)
    return Round(
        project.folder / ROUNDS / f"{1 + (found[0].number if found else 0):04d}",
        method,
        {
            "count": votes.votes,
            "new": votes_since(project, last_used(project)).votes,
            "newest": votes.newest,
        },
        {"round": None if kept is None else kept.number, "policy": policy},
        options,
        time.strftime("%Y-%m-%dT%H:%M:%S"),
    )


def _newest_supervised(project: Project, found: list[Round]) -> Path | None:
    """The newest supervised run that no round has made: those have not been kept."""
    made = [run for one in found for run in one.runs]
    return project.newest_with("policy", ("sft",), without=made)


def decide(project: Project, one: Round, verdict: str) -> None:
    """Keep or drop a round. The runs of a dropped one are never chosen as the newest ones.

    Raises:
        UserError: an unfinished round can't be kept, nor one whose policy was deleted.
    """
    if verdict == KEPT and not one.finished:
        raise UserError(
            f"Round {one.number} is not finished. Continue it with `lorarlhf round "
            f"{project.folder}`, or drop it with --drop."
        )
    if verdict == KEPT and not one.has_policy:
        raise UserError(
            f"Round {one.number} can't be kept: its policy, {one.steps['method']['run']}, was "
            "deleted. The next round starts where this one did."
        )
    for run in one.runs:
        if run.is_dir():
            set_dropped(run, verdict == DROPPED)
    one.verdict = verdict
    one.save()


# ---- votes


def last_used(project: Project) -> Round | None:
    """The newest round that was not dropped: its votes are used. A dropped one costs no votes."""
    return next((one for one in rounds(project) if one.verdict != DROPPED), None)


def votes_since(project: Project, last: Round | None) -> PairVotes:
    """The votes that name a better answer, of all or since a round."""
    store = project.store()
    try:
        return count_pair_votes(store, 0 if last is None else last.votes["newest"])
    finally:
        store.close()


def least_votes(used: int) -> int:
    """How many new votes another round needs after one that learned from `used` votes."""
    return max(MIN_VOTES, math.ceil(FEWEST_SHARE * used))


def not_decided(project: Project) -> str:
    """That the newest round was neither kept nor dropped, as a clause; "" if it was."""
    newest = next(iter(rounds(project)), None)
    if newest is None or not newest.finished or newest.verdict != UNDECIDED:
        return ""
    return f"Round {newest.number} is finished, and nobody has said what becomes of it"


def too_few_votes(project: Project) -> str:
    """Why there are too few votes for the next round, in sentences; "" if there are enough."""
    last = last_used(project)
    new = votes_since(project, last)
    if last is None:
        if new.votes >= MIN_VOTES and new.prompts >= MIN_PROMPTS:
            return ""
        return (
            f"So far {_votes(new.votes)} a better answer, on {_prompts(new.prompts)}. The first "
            f"round needs {MIN_VOTES} of them on {MIN_PROMPTS} prompts."
        )
    used = last.votes["count"]
    if new.votes >= least_votes(used):
        return ""
    return (
        f"Round {last.number} learned from {used:,} votes, and {new.votes:,} have come since then. "
        f"Another round needs {least_votes(used):,} new ones: with fewer, the reward role hardly "
        "changes."
    )


def votes_worth_it(project: Project) -> str:
    """By the learning curve of the last round's votes, how many more help; "" if nobody knows.

    It begins with a blank, to follow what `too_few_votes` says.
    """
    last = last_used(project)
    if last is None or "run" not in last.steps.get("reward", {}):
        return ""
    file = last.project_folder / last.steps["reward"]["run"] / "votes.safetensors"
    if not file.is_file():
        return ""
    found = forecast(VoteFit.load(file), of=last.votes["count"])
    return "" if found is None else f" {headline(found)}"


def _votes(count: int) -> str:
    return f"{count:,} vote{' names' if count == 1 else 's name'}"


def _prompts(count: int) -> str:
    return f"{count:,} prompt{'s' * (count != 1)}"


def start_round(project: Project, options: Sequence[str] = ()) -> Job:
    """Start a round as a job, or let an unfinished one go on.

    Args:
        options: of the command `round`.

    Raises:
        UserError: a round waits or runs already, or nothing can be written.
    """
    with starting(project.folder / JOBS):
        for job in list_jobs(project):
            if job.alive and job.argv[:1] == (COMMAND,):
                how = "runs" if job.state == RUNNING else "waits"
                raise UserError(f"A round {how} already.")
        words = [COMMAND, str(project.folder.resolve()), *options]
        return start_job(project, words, TITLE)
