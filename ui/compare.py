"""Blind comparisons of two models on held-out prompts, as plain functions.

`compare_page.py` only shows the results.
"""

import json
import random
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.data.readers import as_conversation, bundled, read_prompts
from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.preferences import blind_comparisons, queue
from lorarlhf.preferences.blind_comparisons import BlindComparison
from lorarlhf.preferences.records import Prompt
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import last_vote, undo
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import RESTING, SILENT
from lorarlhf_ui.engine_worker import describe
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.votes import NO_MODEL, View, cast, item_view, vote_number

HELD_OUT = "prompts_heldout.jsonl"
"""A project's own held-out prompts; without this file the bundled ones are used."""
PURPOSE = "compare"
RETRY_SECONDS = 5.0
BEST_OF, MOST_OF = 4, 64
"""From how many answers the candidates that are offered pick one, and the most there can be."""
GONE = (
    "A model or a reward role of this comparison is no longer there. An owner of the project can "
    "start a new one."
)
_PICKED = re.compile(r"(.+), best of (\d{1,3}) by (\S+)")


@dataclass(frozen=True)
class Candidate:
    """One side of a comparison.

    Attributes:
        source: its name in the store: `base`, `runs/NAME`, or one of them with
            `, best of N by REWARD`, where REWARD is the run whose reward role picks.
        place: who answers, as the engine names it.
        count: how many answers it picks one from.
        reward: the folder of the reward role that picks; None for one answer.
    """

    source: str
    place: str
    count: int = 1
    reward: Path | None = None


