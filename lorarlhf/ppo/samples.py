"""The same few prompts answered through training: what people look at first."""

import random
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lorarlhf.data import append_jsonl
from lorarlhf.generation import encode_prompts, generate
from lorarlhf.ppo.rollout import Answers, make_micro_batches
from lorarlhf.ppo.trainer import PPOTrainer

PROMPTS = 4
FILE = "samples.jsonl"


class SampleCallback(TrainerCallback):
    """Writes `{"step", "prompt", "completion", "score"}` for a few fixed prompts to samples.jsonl.

    Before the first update, every `save_steps` updates, and after the last. The prompts and the
    seed of the sampling are always the same, and the training's own random state is left alone.

    Args:
        trainer: whose policy answers and whose reward scores.
        folder: of the run.
    """

    def __init__(self, trainer: PPOTrainer, folder: Path) -> None:
        self.trainer, self.file = trainer, folder / FILE
        rows: Any = trainer.train_dataset
        count = min(PROMPTS, len(rows))
        self.rows = [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), count))]
        self.last_step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last_step = state.global_step  # a resumed run has written these before
        if state.global_step == 0:
            self.write(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % max(1, int(args.save_steps)) == 0:
            self.write(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.last_step:
            self.write(state.global_step)

    def write(self, step: int) -> None:
        """Answer the prompts with the policy as it stands and add one line for each."""
        self.last_step = step
        if not self.trainer.is_world_process_zero():
            return
        args, backbone = self.trainer.args, self.trainer.backbone
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
        scores, _ = self.trainer.rewards.score(answers, everyone, self.trainer.state)
        for prompt, answer, score in zip(prompts, completions, scores, strict=True):
            line = {"step": step, "prompt": _shown(prompt), "completion": answer.text}
            append_jsonl(self.file, line | {"score": score})


def _shown(prompt: Any) -> Any:
    """A single question as its text; longer conversations as their messages."""
    return prompt[0]["content"] if isinstance(prompt, list) and len(prompt) == 1 else prompt
