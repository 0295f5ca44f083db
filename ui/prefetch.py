"""Answers made ahead in the background, so that nobody who rates has to wait for a model."""

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lorarlhf.data.readers import as_conversation, read_prompts
from lorarlhf.preferences.queue import is_shared, waiting
from lorarlhf.preferences.records import Prompt
from lorarlhf.preferences.settings import read_setting, write_setting
from lorarlhf.preferences.statistics import count_asked
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import append_jsonl
from lorarlhf_ui.engine_client import BASE, FAILED, OFF, Engine, Job
from lorarlhf_ui.engine_worker import in_words
from lorarlhf_ui.hidden_states import HiddenStates

READY_ITEMS = 6
"""Items that wait for raters; where there are fewer, more are made."""
SETTING = "collect"
IN_VAIN_IN_A_ROW = 5
"""After so many prompts without answers that can be compared, it is how they are made."""
ALIKE = (
    "The answers come out alike or empty, so there is nothing to compare. Choose a higher "
    "temperature or another model."
)
GONE = "A model that was to answer is gone. Choose another one on the Settings page."


@dataclass(frozen=True)
class Making:
    """How answers are made.

    Attributes:
        model: `newest` (the newest policy, or the base where there is none), `base`, or a run.
        against: the second answer's model, where it is another one; "" for the same.
        answers: two, or up to six to be ranked.
        overlap: share of the prompts that every rater is asked.
    """

    model: str = "newest"
    against: str = ""
    answers: int = 2
    temperature: float = 0.8
    max_new_tokens: int = 128
    overlap: float = 0.0


class Models:
    """The base and the runs' policies, by the names that the pages show."""

    def __init__(self, space: Project) -> None:
        self.space = space

    def names(self) -> list[str]:
        """`base`, then the runs with a policy, the newest first."""
        return [BASE, *(run.name for run in self.space.runs() if _policy(run).is_dir())]

    def place(self, name: str) -> str:
        """What the engine loads for a name; also for `newest`.

        Raises:
            UserError: there is no such run any more.
        """
        names = self.names()
        if name == "newest":
            finished = self.space.newest_with("policy")
            name = finished.name if finished else BASE
        if name not in names:
            raise UserError(f"There is no policy {name} in this project any more.")
        return name if name == BASE else str(_policy(self.space.folder / "runs" / name))

    def label(self, place: str) -> str:
        """The name behind a place, as it is kept with an answer."""
        return place if place == BASE else f"runs/{Path(place).parents[1].name}"


def _policy(run: Path) -> Path:
    return run / "adapters" / "policy"


