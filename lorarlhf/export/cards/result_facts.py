"""How a run did, as files say it: who won how often, what was forgotten, what its round decided."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.evaluation.candidates import BASE
from lorarlhf.evaluation.judges import PEOPLE
from lorarlhf.evaluation.report_format import number
from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.export.cards.base_facts import last_part
from lorarlhf.export.cards.markdown import percent
from lorarlhf.export.cards.run_facts import RunFacts, without_paths
from lorarlhf.preferences.blind_comparisons import comparisons, finished_outcomes
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import VOTES, Project
from lorarlhf.project.rounds import Round, rounds
from lorarlhf.runtime.files import Row, read_json

THE_BASE = "the base"
RATER_RULE = "the rule of the simulated rater {}, without noise"


@dataclass(frozen=True)
class Win:
    """How often a run's answers were preferred to those of another model, ties as half.

    Attributes:
        against: the other model.
        judge: who compared the answers.
        rate, low, high: from 0 to 1, with the 95% interval.
        count: comparisons.
        independent: whether nothing was trained on this judge's opinion.
        equal_length: the rate at equal or similar lengths, in words, or "".
    """

    against: str
    judge: str
    rate: float
    low: float
    high: float
    count: int
    independent: bool = True
    equal_length: str = ""


@dataclass(frozen=True)
class Skill:
    """Short tasks of one kind: how many the base did, and how many the run did.

    Attributes:
        low, high: the 95% interval of the change of the share.
        chance: of such a change, or a larger one, if nothing changed but by luck.
    """

    kind: str
    tasks: int
    before: int
    after: int
    low: float
    high: float
    chance: float


def wins_of(facts: RunFacts) -> list[Win]:
    """All comparisons of a run with the base or another model that are on record.

    People come first. Of several results of `eval` by the same judge the newest one counts.
    """
    found = [*_by_people(facts), *_by_eval(facts)]
    return [*found, *_of_demo(facts)]


def skills_of(facts: RunFacts) -> list[Skill]:
    """The short tasks before and after, of the newest `eval` that asked them; `all` is the last."""
    for data, name in reversed(list(_evaluations(facts))):
        rows = data.get("skills")
        try:
            ours = [row for row in rows or () if row["candidate"] == name]
            if ours:
                return [_skill(row) for row in ours]
        except (KeyError, TypeError, ValueError):
            continue
    return []


def round_of(facts: RunFacts) -> Round | None:
    """The round of the project that trained the run."""
    project = facts.project
    for one in rounds(project) if project is not None else ():
        if facts.folder in (run.resolve() for run in one.runs):
            return one
    return None


def kl_of(facts: RunFacts) -> str:
    """How far its answers are from the base's, in words; "" if nothing says it."""
    for data, name in reversed(list(_evaluations(facts))):
        for one in data.get("candidates") or ():
            if isinstance(one, Mapping) and one.get("name") == name and number(one.get("kl")):
                return f"{one['kl']:.2f} nats an answer from the base, on held-out prompts"
    ppo = facts.summary.get("ppo")
    for row in (ppo if isinstance(ppo, dict) else {}, facts.summary):
        if (value := number(row.get("kl_per_sequence"))) is not None:
            return f"{value:.2f} nats an answer from its reference, in training"
    return ""


def _skill(row: Row) -> Skill:
    counts = (int(row["tasks"]), int(row["before"]), int(row["after"]))
    return Skill(str(row["kind"]), *counts, *(float(row[name]) for name in ("low", "high", "p")))


# ---- people


def _by_people(facts: RunFacts) -> list[Win]:
    project = facts.project
    if project is None or not (project.folder / VOTES).is_file():
        return []
    store = project.store()
    try:
        outcomes = _outcomes(store, f"{facts.folder.parent.name}/{facts.name}")
    finally:
        store.close()
    return [
        Win(_model(other), PEOPLE, rate, *wilson_interval(rate, len(votes)), len(votes))
        for other, votes in outcomes.items()
        for rate in [sum(votes) / len(votes)]
    ]