class Comparisons:
    """The requests of the Compare page, and the thread that makes the items.

    Args:
        store: the votes; those of comparisons have a purpose of their own, and nothing is trained
            on them unless that is requested.
        prefetch: knows the models, the engine and how answers are sampled.

    Attributes:
        problem: why no items are being made at the moment; "" if nothing is wrong.
    """

    def __init__(self, store: Store, prefetch: Prefetch) -> None:
        self.store, self.prefetch = store, prefetch
        self.problem = ""
        self._wake, self._closed = threading.Event(), False
        threading.Thread(target=self._work, daemon=True, name="comparisons").start()

    def close(self) -> None:
        """Stop making items."""
        self._closed = True
        self._wake.set()

    # ---- comparisons

    def start(self, first: str, second: str, wanted: int) -> BlindComparison:
        """Start a comparison of two models.

        Args:
            first, second: as in `candidates`.
            wanted: how many held-out prompts both answer.

        Raises:
            UserError: both models are the same, one does not exist, there are not so many prompts,
                or there is no engine.
        """
        sides = [self._candidate(name) for name in (first, second)]
        sources = [side.source for side in sides]
        _picking(sides)
        if sources[0] == sources[1]:
            raise UserError(f"Both sides are {sources[0]}. Choose two different models.")
        count = len(self.prompts())
        if not 1 <= wanted <= count:
            raise UserError(f"There are {count} held-out prompts; choose 1 to {count} of them.")
        if self.prefetch.settings().temperature == 0 and any(side.reward for side in sides):
            raise UserError(
                "At temperature 0 all answers of a model are the same, so there is none to pick. "
                "Choose a higher one on the Settings page."
            )
        if self.prefetch.engine.state in SILENT:
            raise UserError(self.prefetch.engine.message or "The pages run without a model.")
        comparison = blind_comparisons.add_comparison(self.store, sources[0], sources[1], wanted)
        self._wake.set()
        return comparison

    def candidates(self) -> list[str]:
        """The names of all models, and the best of several answers where a reward role can pick."""
        names = self.prefetch.models.names()
        reward = self.prefetch.project.newest_with("reward")
        if reward is None:
            return names
        return names + [f"{name}, best of {BEST_OF} by {reward.name}" for name in names[:2]]

    def choices(self) -> list[tuple[str, str]]:
        """`candidates` as the choices of a list: what a person reads, and the name."""
        title = self.prefetch.models.title
        found = []
        for name in self.candidates():
            best = _PICKED.fullmatch(name)
            read = f"{title(best[1])}, best of {best[2]} by {title(best[3])}" if best else ""
            found.append((read or title(name), name))
        return found

    def _candidate(self, name: str) -> Candidate:
        """The side behind a name of `candidates`, or behind its source in the store.

        Raises:
            UserError: there is no such policy or reward role.
        """
        models, project = self.prefetch.models, self.prefetch.project
        found = _PICKED.fullmatch(name)
        place = models.place((found[1] if found else name).removeprefix("runs/"))
        if not found:
            return Candidate(models.label(place), place)
        run = next((run for run in project.runs() if run.name == found[3]), None)
        reward = None if run is None else run / "adapters" / "reward"
        count = int(found[2])
        if reward is None or not reward.is_dir() or not 2 <= count <= MOST_OF:
            raise UserError(f"This project can't give {name}: its reward role is not there.")
        source = f"{models.label(place)}, best of {count} by {found[3]}"
        return Candidate(source, place, count, reward)

    def newest(self) -> BlindComparison | None:
        """The newest comparison, running or complete; None if there is none."""
        found = blind_comparisons.comparisons(self.store, newest=1)
        return found[0] if found else None

    def all(self) -> list[BlindComparison]:
        """All comparisons, the newest first."""
        return blind_comparisons.comparisons(self.store)

    def prompts(self) -> list[Prompt]:
        """The held-out prompts, each once."""
        own = self.prefetch.project.folder / HELD_OUT
        rows = read_prompts(own if own.is_file() else bundled("prompts_heldout"))
        prompts = [as_conversation(row["prompt"]) for row in rows]
        return list({_key(prompt): prompt for prompt in prompts}.values())

    def made(self, comparison: BlindComparison) -> int:
        """The number of prompts that both models have answered."""
        return blind_comparisons.count_items(self.store, comparison.id)

    # ---- requests of the page

    def begin(self, rater: str) -> View:
        """The next item of the newest comparison, or its result."""
        comparison = self.newest()
        if comparison is None:
            return {"empty": "No blind comparison yet. An owner of the project starts one."}
        shown = queue.next_shown(self.store, rater, purpose=PURPOSE, comparison=comparison.id)
        about = self._about(comparison, rater)
        if shown is not None:
            return item_view(self.store, shown) | about
        made, engine = self.made(comparison), self.prefetch.engine
        if made >= comparison.wanted:
            return {"empty": self.result(comparison, rater)} | about
        if engine.state == RESTING:  # "wait": the page asks again, since it ends
            return {"empty": engine.message, "wait": engine.message} | about
        if engine.state in SILENT:
            return {"empty": engine.message or NO_MODEL} | about
        if self.problem:  # "wait": the page asks again, since the problem may go away
            return {"empty": self.problem, "wait": self.problem} | about
        return {"wait": f"Answers are being generated: {made} of {comparison.wanted}."} | about

    def vote(self, rater: str, token: Any, vote: Any, milliseconds: Any = None) -> View:
        """Store a vote and return the next item."""
        voted = cast(self.store, rater, token, vote, milliseconds)
        return self.begin(rater) | voted

    def undo(self, rater: str, expected: Any) -> View:
        """Undo the rater's last vote in the newest comparison; earlier ones can't be changed.

        Raises:
            UserError: there is nothing to undo.
        """
        number, comparison = vote_number(expected), self.newest()
        back = None
        if number is not None and comparison is not None:
            back = undo(
                self.store, rater, purpose=PURPOSE, comparison=comparison.id, expected=number
            )
        if back is None:
            raise UserError("You have no vote to undo.")
        return self.begin(rater)

    def progress(self, rater: str) -> View:
        """How far the newest comparison is, but not who wins: that would sway the next votes."""
        comparison = self.newest()
        return {} if comparison is None else self._about(comparison, rater)

    # ---- results

    def outcomes(self, comparison: BlindComparison, rater: str | None = None) -> list[float]:
        """The votes: 1.0 if the second model won, 0.0 if the first did, 0.5 for ties.

        Skipped items are left out.

        Args:
            rater: only this rater's votes; None for all.
        """
        return blind_comparisons.outcomes(self.store, comparison.id, rater)

    def result(self, comparison: BlindComparison, rater: str | None) -> str:
        """The result with the models' names, as the page shows it at the end."""
        outcomes = self.outcomes(comparison, rater)
        first, second = comparison.first, comparison.second
        if not outcomes:
            return f"{second} against {first}: no votes yet."
        return (
            f"{second} against {first}: {_won(outcomes)} Wins of {second}: {outcomes.count(1.0)}, "
            f"of {first}: {outcomes.count(0.0)}, ties: {outcomes.count(0.5)}."
        )

    def _about(self, comparison: BlindComparison, rater: str) -> View:
        progress = f"{len(self.outcomes(comparison, rater))} of {comparison.wanted} votes"
        last = last_vote(self.store, rater, PURPOSE, comparison.id)
        return {"progress": progress, "last": last}

    # ---- in the thread

    def _work(self) -> None:
        while not self._closed:
            try:
                comparison = self.newest()
                ready = self.prefetch.engine.state not in SILENT
                if comparison is not None and ready and self.made(comparison) < comparison.wanted:
                    self._make_item(comparison)
                    self.problem = ""
                    continue
            except Exception as error:  # the page shows it, and it is tried again
                # A model that rests says so itself.
                resting = self.prefetch.engine.state == RESTING
                self.problem = "" if resting else describe(error)
            self._wake.wait(RETRY_SECONDS)
            self._wake.clear()

    def _make_item(self, comparison: BlindComparison) -> None:
        prompt = self._next_prompt(comparison)
        settings = self.prefetch.settings()
        try:
            sides = [self._candidate(source) for source in (comparison.first, comparison.second)]
        except UserError as error:  # it names a model, and raters must not see names
            raise UserError(GONE) from error
        sampling = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
        job = self.prefetch.engine.answer(
            prompt,
            [side.place for side in sides],
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            features=True,
            **_picking(sides),
        )
        job.wait()
        texts = [text.strip() for text in job.texts]
        if job.value.get("features"):
            self.prefetch.states.put(prompt, texts, job.value["features"])
        self.store.add_item(
            prompt,
            [(text, side.source) for text, side in zip(texts, sides, strict=True)],
            purpose=PURPOSE,
            sampling=[
                sampling | ({"best_of": side.count} if side.reward else {}) for side in sides
            ],
            shared=True,
            comparison=comparison.id,
        )

    def _next_prompt(self, comparison: BlindComparison) -> Prompt:
        """A prompt that is not used yet; the file may have changed since the start."""
        compared = blind_comparisons.compared_prompts(self.store, comparison.id)
        used = {_key(prompt) for prompt in compared}
        left = [prompt for prompt in self.prompts() if _key(prompt) not in used]
        if not left:
            raise UserError(
                f"There are only {len(used)} held-out prompts now, and this comparison needs "
                f"{comparison.wanted}. Add some, or start a new comparison."
            )
        return random.Random(f"{comparison.id} {len(used)}").choice(left)


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True)


def _picking(sides: Sequence[Candidate]) -> dict[str, Any]:
    """What the engine needs to pick answers; nothing if there is nothing to pick.

    Raises:
        UserError: two reward roles would have to pick.
    """
    rewards = {side.reward for side in sides if side.reward is not None}
    if len(rewards) > 1:
        raise UserError("Both sides of a comparison need the same reward role to pick.")
    counts = [side.count for side in sides]
    return {"counts": counts, "reward": rewards.pop()} if rewards else {}


def _won(outcomes: Sequence[float]) -> str:
    rate = sum(outcomes) / len(outcomes)
    low, high = (round(100 * end) for end in wilson_interval(rate, len(outcomes)))
    return f"wins {round(100 * rate)}% of {len(outcomes)} ({low} to {high}%)."
