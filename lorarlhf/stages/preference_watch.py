"""The health of DPO, ORPO and KTO: fixed prompts are answered and fixed answers measured."""

import math
import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion, generate
from lorarlhf.backbone.oom import batches_by_length, retry_halving
from lorarlhf.evaluation.candidates import repetition
from lorarlhf.ppo.health import HealthWatch, diagnose
from lorarlhf.ppo.objective import token_logprobs
from lorarlhf.ppo.samples import shown_prompt
from lorarlhf.rewards.role import EncodedAnswer, encode_answer
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import append_jsonl
from lorarlhf.runtime.run import Run
from lorarlhf.stages.callbacks import log_beside_bars
from lorarlhf.stages.conversations import Row
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.preference_alarms import ALARMS

FILE = "samples.jsonl"
PROMPTS, TOKENS = 16, 48  # answered at each measurement, and the longest answer
TEMPERATURE = 0.8  # as on the pages
FEWEST_STEPS = 5  # between two measurements
MEASURED = {"chosen_logp", "rejected_logp", "repetition"}  # in the log's rows of the watch alone


class PreferenceWatch(TrainerCallback):
    """Measures the policy on fixed rows at a few steps, and reports the alarms.

    It does so before the training, `evaluations` times spread over it, and at its end, also where
    the minutes are over before. Each time `metrics.jsonl` gets a row with `chosen_logp` and
    `rejected_logp` (nats per token), `repetition`, `completion_length` and `ended_fraction`, and
    samples.jsonl the answers. Rows and sampling seeds are always the same, and the training's
    random state does not change.

    Args:
        run: gets the rows.
        inputs: the stage's rows; held-out rows are measured where there are some.
    """

    def __init__(self, backbone: Backbone, run: Run, inputs: StageInputs) -> None:
        self.backbone, self.run, self.settings = backbone, run, inputs.settings
        self.evaluates = inputs.eval_rows is not None
        self.health = HealthWatch(run, log_beside_bars, alarms=ALARMS, unit="Step")
        rows = inputs.eval_rows or inputs.rows
        limit = inputs.settings.max_tokens
        few = good_and_bad(rows) if knows_logits(backbone) else ([], [])
        self.good, self.bad = (_encoded(backbone, some, limit) for some in few)
        self.prompts = _short_prompts(backbone, rows, limit)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.measure(state)
            return
        log = state.log_history  # of a resumed run, which has reported these alarms before
        ends = [place + 1 for place, row in enumerate(log) if MEASURED & row.keys()]
        found = diagnose(log[: ends[-1]] if ends else [], ALARMS)
        self.health.active = {finding.alarm.name for finding in found}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A training that ends early, too, is measured with its last weights: only then can they
        # be the ones that are kept.
        due = is_due(state.global_step, state.max_steps, self.settings.evaluations)
        if due or control.should_training_stop:
            self.measure(state)
            control.should_evaluate = self.evaluates

    def measure(self, state: Any) -> None:
        """Measure the present policy; the main process does, and logs it."""
        if not state.is_world_process_zero:
            return
        figures = likelihoods(self.backbone, self.good, self.bad)
        if self.prompts:
            completions = self._sampled()
            figures |= sample_figures(completions)
            for prompt, one in zip(self.prompts, completions, strict=True):
                line = {"prompt": shown_prompt(prompt), "completion": one.text}
                append_jsonl(self.run.folder / FILE, {"step": state.global_step} | line)
        row = {"step": state.global_step} | figures
        state.log_history.append(row)  # for the checks; the checkpoint keeps it
        self.run.log(row)
        self.health.check(state.log_history, state.global_step)

    def _sampled(self) -> list[Completion]:
        def attempt(size: int) -> list[Completion]:
            return generate(
                self.backbone,
                self.prompts,
                max_new_tokens=TOKENS,
                temperature=TEMPERATURE,
                batch_size=size,
                seed=self.run.about["seed"],
                max_prompt_tokens=self.settings.max_tokens,
            )

        with torch.no_grad():
            return retry_halving(len(self.prompts), attempt)

    def summary(self, log: Sequence[Row], kept_step: int) -> Row:
        """The alarms that are on for the weights that are kept, by name."""
        until = [row for row in log if row.get("step", 0) <= kept_step]
        return {"alarms": sorted(finding.alarm.name for finding in diagnose(until, ALARMS))}


