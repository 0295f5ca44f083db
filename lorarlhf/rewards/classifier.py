"""A sequence classification model, with its own tokenizer, as a reward function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone.devices import best_device
from lorarlhf.backbone.oom import retry_halving
from lorarlhf.data.readers import as_text
from lorarlhf.rewards.functions import RewardFunction, completion_text
from lorarlhf.runtime.errors import UserError

BATCH = 8  # answers in a forward


def load_classifier(spec: str, device: torch.device | None = None) -> RewardFunction:
    """A reward function from `NAME` or `NAME#LABEL`, where NAME is a folder or a Hugging Face id.

    A model with one output is a reward model: it gets the prompt and the answer, in its chat
    template if it has one and as a pair of texts otherwise, and its output is the score. A model
    with several outputs is a text classifier: it gets the answer alone, and the score is the
    log-probability of LABEL.

    Raises:
        UserError: no such model, no such label, or a head that is missing from the file.
    """
    name, _, label = spec.partition("#")
    model, tokenizer = _load(name, device or best_device(16))
    column = _column(model, name, label)

    @torch.no_grad()
    def reward(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        def attempt(size: int) -> list[float | None]:
            scores: list[float | None] = []
            for start in range(0, len(prompts), size):
                chosen = slice(start, start + size)
                inputs = _encode(tokenizer, prompts[chosen], completions[chosen], column is None)
                logits = model(**inputs.to(model.device)).logits.float()
                one = logits[:, 0] if column is None else logits.log_softmax(dim=1)[:, column]
                scores.extend(one.tolist())
            return scores

        return retry_halving(BATCH if tokenizer.pad_token is not None else 1, attempt)

    reward.__name__ = reward.__qualname__ = Path(name).name + (f"#{label}" if label else "")
    return reward


def _load(name: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"The reward model {name} could not be loaded: {reason[:300]}. Name a folder or a "
            "Hugging Face id with a sequence classification model in safetensors files."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"{name} is not a reward model: its file lacks {missing[0]}, so its scores would be "
            "random. Name a model that was trained for sequence classification."
        )
    # The score is read at the last token that is not padding. A model without a padding token gets
    # texts one by one: with EOS as padding, the EOS at the end of a text would count as padding.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.requires_grad_(False).eval().to(device), tokenizer


def _column(model: Any, name: str, label: str) -> int | None:
    labels = {str(text).lower(): int(place) for place, text in model.config.id2label.items()}
    if model.config.num_labels == 1:
        if label:
            raise UserError(f"{name} has one output and no labels: leave out #{label}.")
        return None
    if label.lower() in labels:
        return labels[label.lower()]
    problem = f"has no label {label}" if label else "has several outputs"
    raise UserError(
        f"The reward model {name} {problem}. Choose the score with {name}#LABEL, where LABEL is "
        f"one of {', '.join(str(text) for text in model.config.id2label.values())}."
    )


def _encode(tokenizer: Any, prompts: Any, completions: Any, with_prompt: bool) -> Any:
    """Token ids of the texts; a text longer than the model's context is cut at its start."""
    tokenizer.truncation_side = "left"
    settings = {"return_tensors": "pt", "truncation": True}
    settings["padding"] = tokenizer.pad_token is not None
    answers = [completion_text(completion) for completion in completions]
    if not with_prompt:
        return tokenizer(answers, **settings)
    if tokenizer.chat_template is None:
        return tokenizer([as_text(prompt) for prompt in prompts], answers, **settings)
    conversations = [
        tokenizer.apply_chat_template(_messages(prompt, answer), tokenize=False)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return tokenizer(conversations, add_special_tokens=False, **settings)


def _messages(prompt: Any, answer: str) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*messages, {"role": "assistant", "content": answer}]