class Prefetch:
    """Keeps some items ready; also starts the live ones that somebody waits for.

    Args:
        space: the project, whose prompts are asked.
        store: of its votes.
        states: where the hidden states of the answers are kept.
    """

    def __init__(self, space: Project, store: Store, engine: Engine, states: HiddenStates) -> None:
        self.space, self.store, self.engine, self.states = space, store, engine, states
        self.models = Models(space)
        self.trouble = ""
        self._random = random.Random()
        self._in_vain: Counter[str] = Counter()  # asked without an item to show for it, by prompt
        self._row = 0
        self._file = threading.RLock()
        self._wake, self._closed = threading.Event(), False
        threading.Thread(target=self._work, daemon=True, name="ahead").start()

    def making(self) -> Making:
        """How answers are made now."""
        return Making(**(read_setting(self.store, SETTING) or {}))

    def make(self, making: Making) -> None:
        """Change how answers are made from now on; it is kept.

        Raises:
            UserError: a value that can't be.
        """
        places = [self.models.place(name) for name in (making.model, making.against) if name]
        within = (
            2 <= making.answers <= 6
            and 0 <= making.temperature <= 5
            and 1 <= making.max_new_tokens <= 4096
            and 0 <= making.overlap <= 1
        )
        if not within:
            raise UserError(
                "Answers are 2 to 6, the temperature 0 to 5, new tokens 1 to 4096, the overlap 0 "
                "to 1."
            )
        if making.temperature == 0 and len(set(places)) < making.answers:
            raise UserError(
                "At temperature 0 a model always writes the same answer, so there is nothing to "
                "compare. Choose a higher one."
            )
        write_setting(self.store, SETTING, asdict(making))
        self.look()

    def look(self) -> None:
        """See whether more items are wanted."""
        self._wake.set()

    def close(self) -> None:
        """Make no more."""
        self._closed = True
        self._wake.set()

    def start(self, prompt: Prompt, urgent: bool) -> tuple[Job, list[str], Making]:
        """Begin answers to a prompt: the job, and the model of each answer."""
        making = self.making()
        try:
            places = [self.models.place(making.model)] * making.answers
            if making.against:
                places[1] = self.models.place(making.against)
        except UserError as error:  # the page of those who rate blindly tells no name
            raise UserError(GONE) from error
        job = self.engine.answer(
            prompt,
            places,
            temperature=making.temperature,
            max_new_tokens=making.max_new_tokens,
            urgent=urgent,
            features=True,
        )
        return job, places, making

    def keep(
        self,
        prompt: Prompt,
        job: Job,
        places: list[str],
        making: Making,
        *,
        told: Sequence[str] | None = None,
        store: Store | None = None,
    ) -> int | None:
        """Put answers into the store as an item; None where they are alike or empty.

        Args:
            told: as much of them as somebody saw, where the job goes on.
            store: whose transaction this is part of.
        """
        whole = job.done and told in (None, job.texts)
        texts = [text.strip() for text in (job.texts if told is None else told)]
        if len(set(texts)) < len(texts) or not all(texts):
            return None
        value = job.value if whole and isinstance(job.value, dict) else {}
        ended = value.get("ended") or [False] * len(texts)
        how = {"temperature": making.temperature, "max_new_tokens": making.max_new_tokens}
        if value.get("features"):
            self.states.put(prompt, texts, value["features"])
        return (store or self.store).add_item(
            prompt,
            [(text, self.models.label(place)) for text, place in zip(texts, places, strict=True)],
            sampling=[how | {"ended": bool(end)} for end in ended],
            shared=is_shared(_key(prompt), making.overlap),
        )

    def failed(self, prompt: Prompt) -> None:
        """A prompt was asked and gave nothing to compare: others have their turn first."""
        with self._file:
            self._in_vain[_key(prompt)] += 1

    def next_prompt(self) -> Prompt:
        """One of the project's prompts that was asked least often, drawn at random."""
        prompts = {_key(prompt): prompt for prompt in self.prompts()}
        with self._file:
            asked = self._in_vain.copy()
        for prompt, count in count_asked(self.store):
            asked[_key(prompt)] += count
        fewest = min(asked[key] for key in prompts)
        return self._random.choice([p for key, p in prompts.items() if asked[key] == fewest])

    def prompts(self) -> list[Prompt]:
        """The project's prompts, as conversations."""
        with self._file:  # not while somebody's prompt is added to it
            return [as_conversation(row["prompt"]) for row in read_prompts(self.space.prompts)]

    def add_prompt(self, text: str, rater: str) -> Prompt:
        """Keep a prompt that somebody typed, in the project's file and in the store."""
        prompt = as_conversation(text)
        with self._file:
            if _key(prompt) not in {_key(known) for known in self.prompts()}:
                append_jsonl(self.space.prompts, {"prompt": text})
        self.store.add_prompt(prompt, f"typed by {rater}")
        return prompt

    # ---- in the thread

    def _work(self) -> None:
        while not self._closed:
            try:
                wanted = self.engine.state not in (OFF, FAILED)
                if wanted and waiting(self.store) < READY_ITEMS:
                    self._one()
                    self.trouble = ""
                    continue
            except Exception as error:  # told on the page; tried again later
                self.trouble = in_words(error)
            self._wake.wait(5.0)
            self._wake.clear()

    def _one(self) -> None:
        prompt = self.next_prompt()
        job, places, making = self.start(prompt, urgent=False)
        try:
            job.wait()
        except UserError:
            self.failed(prompt)
            raise
        if making != self.making():  # made as nobody wants it any more
            return
        if self.keep(prompt, job, places, making) is not None:
            self._row = 0
            return
        self.failed(prompt)
        self._row += 1
        if self._row >= IN_VAIN_IN_A_ROW:
            raise UserError(ALIKE)


def _key(prompt: Prompt) -> str:
    # Sorted: a prompt out of the store has its fields in another order.
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