def is_due(step: int, last: int, evaluations: int) -> bool:
    """Whether a measurement is due after a step: `evaluations` times in `last` steps.

    Two are `FEWEST_STEPS` apart, and one is at the end.
    """
    gap = max(FEWEST_STEPS, math.ceil(last / max(1, evaluations)))
    return step == last or step % gap == 0


def good_and_bad(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """A few rows `{"prompt", "answer"}` that are good, and a few bad ones, drawn from the rows.

    Args:
        rows: pairs, or answers with a label.
    """
    if "chosen" in rows[0]:
        some = _drawn(rows)
        return _answers(some, "chosen"), _answers(some, "rejected")
    good = _drawn([row for row in rows if row["label"]])
    bad = _drawn([row for row in rows if not row["label"]])
    return _answers(good, "completion"), _answers(bad, "completion")


def _answers(rows: Sequence[Row], name: str) -> list[Row]:
    return [{"prompt": row["prompt"], "answer": row[name]} for row in rows]


def _drawn(rows: Sequence[Row]) -> list[Row]:
    places = random.Random(0).sample(range(len(rows)), min(PROMPTS, len(rows)))
    return [rows[place] for place in sorted(places)]


def knows_logits(backbone: Backbone) -> bool:
    """Whether `likelihoods` are the family's own; some scale their logits in a way of their own."""
    try:
        with backbone.role("base"):
            backbone.lm_head.check()
    except UserError:
        return False
    return True


def _encoded(backbone: Backbone, rows: Sequence[Row], limit: int) -> list[EncodedAnswer]:
    """The answers behind their prompts, stop token included, cut where the training cuts them."""
    found = [encode_answer(backbone, row["prompt"], row["answer"], "last") for row in rows]
    cut = [EncodedAnswer(one.ids[:limit], one.start, len(one.ids[:limit])) for one in found]
    return [one for one in cut if one.start < one.end]


def _short_prompts(backbone: Backbone, rows: Sequence[Row], limit: int) -> list[Any]:
    """A few prompts, of those that leave room for an answer in the base's context."""
    context = backbone.encoder.context
    room = limit if context is None else min(limit, context - TOKENS)
    unique = list({repr(row["prompt"]): row for row in rows}.values())
    random.Random(0).shuffle(unique)
    prompts = (row["prompt"] for row in unique)
    short = (prompt for prompt in prompts if len(backbone.encode(prompt)) <= room)
    return [prompt for prompt, _ in zip(short, range(PROMPTS), strict=False)]


def likelihoods(
    backbone: Backbone, good: Sequence[EncodedAnswer], bad: Sequence[EncodedAnswer]
) -> Row:
    """Mean log-probability of a token under the policy, in nats: a mean over answers of their own.

    Returns:
        `chosen_logp` and `rejected_logp`, as far as there are answers of a kind.
    """
    answers = [*good, *bad]
    lengths, means = [len(one.ids) for one in answers], [0.0] * len(answers)
    with torch.no_grad(), backbone.role("policy"):
        for rows, found in batches_by_length(
            lengths, PROMPTS, lambda rows: _token_means(backbone, [answers[i] for i in rows])
        ):
            for place, mean in zip(rows, found, strict=True):
                means[place] = mean
    parts = {"chosen_logp": means[: len(good)], "rejected_logp": means[len(good) :]}
    return {name: fmean(values) for name, values in parts.items() if values}


def _token_means(backbone: Backbone, answers: Sequence[EncodedAnswer]) -> list[float]:
    """For each answer the mean log-probability of its tokens."""
    ids, mask, own = EncodedAnswer.batch(answers, backbone.pad_id, backbone.device)
    hidden = backbone.forward.hidden(ids, mask)[:, :-1]  # (B, T - 1, H)
    own, head = own[:, 1:], backbone.lm_head
    logprobs, _ = token_logprobs(
        hidden[own], head.weight, ids[:, 1:][own], softcap=head.softcap, products=head.products
    )
    return [part.mean().item() for part in logprobs.split(own.sum(1).tolist())]


def sample_figures(completions: Sequence[Completion]) -> Row:
    """`repetition` within an answer (seq-rep-4), `completion_length` and `ended_fraction`."""
    words = [one.ids[:-1] if one.ended else one.ids for one in completions]
    return {
        "repetition": fmean(repetition(ids) for ids in words),
        "completion_length": fmean(len(one.ids) for one in completions),
        "ended_fraction": fmean(float(one.ended) for one in completions),
    }
