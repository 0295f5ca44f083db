"""The models that can answer, and the settings they answer with."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lorarlhf.preferences.queue import REPEAT_SHARE
from lorarlhf.project.project import RUNS, Project
from lorarlhf.project.run_labels import read_label
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import BASE

RANDOM, INFORMATION = "random", "information"
ORDERS = (RANDOM, INFORMATION)
"""How the next item is chosen: as they were made, to prompts drawn at random; or the one whose vote
would teach the rater's reward head the most."""
MOST_REPEATS = 0.5
"""With more, a rater would hardly see anything new."""


@dataclass(frozen=True)
class AnswerSettings:
    """How the answers of the Rate page are generated, and which of them are asked next.

    The project's store keeps the fields under these names.

    Attributes:
        model: `newest` (the newest policy, or the base if there is none), `base`, or a run.
        against: the model of the second answer, if it is a different one; else "".
        answers: how many answers a prompt gets: two, or up to six, which are ranked.
        temperature: of the sampling.
        max_new_tokens: the longest answer, in tokens.
        overlap: the share of the prompts that every rater gets, from 0 to 1.
        order: one of `ORDERS`.
        repeats: the share of the votes that ask an earlier pair again, from 0 to `MOST_REPEATS`.
    """

    model: str = "newest"
    against: str = ""
    answers: int = 2
    temperature: float = 0.8
    max_new_tokens: int = 128
    overlap: float = 0.0
    order: str = RANDOM
    repeats: float = REPEAT_SHARE

    def check_ranges(self) -> None:
        """Check the numbers, and the name of the order.

        Raises:
            UserError: one of them is out of its range.
        """
        if self.order not in ORDERS:
            raise UserError(f"There is no order {self.order!r}. Choose {' or '.join(ORDERS)}.")
        within = (
            2 <= self.answers <= 6
            and 0 <= self.temperature <= 5
            and 1 <= self.max_new_tokens <= 4096
            and 0 <= self.overlap <= 1
            and 0 <= self.repeats <= MOST_REPEATS
        )
        if not within:
            raise UserError(
                "The number of answers is 2 to 6, the temperature 0 to 5, the longest answer 1 to "
                "4096 tokens, the overlap 0 to 1, and the share of repeats 0 to "
                f"{MOST_REPEATS}."
            )


class Models:
    """The base and the policies of the runs, by the names that the pages show."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def names(self, also: Collection[str] = ()) -> list[str]:
        """`base`, then the runs that have a policy and are not dropped, the newest first.

        Args:
            also: runs that are named even if they are dropped.
        """
        runs = [run for run in self.project.runs() if _policy(run).is_dir()]
        kept = [run.name for run in runs if run.name in also or not read_label(run).dropped]
        return [BASE, *kept]

    def choices(self, also: Collection[str] = ()) -> list[tuple[str, str]]:
        """`names` as the choices of a list: what a person reads, and the name."""
        return [(self.title(name), name) for name in self.names(also)]

    def title(self, name: str) -> str:
        """A name of `names` behind the title that a person gave the run, if there is one."""
        title = "" if name == BASE else read_label(self.project.folder / RUNS / name).title
        return f"{title} ({name})" if title else name

    def place(self, name: str) -> str:
        """What the engine loads for a name: `base`, or the folder of an adapter.

        Args:
            name: as in `names`, a dropped run's name, or `newest`.

        Raises:
            UserError: there is no such run, or it has no policy.
        """
        if name == "newest":
            finished = self.project.newest_with("policy")
            name = finished.name if finished else BASE
        if name not in self.names(also=[name]):
            raise UserError(f"This project has no policy {name}.")
        return name if name == BASE else str(_policy(self.project.folder / RUNS / name))

    def label(self, place: str) -> str:
        """The source that the store keeps with an answer: `base` or `runs/NAME`."""
        return place if place == BASE else f"runs/{Path(place).parents[1].name}"


def _policy(run: Path) -> Path:
    return run / "adapters" / "policy"
