"""Taste tests as plain functions: two models on held-out prompts, blind, until it is clear."""

import json
import random
import threading
from collections.abc import Sequence
from typing import Any

from lorarlhf.data.readers import as_conversation, bundled, read_prompts
from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.preferences import blind_comparisons, queue
from lorarlhf.preferences.blind_comparisons import BlindComparison
from lorarlhf.preferences.records import Prompt
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import last_vote, undo
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import FAILED, OFF
from lorarlhf_ui.engine_worker import in_words
from lorarlhf_ui.markdown import prompt_html
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.rate import NO_MODEL, View, answer_view, cast, vote_number

HELD_OUT = "prompts_heldout.jsonl"
"""A project's own held-out prompts; without this file those that come along."""
PURPOSE = "compare"


class Tasting:
    """The compare page's questions, and the thread that has the answers written.

    Args:
        store: of the votes; taste tests are marked, so that nothing is trained on them unless
            asked.
        ahead: knows the models, the engine and how answers are sampled.
    """

    def __init__(self, store: Store, ahead: Prefetch) -> None:
        self.store, self.ahead = store, ahead
        self.trouble = ""
        self._wake, self._closed = threading.Event(), False
        threading.Thread(target=self._work, daemon=True, name="tasting").start()

    def close(self) -> None:
        """Make no more answers."""
        self._closed = True
        self._wake.set()

    # ---- tests

    def start(self, first: str, second: str, wanted: int) -> BlindComparison:
        """Begin a test of two models on so many held-out prompts.

        Raises:
            UserError: the same model twice, a model that is gone, or too many prompts.
        """
        models = self.ahead.models
        sources = [models.label(models.place(name)) for name in (first, second)]
        if sources[0] == sources[1]:
            raise UserError(f"Both sides are {sources[0]}. Choose two different models.")
        there = len(self.prompts())
        if not 1 <= wanted <= there:
            raise UserError(f"There are {there} held-out prompts; take 1 to {there} of them.")
        if self.ahead.engine.state in (OFF, FAILED):
            raise UserError(self.ahead.engine.message or "The pages run without a model.")
        test = blind_comparisons.add_comparison(self.store, sources[0], sources[1], wanted)
        self._wake.set()
        return test

    def newest(self) -> BlindComparison | None:
        """The test that is going on, or was last; None where there is none."""
        newest = blind_comparisons.comparisons(self.store, newest=1)
        return newest[0] if newest else None

    def all(self) -> list[BlindComparison]:
        """All tests, the newest first."""
        return blind_comparisons.comparisons(self.store)

    def prompts(self) -> list[Prompt]:
        """The held-out prompts, each once."""
        own = self.ahead.space.folder / HELD_OUT
        rows = read_prompts(own if own.is_file() else bundled("prompts_heldout"))
        prompts = [as_conversation(row["prompt"]) for row in rows]
        return list({_key(prompt): prompt for prompt in prompts}.values())

    def made(self, test: BlindComparison) -> int:
        """For how many prompts both answers are there."""
        return blind_comparisons.count_items(self.store, test.id)

    # ---- what a page asks

    def begin(self, rater: str) -> View:
        """The next pair of the newest test, or how it went."""
        test = self.newest()
        if test is None:
            return {"empty": "No taste test yet. Choose two models below and start one."}
        shown = queue.next_shown(self.store, rater, purpose=PURPOSE, comparison=test.id)
        about = self._about(test, rater)
        if shown is not None:
            answers = [answer_view(text) for text in shown.completions]
            token = shown.presentation.token
            return {"token": token, "prompt": prompt_html(shown.prompt), "answers": answers} | about
        made, engine = self.made(test), self.ahead.engine
        if made >= test.wanted:
            return {"empty": self.verdict(test, rater)} | about
        if engine.state in (OFF, FAILED):
            return {"empty": engine.message or NO_MODEL} | about
        if self.trouble:  # asked about again: it may pass
            return {"empty": self.trouble, "wait": self.trouble} | about
        return {"wait": f"Answers are being written: {made} of {test.wanted}."} | about

    def vote(self, rater: str, token: Any, said: Any, milliseconds: Any = None) -> View:
        """Keep a vote and give the next pair."""
        number = cast(self.store, rater, token, said, milliseconds)
        return self.begin(rater) | {"voted": number}

    def undo(self, rater: str, expected: Any) -> View:
        """Take the rater's last vote in the newest test back; earlier tests are over."""
        number, test = vote_number(expected), self.newest()
        back = None
        if number is not None and test is not None:
            back = undo(self.store, rater, purpose=PURPOSE, comparison=test.id, expected=number)
        if back is None:
            raise UserError("There is no vote of yours to take back.")
        return self.begin(rater)

    def progress(self, rater: str) -> View:
        """How far the newest test is."""
        test = self.newest()
        return {} if test is None else self._about(test, rater)

    # ---- results

    def outcomes(self, test: BlindComparison, rater: str | None = None) -> list[float]:
        """1 where the second model won, 0 where the first did, a half for ties; skips are left out.

        Args:
            rater: only this one's votes.
        """
        return blind_comparisons.outcomes(self.store, test.id, rater)

    def verdict(self, test: BlindComparison, rater: str | None) -> str:
        """The result with the models' names, for the end."""
        outcomes = self.outcomes(test, rater)
        if not outcomes:
            return f"{test.second} against {test.first}: no votes yet."
        return (
            f"{test.second} against {test.first}: {_won(outcomes)} Wins of {test.second}: "
            f"{outcomes.count(1.0)}, of {test.first}: {outcomes.count(0.0)}, ties: "
            f"{outcomes.count(0.5)}."
        )

    def _about(self, test: BlindComparison, rater: str) -> View:
        outcomes, (first, second) = self.outcomes(test, rater), test.blind_names
        score = f"{second} against {first}: {_won(outcomes)}" if outcomes else ""
        progress = f"{len(outcomes)} of {test.wanted} votes"
        last = last_vote(self.store, rater, PURPOSE, test.id)
        return {"progress": progress, "score": score, "last": last}

    # ---- in the thread

    def _work(self) -> None:
        while not self._closed:
            try:
                test = self.newest()
                ready = self.ahead.engine.state not in (OFF, FAILED)
                if test is not None and ready and self.made(test) < test.wanted:
                    self._one(test)
                    self.trouble = ""
                    continue
            except Exception as error:  # told on the page; tried again later
                self.trouble = in_words(error)
            self._wake.wait(5.0)
            self._wake.clear()

    def _one(self, test: BlindComparison) -> None:
        prompt = self._next_prompt(test)
        making = self.ahead.making()
        places = [self.ahead.models.place(name.removeprefix("runs/")) for name in _sources(test)]
        job = self.ahead.engine.answer(
            prompt,
            places,
            temperature=making.temperature,
            max_new_tokens=making.max_new_tokens,
            features=True,
        )
        job.wait()
        how = {"temperature": making.temperature, "max_new_tokens": making.max_new_tokens}
        texts = [text.strip() for text in job.texts]
        if job.value.get("features"):
            self.ahead.states.put(prompt, texts, job.value["features"])
        self.store.add_item(
            prompt,
            list(zip(texts, _sources(test), strict=True)),
            purpose=PURPOSE,
            sampling=[how] * 2,
            shared=True,
            comparison=test.id,
        )

    def _next_prompt(self, test: BlindComparison) -> Prompt:
        """One that the test has not asked yet, also where the file was changed meanwhile."""
        asked = {_key(p) for p in blind_comparisons.compared_prompts(self.store, test.id)}
        left = [prompt for prompt in self.prompts() if _key(prompt) not in asked]
        if not left:
            raise UserError(
                f"There are {len(asked)} held-out prompts now, and this test wanted {test.wanted}. "
                "Add some, or start a new test."
            )
        return random.Random(f"{test.id} {len(asked)}").choice(left)


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True)


def _sources(test: BlindComparison) -> tuple[str, str]:
    return test.first, test.second


def _won(outcomes: Sequence[float]) -> str:
    rate = sum(outcomes) / len(outcomes)
    low, high = (round(100 * end) for end in wilson_interval(rate, len(outcomes)))
    return f"wins {round(100 * rate)}% of {len(outcomes)} ({low} to {high}%)."
