"""How often the policy of each run wins against the base, as far as it was ever compared."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorarlhf.evaluation.candidates import BASE
from lorarlhf.evaluation.judges import PEOPLE
from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.preferences.blind_comparisons import comparisons, finished_outcomes
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.files import Row, read_json


@dataclass(frozen=True)
class Wins:
    """The win rate of a run against the base, ties as half, with its 95% interval.

    Attributes:
        judge: who compared the answers.
        independent: whether nothing was trained on this judge's opinion.
    """

    rate: float
    low: float
    high: float
    count: int
    judge: str
    independent: bool = True

    def in_words(self) -> str:
        """For example `wins 62% (47 to 75) of 40, by people`."""
        doubt = "" if self.independent else ", not independent"
        return (
            f"wins {self.rate:.0%} ({100 * self.low:.0f} to {100 * self.high:.0f}) of "
            f"{self.count:,}, by {self.judge}{doubt}"
        )


def wins_by_run(store: Store, evals: Iterable[Path]) -> dict[str, Wins]:
    """The win rate of each run that was compared with the base, by the run's name.

    People come first: the votes of all blind comparisons of a run with the base, but for those that
    their rater has not finished. Else it is the newest result of `eval`, of its first independent
    judge, or of its first one if none is independent.

    Args:
        store: the project's votes.
        evals: the files `eval.json` of a project; damaged ones are left out.
    """
    found: dict[str, Wins] = {}
    dated = [(file.stat().st_mtime, str(file), file) for file in evals if file.is_file()]
    for _, _, file in sorted(dated):
        found |= _of_eval(read_json(file))
    return found | _of_people(store)


def _of_people(store: Store) -> dict[str, Wins]:
    outcomes: defaultdict[str, list[float]] = defaultdict(list)
    for one in comparisons(store):
        names = {one.first, one.second} - {BASE}
        if len(names) != 1 or BASE not in (one.first, one.second):
            continue
        run = names.pop().removeprefix("runs/")  # with "best of" it is the name of no run
        second = finished_outcomes(store, one.id)
        outcomes[run] += second if one.first == BASE else [1 - outcome for outcome in second]
    found = {}
    for run, votes in outcomes.items():
        if votes:
            rate = sum(votes) / len(votes)
            found[run] = Wins(rate, *wilson_interval(rate, len(votes)), len(votes), PEOPLE)
    return found


def _of_eval(data: Row) -> dict[str, Wins]:
    found: dict[str, Wins] = {}
    try:
        judges = reversed(data.get("judges", []))
        for judge in sorted(judges, key=lambda judge: bool(judge["independent"])):
            for result in judge["results"]:  # the last one counts: the first independent judge
                low, high = map(float, result["ci95"])
                found[str(result["candidate"])] = Wins(
                    float(result["rate"]),
                    low,
                    high,
                    int(result["n"]),
                    str(judge["judge"]),
                    bool(judge["independent"]),
                )
    except (KeyError, TypeError, ValueError):
        return {}
    return found
