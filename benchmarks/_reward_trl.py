"""TRL's RewardTrainer on simulated votes, at the settings of its own documentation.

These are: `LoraConfig(modules_to_save=["score"])` with PEFT's defaults (rank 8, alpha 8, on the
query and value projections), the learning rate of 1e-3 that its page advises for adapters, and the
defaults of `RewardConfig` for the rest: 8 pairs in a step, 3 epochs, AdamW, the rate falling
linearly to 0, float32 weights with bfloat16 autocast, no dropout. Only activation checkpointing is
off, which costs time and changes no result.
"""

from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _pools import Pool

LEARNING_RATE = 1e-3
BATCH_SIZE = 16


def trained_scores(
    base: str,
    pool: Pool,
    votes: list[tuple[int, int, int]],
    pairs: list[tuple[int, int, int]],
    seed: int,
) -> np.ndarray:
    """Train on votes (prompt, chosen, rejected) -> scores (P, A) of the answers in `pairs`.

    Other answers are not scored and have NaN.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    from lorarlhf.backbone.devices import best_device
    from lorarlhf.backbone.fetch import find_base

    path = str(find_base(base))
    with TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            path,
            args=RewardConfig(
                output_dir=folder,
                learning_rate=LEARNING_RATE,
                gradient_checkpointing=False,
                use_cpu=best_device(4).type == "cpu",
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
            ),
            train_dataset=Dataset.from_list([row_of(pool, *vote) for vote in votes]),
            processing_class=AutoTokenizer.from_pretrained(path),
            peft_config=LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"]),
        )
        trainer.train()
    wanted = sorted({(place, a) for place, *both in pairs for a in both})
    found = np.full((len(pool.prompts), len(pool.answers[0])), np.nan)
    texts = [
        [*pool.prompts[place], {"role": "assistant", "content": pool.answers[place][a].text}]
        for place, a in wanted
    ]
    for (place, a), score in zip(wanted, score_texts(trainer, texts), strict=True):
        found[place, a] = score
    return found


def row_of(pool: Pool, place: int, chosen: int, rejected: int) -> dict[str, Any]:
    """A vote as a row in TRL's form."""

    def turn(answer: int) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": pool.answers[place][answer].text}]

    return {"prompt": pool.prompts[place], "chosen": turn(chosen), "rejected": turn(rejected)}


def score_texts(trainer: Any, texts: list[list[dict[str, str]]]) -> list[float]:
    """The scores of whole conversations, tokenized as the trainer does it."""
    import torch

    model, tokenizer = trainer.model.eval(), trainer.processing_class
    encoded = [tokenizer.apply_chat_template(text, return_dict=False) for text in texts]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    scores = [0.0] * len(encoded)
    for start in range(0, len(order), BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        batch = tokenizer.pad(
            {"input_ids": [encoded[place] for place in rows]},
            padding_side="right",
            return_tensors="pt",
        ).to(model.device)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            logits = model(**batch).logits[:, 0].float().tolist()
        for place, score in zip(rows, logits, strict=True):
            scores[place] = score
    return scores
