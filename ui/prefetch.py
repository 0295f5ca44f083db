"""Answers generated in the background, so that raters do not have to wait for the model."""

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from lorarlhf.data.readers import as_conversation, read_prompts
from lorarlhf.preferences.queue import is_shared, waiting
from lorarlhf.preferences.records import Prompt
from lorarlhf.preferences.settings import ANSWERS, read_setting, write_setting
from lorarlhf.preferences.statistics import count_asked
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import append_jsonl
from lorarlhf_ui.engine_client import RESTING, SILENT, Engine, Job
from lorarlhf_ui.engine_worker import describe
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.information_order import MOST_COMPARED, InformationOrder
from lorarlhf_ui.models import INFORMATION, AnswerSettings, Models

if TYPE_CHECKING:
    from lorarlhf.rewards.posterior import Posterior

READY_ITEMS = 6
"""How many unseen items are kept ready, unless one is chosen among more."""
MAX_FAILED_IN_A_ROW = 5
"""After so many prompts without comparable answers the settings are probably the reason."""
RETRY_SECONDS = 5.0
ALIKE = (
    "The answers are identical or empty, so there is nothing to compare. Choose a higher "
    "temperature or another model."
)
GONE = "A model that should answer no longer exists. Choose another one on the Settings page."


def read_settings(store: Store) -> AnswerSettings:
    """How answers are generated now, and which of them are asked next."""
    return AnswerSettings(**(read_setting(store, ANSWERS) or {}))


