"""The shares of an answer's tokens: they add up to the score, and say which words it comes from."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.rewards.role import encode_answer, score_answers
from lorarlhf.rewards.token_shares import TokenShares, token_shares, token_texts
from tests.odd_texts import odd_texts

PROMPT = [{"role": "user", "content": "How was it?"}]
ANSWERS = [
    "Fine, thank you.",
    "x",
    "Ein Ärger über 東京 🙂 ist groß.\n\n- one\n- two",
    " spaced  out ",
]


def with_reward(base: Path, randomise: Callable[..., None], pooling: str) -> Backbone:
    backbone = Backbone.load(str(base), compute_dtype="float32", lora_rank=4)
    backbone.add_role("reward", pooling=pooling)
    randomise(backbone, "reward")  # an adapter that was trained on top
    head = backbone.heads["reward"]
    head.full_weight = torch.randn(
        len(head.full_weight), generator=torch.Generator().manual_seed(0)
    )
    head.bias.data.fill_(0.0 if pooling == "last" else 0.3)
    return backbone


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_mean_head_s_shares_add_up(
    tiny_base: Path, randomise: Callable[..., None], answer: str
) -> None:
    backbone = with_reward(tiny_base, randomise, "mean")
    (score,) = score_answers(backbone, [PROMPT], [answer])
    found = token_shares(backbone, PROMPT, answer)
    assert found.exact and found.rest == 0
    assert found.score == pytest.approx(score, abs=1e-5)
    assert sum(found.shares) == pytest.approx(score, abs=1e-5)
    assert len(found.shares) == len(found.texts)
    assert "".join(found.texts) == backbone.tokenizer.decode(
        backbone.tokenizer(answer, add_special_tokens=False)["input_ids"]
    )


def test_an_empty_answer_has_the_stop_token_s_share(
    tiny_base: Path, randomise: Callable[..., None]
) -> None:
    backbone = with_reward(tiny_base, randomise, "mean")
    found = token_shares(backbone, PROMPT, "")
    assert len(found.shares) == 1
    assert found.score == pytest.approx(score_answers(backbone, [PROMPT], [""])[0], abs=1e-5)


def test_a_last_head_s_shares_are_gradients_along_a_line(
    tiny_base: Path, randomise: Callable[..., None]
) -> None:
    backbone = with_reward(tiny_base, randomise, "last")
    answer = "Fine, thank you."
    (score,) = score_answers(backbone, [PROMPT], [answer])
    found = token_shares(backbone, PROMPT, answer)
    assert not found.exact and len(found.shares) == len(found.texts)
    assert found.score == pytest.approx(score, abs=1e-4)
    assert sum(found.shares) + found.rest == pytest.approx(score, abs=1e-4)
    # What is left over is the score of as many line breaks (completeness, proposition 1).
    blank = score_of_blanks(backbone, answer)
    assert found.rest == pytest.approx(blank, abs=0.05 * max(1.0, abs(score - blank)))
    assert all(p.grad is None for p in backbone.parameters_of("reward"))


def score_of_blanks(backbone: Backbone, answer: str) -> float:
    encoded = encode_answer(backbone, PROMPT, answer, "last")
    ids = torch.tensor([encoded.ids])
    ids[:, encoded.start : encoded.end - 1] = backbone.tokenizer("\n")["input_ids"][-1]
    with torch.no_grad(), backbone.role("reward"):
        hidden = backbone.forward.hidden(ids, torch.ones_like(ids))
        return float(backbone.heads["reward"](hidden[:, -1]))


@pytest.mark.slow
def test_a_word_that_the_head_likes_has_the_largest_share(small_base: Backbone) -> None:
    """A head along the state of one token, on the real base."""
    small_base.add_role("reward")
    try:
        head = small_base.heads["reward"]
        encoded = encode_answer(small_base, PROMPT, "The food was wonderful and cheap.")
        ids = torch.tensor([encoded.ids])
        with torch.no_grad(), small_base.role("base"):
            states = small_base.forward.hidden(ids, torch.ones_like(ids))[0].float()
        own = small_base.tokenizer.convert_ids_to_tokens(encoded.ids)
        liked = next(place for place, text in enumerate(own) if "wonderful" in text)
        mean = states[encoded.start : encoded.end].mean(dim=0)
        head.full_weight = torch.cat(
            [torch.zeros(len(head.full_weight) - len(mean)), states[liked] - mean]
        )
        found = token_shares(small_base, PROMPT, "The food was wonderful and cheap.")
    finally:
        small_base.model.delete_adapter("reward")
        small_base.heads.pop("reward")
    assert found.texts[largest(found)].strip() == "wonderful"


def largest(found: TokenShares) -> int:
    return max(range(len(found.shares)), key=lambda place: found.shares[place])


@pytest.mark.slow
def test_a_character_of_several_tokens_belongs_to_the_last(small_base: Backbone) -> None:
    text = "a🙂b"
    ids = small_base.tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(small_base, ids)
    assert "".join(texts) == text and "🙂" in texts and len(texts) == len(ids) > 3


def test_the_texts_of_tokens_are_the_text(tiny: Backbone) -> None:
    for text in odd_texts()[::5]:
        whole = text.encode("utf-8", "replace").decode()  # no halves of surrogate pairs
        ids = tiny.tokenizer(whole, add_special_tokens=False)["input_ids"]
        texts = token_texts(tiny, ids)
        assert len(texts) == len(ids)
        assert "".join(texts) == tiny.tokenizer.decode(ids, skip_special_tokens=False)


def test_a_tokenizer_that_looks_far_back_is_asked_for_the_whole_text() -> None:
    class FarBack:
        """Writes a word in capitals after an exclamation mark anywhere before it."""

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            words = ["!" if number == 0 else f" w{number}" for number in ids]
            return "".join(word.upper() if 0 in ids[:at] else word for at, word in enumerate(words))

    backbone: Any = SimpleNamespace(tokenizer=FarBack())
    assert token_texts(backbone, [1, 0, 2, 3]) == [" w1", "!", " W2", " W3"]
