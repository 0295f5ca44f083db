"""The same few prompts answered through training: what people look at first."""

import json
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
from lorarlhf.runtime.files import append_jsonl, write_jsonl

PROMPTS = 4
FILE = "samples.jsonl"


class SampleCallback(TrainerCallback):
    """Writes `{"step", "prompt", "completion", "score"}` for a few fixed prompts to samples.jsonl.

    Before the first update, every `save_steps` updates, and after the last. The prompts and the
    seed of the sampling are always the same, and the training's own random state is left alone.

    Args:
        backbone: whose policy answers.
        rows: the prompts of the training, from which a few are taken.
        args: lengths, temperature and seed.
        rewards: what scores the answers.
        folder: of the run.
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
        if state.is_world_process_zero and not self._written(step):
            self.last_step = -1  # killed after the last checkpoint, before these were whole
        else:
            self.last_step = step
        if step == 0:
            self.write(state)

    def _written(self, step: int) -> bool:
        """Whether a resumed run has all of this step's samples; drops a part of them."""
        if not self.file.exists():
            return False
        lines = self.file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
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
        """Answer the prompts with the policy as it stands and add one line for each."""
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
        everyone = range(len(self.rows))
        scores, _ = self.rewards.score(answers, everyone, state)
        for prompt, answer, score in zip(prompts, completions, scores, strict=True):
            line = {"step": state.global_step, "prompt": _shown(prompt), "completion": answer.text}
            append_jsonl(self.file, line | {"score": score})


def _shown(prompt: Any) -> Any:
    """A single question as its text; longer conversations as their messages."""
    return prompt[0]["content"] if isinstance(prompt, list) and len(prompt) == 1 else prompt