def _outcomes(store: Store, run: str) -> dict[str, list[float]]:
    """The votes of the blind comparisons that are over, by the other model: 1 if the run won."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for one in comparisons(store):
        if run not in (one.first, one.second) or one.first == one.second:
            continue
        second = finished_outcomes(store, one.id)
        if one.second == run:
            found[one.first] += second
        else:
            found[one.second] += [1 - outcome for outcome in second]
    return {other: votes for other, votes in found.items() if votes}


def _model(source: str) -> str:
    return THE_BASE if source == BASE else without_paths(source.removeprefix("runs/"))


# ---- eval


def _evaluations(facts: RunFacts) -> Iterator[tuple[Row, str]]:
    """The results of `eval` in which the run is a candidate, the oldest first, with its name."""
    files = {file for file in _files(facts) if file.is_file()}
    for _, _, file in sorted((file.stat().st_mtime, str(file), file) for file in files):
        data = read_json(file)
        candidates = data.get("candidates")
        for one in candidates if isinstance(candidates, list) else ():
            if isinstance(one, Mapping) and _is_run(one, facts):
                yield data, str(one.get("name"))


def _files(facts: RunFacts) -> Iterator[Path]:
    project: Project | None = facts.project
    if project is not None:
        yield from project.evaluations()
        yield from project.folder.glob("*/eval/eval.json")  # of compare-methods
    yield from facts.folder.glob("eval*/eval.json")
    yield from facts.folder.parent.glob("eval*/eval.json")


def _is_run(candidate: Mapping[str, Any], facts: RunFacts) -> bool:
    """Whether a candidate of `eval` is this run; its path may have been of an earlier place."""
    named = candidate.get("run")
    if not isinstance(named, str) or not named:
        return False
    path = Path(named).expanduser()
    if path.is_dir():
        return path.resolve() == facts.folder
    return last_part(named).split("/")[-1] == facts.name


def _by_eval(facts: RunFacts) -> list[Win]:
    found: dict[str, Win] = {}
    for data, name in _evaluations(facts):
        judges = data.get("judges")
        for judge in judges if isinstance(judges, list) else ():
            try:
                for result in judge["results"]:
                    counted = judge["judge"] == PEOPLE and facts.project is not None
                    if result["candidate"] == name and not counted:
                        found[str(judge["judge"])] = _win(judge, result)
            except (KeyError, TypeError, ValueError):
                continue
    return sorted(found.values(), key=lambda win: not win.independent)


def _win(judge: Mapping[str, Any], result: Mapping[str, Any]) -> Win:
    low, high = map(float, result["ci95"])
    return Win(
        THE_BASE,
        without_paths(str(judge["judge"])),
        float(result["rate"]),
        low,
        high,
        int(result["n"]),
        bool(judge["independent"]),
        _at_equal_length(result.get("length_controlled")),
    )


def _at_equal_length(found: Any) -> str:
    if not isinstance(found, Mapping) or "rate" not in found:
        return ""
    rate, ends = number(found["rate"]), found.get("ci95")
    if rate is None:
        return ""
    if isinstance(ends, list) and len(ends) == 2 and None not in map(number, ends):
        return percent(rate, *ends)
    return f"{rate:.0%}"


# ---- the demo


def _of_demo(facts: RunFacts) -> list[Win]:
    """The demo's comparison; its judge is the rule that gave the votes, without their noise."""
    if facts.stage != "demo":
        return []
    rule = RATER_RULE.format(facts.config.get("rater", ""))
    try:
        rate = facts.summary["win_rate"]
        like = _at_equal_length(facts.summary.get("win_rate_at_like_length"))
        judge = {"judge": rule, "independent": False}
        won = _win(judge, rate)
    except (KeyError, TypeError, ValueError):
        return []
    return [Win(**vars(won) | {"equal_length": like})]
