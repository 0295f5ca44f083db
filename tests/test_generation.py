"""Answers are sampled from exactly the softmax, whatever the batch, and end where they should."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import (
    completion,
    encode_prompts,
    generate,
    generate_encoded,
    generate_ids,
    stream,
)
from lorarlhf.backbone.sampler import pad_left
from lorarlhf.runtime.errors import UserError

PROMPTS = [
    "Hi",
    "Tell me in one sentence why old books smell the way they do.",
    "What is a candle?",
    [{"role": "user", "content": "Name a fish."}],
]


@pytest.fixture
def endless(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """The tiny base with a stop token that its random weights never write."""
    monkeypatch.setattr(Backbone, "stop_ids", [100_000])
    return tiny


def test_a_prompt_alone_answers_as_in_a_batch(tiny: Backbone) -> None:
    settings: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}
    together = generate(tiny, PROMPTS, batch_size=4, **settings)
    alone = [generate(tiny, [prompt], **settings)[0] for prompt in PROMPTS]
    assert [c.ids for c in together] == [c.ids for c in alone]
    assert len({tuple(c.ids) for c in together}) == len(PROMPTS)


def test_extra_left_padding_changes_no_answer(endless: Backbone) -> None:
    rows = [endless.encode("Name a fish."), endless.encode("Hello there, how are you today?")]
    batched = generate_ids(endless, rows, max_new_tokens=10, temperature=0)
    wide, mask = pad_left([*rows, [5] * 60], endless.pad_id, endless.device)
    assert wide.shape == mask.shape == (3, 60)
    again = generate_ids(endless, [*rows, [5] * 60], max_new_tokens=10, temperature=0)
    assert again[:2] == batched


def test_greedy_takes_the_likeliest_token(endless: Backbone) -> None:
    row = endless.encode("Name a fish.")
    (new,) = generate_ids(endless, [row], max_new_tokens=5, temperature=0)
    ids = torch.tensor([row + new])
    with torch.no_grad():
        logits = endless.forward.hidden(ids, torch.ones_like(ids)) @ endless.lm_head.weight.T
    assert new == logits[0, len(row) - 1 : -1].argmax(dim=1).tolist()


def test_the_same_seed_gives_the_same_answers(tiny: Backbone) -> None:
    def texts(seed: int) -> list[str]:
        return [c.text for c in generate(tiny, PROMPTS, max_new_tokens=10, seed=seed)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_the_callers_random_state_is_left_alone(tiny: Backbone) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate(tiny, PROMPTS[:1], max_new_tokens=4, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_samples_follow_the_softmax(endless: Backbone) -> None:
    """A cut tail (top-k, top-p) or a wrong temperature would move these shares far more."""
    row, count, temperature = endless.encode("Name a fish."), 3000, 1.5
    with torch.no_grad():
        ids = torch.tensor([row])
        hidden = endless.forward.hidden(ids, torch.ones_like(ids))[0, -1]
    probabilities = (endless.lm_head.weight @ hidden / temperature).softmax(dim=0)
    new = generate_ids(endless, [row] * count, max_new_tokens=1, temperature=temperature)
    order = probabilities.argsort(descending=True).tolist()
    rank = {token: place for place, token in enumerate(order)}
    ranks = torch.tensor([rank[ids[0]] for ids in new])
    for low, high in ((0, 5), (5, 50), (50, 200), (200, len(order))):
        share = ((ranks >= low) & (ranks < high)).float().mean().item()
        wanted = probabilities[order[low:high]].sum().item()
        assert 0.02 < wanted < 0.98
        deviation = (wanted * (1 - wanted) / count) ** 0.5
        assert abs(share - wanted) < 4 * deviation, (low, high, share, wanted)


def test_the_bases_generation_config_does_not_leak(tiny: Backbone) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "seed": 3}
    plain = [c.ids for c in generate(tiny, PROMPTS, **settings)]
    leaky = {"top_k": 5, "top_p": 0.5, "repetition_penalty": 5.0, "temperature": 0.1}
    leaky |= {"min_new_tokens": 12, "no_repeat_ngram_size": 1, "do_sample": True, "max_length": 4}
    config = tiny.causal.generation_config
    for name, value in leaky.items():
        setattr(config, name, value)
    assert [c.ids for c in generate(tiny, PROMPTS, **settings)] == plain
    streamed = "".join(stream(tiny, "Hi", seed=3, max_new_tokens=8, temperature=1.0))
    assert streamed.strip() == generate(tiny, ["Hi"], max_new_tokens=8, seed=3)[0].text
    assert tiny.causal.generation_config is config
    assert (config.top_k, config.repetition_penalty) == (5, 5.0)


def test_answers_come_in_the_order_of_their_prompts(endless: Backbone) -> None:
    done: list[int] = []
    settings: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6}
    encoded = encode_prompts(endless, PROMPTS, 1024)
    with endless.role("policy"):
        batched = generate_encoded(endless, encoded, batch_size=2, progress=done.append, **settings)
    assert done == [2, 4]
    for prompt, answer in zip(PROMPTS, batched, strict=True):
        assert answer.ids == generate(endless, [prompt], **settings)[0].ids


def test_every_role_answers_for_itself(endless: Backbone, randomise: Callable[..., None]) -> None:
    randomise(endless, "policy", std=0.3)

    def answer(role: str) -> list[int]:
        return generate(endless, ["Hi"], role=role, temperature=0, max_new_tokens=8)[0].ids

    assert answer("policy") != answer("base")
    assert answer("reference") == answer("base")
    assert not any(layer.disable_adapters for layer in roles.lora_layers(endless.model))


# ---- the end of an answer


def test_a_stop_token_ends_the_answer(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    row = tiny.encode("Name a fish.")
    monkeypatch.setattr(Backbone, "stop_ids", [100_000])
    (free,) = generate_ids(tiny, [row], max_new_tokens=8, temperature=0)
    third = free[2]
    cut = free[: free.index(third) + 1]
    monkeypatch.setattr(Backbone, "stop_ids", [third, 100_001])
    (ended,) = generate(tiny, ["Name a fish."], max_new_tokens=8, temperature=0)
    assert (ended.ids, ended.ended) == (cut, True)
    assert ended.text == tiny.tokenizer.decode(cut[:-1], skip_special_tokens=True).strip()


def test_completions_know_how_they_ended(tiny: Backbone) -> None:
    word = tiny.tokenizer(" fish")["input_ids"]
    stop = tiny.stop_ids[0]
    ended, cut = completion(tiny, [*word, stop]), completion(tiny, word)
    assert (ended.text, ended.ended, ended.ids) == ("fish", True, [*word, stop])
    assert (cut.text, cut.ended, cut.ids) == ("fish", False, word)
    assert completion(tiny, [stop]) == type(ended)(text="", ids=[stop], ended=True)


# ---- prompts that can't be answered


def test_prompts_that_are_too_long_are_counted_and_named(tiny: Backbone) -> None:
    prompts = ["Hi", "a candle " * 40, "Hello", "some fish " * 50]
    longest = len(tiny.encode(prompts[1]))
    with pytest.raises(UserError) as refusal:
        generate(tiny, prompts, max_prompt_tokens=20)
    text = str(refusal.value)
    assert text.startswith("2 of 4 prompts are longer than max_prompt_tokens (20)")
    assert f"prompt 2 with {longest} tokens: 'a candle a candle" in text
    assert len(encode_prompts(tiny, prompts, longest + 100)) == 4


def test_conversations_without_a_chat_template_are_refused(tiny: Backbone) -> None:
    tiny.tokenizer.chat_template = None
    assert len(generate(tiny, ["plain text is fine"], max_new_tokens=2)) == 1
    with pytest.raises(UserError, match="has no chat template.*chat_template=FILE"):
        generate(tiny, PROMPTS, max_new_tokens=2)
    with pytest.raises(UserError, match="has no chat template"):
        next(stream(tiny, PROMPTS[3]))


# ---- streaming


def test_a_stream_yields_the_answer_in_pieces(endless: Backbone) -> None:
    pieces = list(stream(endless, "Hi", max_new_tokens=60, temperature=1.0, seed=4))
    (whole,) = generate(endless, ["Hi"], max_new_tokens=60, temperature=1.0, seed=4)
    assert "".join(pieces).strip() == whole.text
    assert len([piece for piece in pieces if piece]) > 1


def test_a_closed_stream_stops_early_and_puts_the_role_back(
    endless: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    layer = endless.decoder.layers[0]
    handle = layer.register_forward_hook(lambda *_: steps.append(1))
    endless.model.train()
    answer = stream(endless, "Hi", role="base", max_new_tokens=2000, temperature=0)
    next(answer)
    assert endless.model.training  # the role is switched while a token is written, not between
    answer.close()
    handle.remove()
    assert 0 < len(steps) < 20
    assert endless.model.training
    assert not any(layer.disable_adapters for layer in roles.lora_layers(endless.model))
    assert len(generate(endless, ["Hi"], max_new_tokens=3)[0].ids) == 3


def test_an_error_while_streaming_reaches_the_reader(
    endless: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(endless.causal, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream(endless, "Hi"))
    assert not any(layer.disable_adapters for layer in roles.lora_layers(endless.model))


def test_an_answer_with_a_seed_depends_on_nothing_else(tiny: Backbone) -> None:
    prompts = [tiny.encode(text) for text in ("Hi", "Where do crows sleep?", "One word")]
    torch.manual_seed(0)
    together = generate_ids(tiny, prompts, max_new_tokens=12, seeds=[5, 6, 7])
    torch.rand(3)
    alone = [
        generate_ids(tiny, [prompt], max_new_tokens=12, seeds=[seed])[0]
        for prompt, seed in zip(prompts, (5, 6, 7), strict=True)
    ]
    assert together == alone
    assert generate(tiny, PROMPTS, max_new_tokens=9, batch_size=1, seed=2) == generate(
        tiny, PROMPTS, max_new_tokens=9, batch_size=4, seed=2
    )
    assert generate_ids(tiny, prompts[:1], max_new_tokens=12, seeds=[8]) != alone[:1]


def test_seeded_samples_follow_the_softmax(tiny: Backbone) -> None:
    """Each first token is drawn as often as the softmax at 0.7 says."""
    ids = tiny.encode("Hi")
    with torch.no_grad():
        logits = tiny.causal(input_ids=torch.tensor([ids])).logits[0, -1]
    wanted = (logits / 0.7).softmax(dim=0)
    drawn = generate_ids(
        tiny, [ids] * 4000, max_new_tokens=1, temperature=0.7, seeds=list(range(4000))
    )
    counts = torch.bincount(torch.tensor([row[0] for row in drawn]), minlength=len(wanted))
    top = wanted.topk(5).indices
    for token in top.tolist():
        share, p = counts[token].item() / 4000, wanted[token].item()
        assert abs(share - p) < 4 * (p * (1 - p) / 4000) ** 0.5
