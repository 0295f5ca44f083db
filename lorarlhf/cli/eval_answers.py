"""Answers for `eval`: of the base, of best of n and of each policy, with the KL from the base."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import (
    Completion,
    check_chat_template,
    encode_prompts,
    generate_encoded,
)
from lorarlhf.cli.eval_history import made_with
from lorarlhf.cli.eval_plan import EvalPlan
from lorarlhf.data.readers import as_conversation
from lorarlhf.evaluation.candidates import BASE, Candidate
from lorarlhf.evaluation.skills import Task
from lorarlhf.ppo.divergence import sampled_kl
from lorarlhf.rewards.best_of import best_of, kl_bound
from lorarlhf.rewards.raters import Answer
from lorarlhf.rewards.role import score_answers
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr, progress_bar
from lorarlhf.stages.conversations import prompt_conversations

Row = dict[str, Any]
BATCH_SIZE = 25
ANSWER_TOKENS, TASK_TOKENS = 128, 64
"""The longest answer, in tokens, to a held-out prompt and to a task."""


@dataclass
class Answering:
    """Answers of one candidate after the other to the same questions, with the same seeds.

    Attributes:
        rows: the held-out prompts as they are answered, with their columns, each as often as it
            is answered; groups: the number of the prompt of each.
        tasks: the short tasks; empty to leave them out.
        told: the answers to the tasks by candidate, filled by `answer`.
    """

    backbone: Backbone
    plan: EvalPlan
    args: Namespace
    tasks: list[Task]
    rows: list[Row] = field(init=False)
    groups: list[int] = field(init=False)
    told: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = self.plan.settings.own
        prompts = prompt_conversations(self.plan.prompts, own["plain"])
        self.rows = prompts * self.args.samples
        self.groups = list(range(len(prompts))) * self.args.samples
        limit = own["max_prompt_tokens"]
        self.encoded = encode_prompts(self.backbone, [row["prompt"] for row in self.rows], limit)
        asked = [task.prompt for task in self.tasks]
        self.asked = asked if own["plain"] else [as_conversation(prompt) for prompt in asked]
        check_chat_template(self.backbone, self.asked)
        self.measures_kl = self._knows_logits()

    def _knows_logits(self) -> bool:
        try:
            with self.backbone.role(BASE):
                self.backbone.lm_head.check()
        except UserError:
            log_to_stderr("The KL is not measured: this family scales its logits in its own way.")
            return False
        return True

    # ---- candidates

    def base(self) -> Candidate:
        """The base without adapters."""
        completions = self._answers(BASE, BASE)
        return _candidate(BASE, completions, kl=[0.0] * len(completions))

    def best_of(self, count: int, reward: str) -> Candidate:
        """The best of so many answers of the base, picked by the reward role.

        It does no tasks: the base's weights are unchanged, so nothing can be forgotten.

        Args:
            reward: the folder of its run.
        """
        name = f"best of {count}"
        prompts = [row["prompt"] for row in self.rows]
        completions = self._best(name, prompts, count) if prompts else []
        return _candidate(name, completions, kl_bound=kl_bound(count), made_with=(reward,))

    def policy(self, name: str) -> Candidate:
        """One of the plan's policies, which is loaded for it."""
        source = self.plan.policies[name]
        self.backbone.load_role("policy", source.adapter)
        completions = self._answers("policy", name)
        kl = self._kl(completions, name) if self.measures_kl else []
        more: Row = {"run": str(source.run), "made_with": made_with(source)}
        return _candidate(name, completions, kl=kl, **more)

    def reward_scores(self, candidate: Candidate) -> list[float | None]:
        """The reward role's scores of a candidate's answers."""
        texts = [answer.text for answer in candidate.answers]
        return [*score_answers(self.backbone, [row["prompt"] for row in self.rows], texts)]

    # ---- sampling

    def _answers(self, role: str, name: str) -> list[Completion]:
        if self.tasks:  # the likeliest answer to each
            encoded = [self.backbone.encode(prompt) for prompt in self.asked]
            found = self._sample(role, f"{name}: tasks", encoded, TASK_TOKENS, 0.0)
            self.told[name] = [one.text for one in found]
        temperature = self.args.temperature
        return self._sample(role, name, self.encoded, ANSWER_TOKENS, temperature)

    def _sample(
        self, role: str, title: str, encoded: list[list[int]], tokens: int, temperature: float
    ) -> list[Completion]:
        if not encoded:
            return []
        with progress_bar(title, len(encoded)) as advance, self.backbone.role(role):
            return generate_encoded(
                self.backbone,
                encoded,
                max_new_tokens=self.args.max_new_tokens or tokens,
                temperature=temperature,
                batch_size=BATCH_SIZE,
                seed=self.plan.settings.seed,
                progress=_steps(advance),
            )

    def _best(self, name: str, prompts: Sequence[Any], count: int) -> list[Completion]:
        found: list[Completion] = []
        with progress_bar(name, len(prompts)) as advance:
            for start in range(0, len(prompts), BATCH_SIZE):
                some = prompts[start : start + BATCH_SIZE]
                best = best_of(
                    self.backbone,
                    some,
                    count,
                    role=BASE,
                    max_new_tokens=self.args.max_new_tokens or ANSWER_TOKENS,
                    temperature=self.args.temperature,
                    batch_size=BATCH_SIZE,
                    seed=self.plan.settings.seed + 1 + start,  # not the base's own answers
                    max_prompt_tokens=self.plan.settings.own["max_prompt_tokens"],
                )
                found += [one.answer for one in best]
                advance(len(some))
        return found

    def _kl(self, completions: list[Completion], name: str) -> list[float]:
        """The KL of each answer from the base, in nats, at the temperature of the sampling."""
        temperature = self.args.temperature
        with progress_bar(f"{name}: KL", len(completions)) as advance:
            return sampled_kl(self.backbone, self.encoded, completions, temperature, BASE, advance)


def _candidate(name: str, completions: Sequence[Completion], **more: Any) -> Candidate:
    answers = [Answer.of(one) for one in completions]
    return Candidate(name, answers, [one.ids for one in completions], **more)


def _steps(advance: Callable[[int], Any]) -> Callable[[int], None]:
    """A function of the number done so far, for a bar that takes the number of new ones."""
    before = 0

    def progress(done: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return progress
