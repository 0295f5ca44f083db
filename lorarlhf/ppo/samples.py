"""Answers to the same few prompts at several points of the training."""

import random
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import encode_prompts, generate
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.micro_batches import make_micro_batches
from lorarlhf.ppo.rollout import Answers
from lorarlhf.ppo.scores import Rewards
from lorarlhf.runtime.files import append_jsonl, readable_rows, write_jsonl

PROMPTS = 4
FILE = "samples.jsonl"


class SampleCallback(TrainerCallback):
    """Writes `{"step", "prompt", "completion", "score"}` for a few fixed prompts to samples.jsonl.

    It does so before the first update, every `save_steps` updates, and after the last one. Prompts
    and sampling seed are always the same, and the training's random state does not change.

    Args:
        backbone: its policy answers.
        rows: the training prompts, from which a few are chosen.
        args: lengths, temperature and seed.
        rewards: scores the answers.
        folder: the run's folder.
    """

    def __init__(
        self, backbone: Backbone, rows: Any, args: PPOConfig, rewards: Rewards, folder: Path
    ) -> None:
        self.backbone, self.args, self.rewards = backbone, args, rewards
        self.file = folder / FILE
        count = min(PROMPTS, len(rows))
        self.rows = [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), count))]
        self.last_step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if state.is_world_process_zero and not self._is_written(step):
            self.last_step = -1  # killed after the last checkpoint, while these were written
        else:
            self.last_step = step
        if step == 0:
            self.write(state)

    def _is_written(self, step: int) -> bool:
        """Whether the file has all samples of a step; an incomplete set is removed."""
        if not self.file.exists():
            return False
        rows = list(readable_rows(self.file))
        now = [row for row in rows if row["step"] == step]
        if now and len(now) < len(self.rows):
            write_jsonl(self.file, [row for row in rows if row["step"] != step])
        return len(now) == len(self.rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % max(1, int(self.args.save_steps)) == 0:
            self.write(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.last_step:
            self.write(state)

    def write(self, state: Any) -> None:
        """Answer the prompts with the present policy and append one line for each."""
        self.last_step = state.global_step
        if not state.is_world_process_zero:
            return
        args, backbone = self.args, self.backbone
        prompts = [row["prompt"] for row in self.rows]
        completions = generate(
            backbone,
            prompts,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            max_prompt_tokens=args.max_prompt_tokens,
            seed=args.seed,
        )
        encoded = encode_prompts(backbone, prompts, args.max_prompt_tokens)
        micros = make_micro_batches(backbone, encoded, completions, args.micro_batch_size)
        answers = Answers(self.rows, completions, [micros])
        scores = self.rewards.score(answers, range(len(self.rows)), state).sums
        for prompt, answer, score in zip(prompts, completions, scores, strict=True):
            line = {
                "step": state.global_step,
                "prompt": shown_prompt(prompt),
                "completion": answer.text,
            }
            append_jsonl(self.file, line | {"score": score})


def shown_prompt(prompt: Any) -> Any:
    """A conversation of one message as its text; longer ones as their messages."""
    return prompt[0]["content"] if isinstance(prompt, list) and len(prompt) == 1 else prompt
