"""Conversations with one or two models, as plain functions; `chat_page.py` only shows them.

Both sides answer the same conversation, so the last two answers can always be compared. The
conversation continues with the answer that was voted for, or with the left one.
"""

import random
import threading
from collections.abc import Iterator
from typing import Any

from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, RANKED, TIE, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.conversation import Conversation, Picked, Turn
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.reward_role import RewardRole
from lorarlhf_ui.votes import LONGEST_TEXT, View, storable

UPDATE_SECONDS = 0.5
BEST_OF = (1, 4, 8)
"""From how many answers the reward role may pick one."""
VERDICTS = {
    "left": Verdict(RANKED, [[0], [1]]),
    "right": Verdict(RANKED, [[1], [0]]),
    "tie": Verdict(TIE),
    "both_good": Verdict(BOTH_GOOD),
    "both_bad": Verdict(BOTH_BAD),
}


class Conversations:
    """All raters' conversations; they last as long as the server runs.

    Args:
        store: the votes on the answers.
        prefetch: knows the models and the engine.
        meter: learns from the votes.
    """

    def __init__(self, store: Store, prefetch: Prefetch, meter: Meter) -> None:
        self.store, self.prefetch, self.meter = store, prefetch, meter
        self.reward = RewardRole(prefetch.project, prefetch.engine)
        self._conversations: dict[str, Conversation] = {}
        self._lock = threading.RLock()

    def of(self, rater: str) -> Conversation:
        """The rater's conversation as it is now; a new one if there is none."""
        with self._lock:
            conversation = self._conversations.setdefault(rater, Conversation())
            self._update(conversation)
            return conversation

    def restart(self, rater: str) -> Conversation:
        """Replace the rater's conversation by a new one."""
        with self._lock:
            old, new = self.of(rater), Conversation()
            self._conversations[rater] = new  # before stopping, so that the old one is not shown
        self._stop(old)
        return new

    def stop(self, rater: str) -> None:
        """Stop generating answers; the text so far stays."""
        self._stop(self.of(rater))

    def _stop(self, conversation: Conversation) -> None:
        with self._lock:
            job = conversation.job
            if job is None or not conversation.busy:
                return
            # The next message may follow at once, so the answers stay as they are now.
            conversation.turns[-1].answers = list(job.texts)
            job.update(stopping=True)
        self.prefetch.engine.stop(job)

    def send(
        self,
        rater: str,
        text: str,
        names: list[str],
        *,
        system: str = "",
        temperature: float = 0.7,
        max_new_tokens: int = 256,
        best_of: int = 1,
        at: int | None = None,
    ) -> Iterator[Conversation]:
        """Send a message; yields the conversation repeatedly while the answers grow.

        If it fails, the conversation is as it was before.

        Args:
            names: one or two models, as in `Models.names`.
            system: the system prompt; only a new conversation takes it.
            best_of: how many answers each model writes; the reward role picks. One of `BEST_OF`.
            at: the turn that the message replaces, with all turns after it; None to continue.

        Raises:
            UserError: the message is empty, a model does not exist, there is nobody to pick the
                best answer, or the engine failed.
        """
        text = storable(text or "").strip()
        if not text:
            raise UserError("Type something first.")
        if len(text) > LONGEST_TEXT:
            raise UserError(f"A message has up to {LONGEST_TEXT} characters.")
        chosen = [self.prefetch.models.place(name) for name in names]
        picking = self._picking(best_of, temperature, len(chosen))
        # In a new order at every turn, so that a vote is blind.
        places = random.sample(chosen, len(chosen))
        with self._lock:  # another tab may send a message at the same time
            conversation = self.of(rater)
            if conversation.busy:
                raise UserError("Still answering. Stop that first.")
            conversation.before = conversation.system, conversation.turns, conversation.options
            turn = Turn(text, places, [""] * len(places))
            conversation.models = chosen
            conversation.turns = [*conversation.turns[:at], turn]
            if len(conversation.turns) == 1:
                conversation.system = storable(system or "").strip()
            conversation.options = {
                "temperature": float(temperature),
                "max_new_tokens": int(max_new_tokens),
            }
            prompt = conversation.prompt(len(conversation.turns) - 1)
            conversation.job = self.prefetch.engine.answer(
                prompt,
                places,
                urgent=True,
                features=len(places) > 1,
                **conversation.options,
                **picking,
            )
            conversation.options |= {"best_of": best_of} if picking else {}
            conversation.settled = False
        yield from self.watch(rater)

    def _picking(self, best_of: int, temperature: float, models: int) -> dict[str, Any]:
        """What the engine needs to let the reward role pick; nothing for one answer."""
        if best_of not in BEST_OF:
            raise UserError(f"The best of {', '.join(map(str, BEST_OF))} answers can be asked for.")
        if best_of == 1:
            return {}
        if temperature == 0:
            raise UserError(
                "At temperature 0 all answers are the same, so there is none to pick. Choose a "
                "higher one, or one answer."
            )
        return {"counts": [best_of] * models, "reward": self.reward.adapter()}

    def watch(self, rater: str) -> Iterator[Conversation]:
        """Yield the conversation repeatedly while its answers grow, and once at their end.

        The answers go on if nobody watches, so a page that was reloaded finds them again.

        Raises:
            UserError: the engine failed, and the conversation is as it was before the message.
        """
        conversation = self.of(rater)
        job = conversation.job
        while job is not None:
            ended = job.done or job.stopping
            if self.of(rater) is not conversation or conversation.job is not job:
                return
            if job.error is not None and not job.stopping:
                raise UserError(job.error)
            yield conversation
            if ended:
                return
            job.wait_for_more(conversation.turns[-1].answers, UPDATE_SECONDS)

    def is_answering(self, rater: str, text: str) -> bool:
        """Whether this very message is being answered."""
        conversation = self.of(rater)
        asked = conversation.turns[-1].message if conversation.turns else None
        return conversation.busy and storable(text or "").strip() == asked

    def retry(self, rater: str, names: list[str], **options: Any) -> Iterator[Conversation]:
        """Answer the last message again."""
        conversation = self.of(rater)
        if not conversation.turns:
            raise UserError("There is nothing to answer yet.")
        last = len(conversation.turns) - 1
        yield from self.edit(rater, last, conversation.turns[last].message, names, **options)

    def edit(
        self, rater: str, number: int, text: str, names: list[str], **options: Any
    ) -> Iterator[Conversation]:
        """Replace the message of a turn; the turns after it are dropped."""
        if not 0 <= number < len(self.of(rater).turns):
            raise UserError("The server does not know this message any more. Reload the page.")
        yield from self.send(rater, text, names, at=number, **options)

    def authors(self, turn: Turn) -> list[str]:
        """Who wrote the answers of a turn, by the names that the pages show."""
        models = self.prefetch.models
        names = [models.label(place).removeprefix("runs/") for place in turn.models]
        return [models.title(name) for name in names]

    def vote(self, rater: str, choice: str) -> Conversation:
        """Store a vote on the last two answers; the conversation continues with the better one.

        Args:
            choice: a key of `VERDICTS`.

        Raises:
            UserError: there are no two complete answers, or they have a vote already.
        """
        with self._lock:  # a second click waits here, and then finds the vote
            conversation = self.of(rater)
            turn = conversation.turns[-1] if conversation.turns else None
            if turn is None or len(turn.answers) < 2 or conversation.busy:
                raise UserError("There are no two finished answers to compare.")
            if turn.vote is not None:
                raise UserError("You have voted on these. Correct your vote on the History page.")
            if not all(answer.strip() for answer in turn.answers):
                raise UserError("One of the answers is empty. Answer again first.")
            turn.vote = self._store_vote(rater, conversation, turn, VERDICTS[choice])
            turn.chosen = 1 if choice == "right" else 0
        self.meter.voted(rater, turn.vote)
        return conversation

    def _store_vote(
        self, rater: str, conversation: Conversation, turn: Turn, verdict: Verdict
    ) -> int:
        labels = [self.prefetch.models.label(place) for place in turn.models]
        sampling = dict(conversation.options)
        if turn.picked is None:  # answers that were stopped before the reward role could pick
            sampling.pop("best_of", None)
        with self.store.write():
            item = self.store.add_item(
                conversation.prompt(len(conversation.turns) - 1),
                list(zip(turn.answers, labels, strict=True)),
                sampling=[sampling] * 2,
                origin={"page": "chat"},
            )
            shown = self.store.present(item, rater, shown=[0, 1])
            return self.store.judge(shown.token, verdict)

    def open_answers(self, rater: str) -> list[str]:
        """The last two answers, if there is no vote on them."""
        turns = self.of(rater).turns
        return list(turns[-1].answers) if turns and turns[-1].open else []

    def score(self, rater: str) -> Conversation:
        """Add the newest reward role's scores to the last answers; to two of them after the vote.

        Raises:
            UserError: there is no reward role yet, or the model is busy.
        """
        conversation = self.of(rater)
        self.reward.adapter()  # fails if there is none
        if conversation.turns and not conversation.busy:
            turn = conversation.turns[-1]
            if turn.open:  # a score would sway the vote
                return conversation
            prompt = conversation.prompt(len(conversation.turns) - 1)
            turn.scores = self.reward.scores(prompt, turn.answers)
        return conversation

    def shares(self, rater: str, data: View) -> View:
        """One answer as a heat map, `html`: what the reward role likes in it.

        Args:
            data: `turn`, the number of the turn, and `side`, 0 or 1.

        Raises:
            UserError: there is no such answer or no vote on it yet, or the model can't say.
        """
        conversation = self.of(rater)
        turn, side = data.get("turn"), data.get("side")
        if not (isinstance(turn, int) and 0 <= turn < conversation.judgeable and side in (0, 1)):
            raise UserError("Vote first, or wait for the end of the answer; then ask again.")
        prompt, answer = conversation.prompt(turn), conversation.answer(turn, int(side))
        return {"html": self.reward.heat_maps(prompt, [answer])[0]}

    def _update(self, conversation: Conversation) -> None:
        """Take over what was generated, unless somebody has stopped it, and what goes with it."""
        job = conversation.job
        if job is None or conversation.settled:
            return
        turn, conversation.settled = conversation.turns[-1], job.done
        if job.error is None and not job.stopping:
            turn.answers = list(job.texts)
        if not conversation.settled:
            return
        if job.error is not None and not job.stopping and conversation.before is not None:
            conversation.system, conversation.turns, conversation.options = conversation.before
        elif job.value is not None and job.texts == turn.answers:
            if scores := job.value.get("scores"):
                best_of = conversation.options["best_of"]
                turn.picked = Picked(best_of, scores, max(job.value["bounds"]))
            if job.value.get("features"):
                prompt = conversation.prompt(len(conversation.turns) - 1)
                self.prefetch.states.put(prompt, turn.answers, job.value["features"])