class Prefetch:
    """Keeps some items ready; also starts the live answers that a rater waits for.

    Args:
        project: its prompts are asked.
        store: its votes; a store of its own, since a thread uses it.
        engine: generates the answers.
        states: keeps the hidden states of the answers.

    Attributes:
        order: which of the items that are ready would teach the most.
        problem: why no items are being made at the moment; "" if nothing is wrong.
    """

    def __init__(
        self, project: Project, store: Store, engine: Engine, states: HiddenStates
    ) -> None:
        self.project, self.store, self.engine, self.states = project, store, engine, states
        self.models = Models(project)
        # A store of its own: a rater waits for the order, and must not wait for the thread's scans.
        self.order = InformationOrder(project.store(), states)
        self.problem = ""
        self._random = random.Random()
        self._failed: Counter[str] = Counter()  # by prompt: requests without comparable answers
        self._failed_in_a_row = 0
        self._file_lock = threading.RLock()
        self._wake, self._closed = threading.Event(), False
        threading.Thread(target=self._work, daemon=True, name="prefetch").start()

    def settings(self) -> AnswerSettings:
        """How answers are generated now."""
        return read_settings(self.store)

    def change_settings(self, settings: AnswerSettings) -> None:
        """Generate answers in another way from now on; the store keeps the settings.

        Raises:
            UserError: a model does not exist, or a value is out of its range.
        """
        names = [name for name in (settings.model, settings.against) if name]
        places = {self.models.place(name) for name in names}
        settings.check_ranges()
        if settings.temperature == 0 and len(places) < settings.answers:
            raise UserError(
                "At temperature 0 a model always writes the same answer, so there is nothing to "
                "compare. Choose a higher one."
            )
        write_setting(self.store, ANSWERS, asdict(settings))
        self.wake()

    def learn(self, rater: str, head: "Posterior | None") -> None:
        """Take over the head of a rater, if the order needs it; see `InformationOrder`."""
        if self.settings().order == INFORMATION:
            self.order.learn(rater, head)

    def wake(self) -> None:
        """Check now whether more items are needed."""
        self._wake.set()

    def close(self) -> None:
        """Stop making items."""
        self._closed = True
        self._wake.set()

    def start(self, prompt: Prompt, urgent: bool) -> tuple[Job, list[str], AnswerSettings]:
        """Start answers to a prompt.

        Returns:
            The job, the model of each answer, and the settings they were started with.
        """
        settings = self.settings()
        try:
            places = [self.models.place(settings.model)] * settings.answers
            if settings.against:
                places[1] = self.models.place(settings.against)
        except UserError as error:  # it names a model, and raters must not see names
            raise UserError(GONE) from error
        job = self.engine.answer(
            prompt,
            places,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            urgent=urgent,
            features=True,
        )
        return job, places, settings

    def save(
        self,
        prompt: Prompt,
        job: Job,
        places: list[str],
        settings: AnswerSettings,
        *,
        shown: Sequence[str] | None = None,
        store: Store | None = None,
    ) -> int | None:
        """Store answers as an item.

        Args:
            shown: the part of the answers that a rater saw, if the job may still be running.
            store: use this store, which may have a transaction open.

        Returns:
            The item's number; None if answers are identical or empty, which can't be compared.
        """
        complete = job.done and shown in (None, job.texts)
        texts = [text.strip() for text in (job.texts if shown is None else shown)]
        if len(set(texts)) < len(texts) or not all(texts):
            return None
        value = job.value if complete and isinstance(job.value, dict) else {}
        ended = value.get("ended") or [False] * len(texts)
        sampling = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
        if value.get("features"):
            self.states.put(prompt, texts, value["features"])
        return (store or self.store).add_item(
            prompt,
            [(text, self.models.label(place)) for text, place in zip(texts, places, strict=True)],
            sampling=[sampling | {"ended": bool(end)} for end in ended],
            shared=is_shared(_key(prompt), settings.overlap),
        )

    def failed(self, prompt: Prompt) -> None:
        """Note that a prompt gave nothing to compare, so that other prompts come first."""
        with self._file_lock:
            self._failed[_key(prompt)] += 1

    def next_prompt(self) -> Prompt:
        """One of the project's prompts that were used least often, drawn at random."""
        prompts = {_key(prompt): prompt for prompt in self.prompts()}
        asked = count_asked(self.store, list(prompts.values()))
        with self._file_lock:
            uses = {key: self._failed[key] + n for key, n in zip(prompts, asked, strict=True)}
        fewest = min(uses.values())
        return self._random.choice([p for key, p in prompts.items() if uses[key] == fewest])

    def prompts(self) -> list[Prompt]:
        """The project's prompts, as conversations."""
        with self._file_lock:  # `add_prompt` may be writing the file
            return [as_conversation(row["prompt"]) for row in read_prompts(self.project.prompts)]

    def add_prompt(self, text: str, rater: str, for_all: bool = True) -> Prompt:
        """Keep a prompt that a rater typed, in the store.

        Args:
            for_all: keep it in the project's file, too, so that others are asked it.
        """
        prompt = as_conversation(text)
        with self._file_lock:
            if for_all and _key(prompt) not in {_key(known) for known in self.prompts()}:
                append_jsonl(self.project.prompts, {"prompt": text})
        self.store.add_prompt(prompt, f"typed by {rater}")
        return prompt

    # ---- in the thread

    def _work(self) -> None:
        while not self._closed:
            try:
                running = self.engine.state not in SILENT
                if running and waiting(self.store) < self._wanted():
                    self._make_item()
                    self.problem = ""
                    continue
            except Exception as error:  # the page shows it, and it is tried again
                # A model that rests says so itself.
                self.problem = "" if self.engine.state == RESTING else describe(error)
            self._wake.wait(RETRY_SECONDS)
            self._wake.clear()

    def _wanted(self) -> int:
        """How many items are to be ready: more if one is chosen among them."""
        return MOST_COMPARED if self.settings().order == INFORMATION else READY_ITEMS

    def _make_item(self) -> None:
        prompt = self.next_prompt()
        job, places, settings = self.start(prompt, urgent=False)
        try:
            job.wait()
        except UserError:
            if self.engine.state != RESTING:
                self.failed(prompt)
            raise
        if settings != self.settings():  # they were changed in the meantime
            return
        if self.save(prompt, job, places, settings) is not None:
            self._failed_in_a_row = 0
            return
        self.failed(prompt)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED_IN_A_ROW:
            raise UserError(ALIKE)


def _key(prompt: Prompt) -> str:
    # Sorted: the store returns the fields of a message in another order.
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
