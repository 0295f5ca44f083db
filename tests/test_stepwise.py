"""Answers a token at a time equal those of one whole pass, and take turns without mixing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorarlhf import Backbone
from lorarlhf.backbone.generation import StepwiseSampling, encode_prompts, generate_ids

PROMPT = [{"role": "user", "content": "Name three quiet hobbies."}]
SEEDS = [3, 8, 11, 20]


def run(sampling: StepwiseSampling) -> list[list[int]]:
    while not sampling.done:
        sampling.step()
    return sampling.ids


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    for name, weight in backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    backbone.freeze_reference()
    return backbone


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("role", ["base", "policy"])
def test_steps_equal_one_pass(backbone: Backbone, role: str, temperature: float) -> None:
    ids = encode_prompts(backbone, [PROMPT], 512)
    kind = {"max_new_tokens": 24, "temperature": temperature}
    with backbone.role(role):
        seeds = SEEDS if temperature else None
        whole = generate_ids(backbone, ids * len(SEEDS), seeds=seeds, **kind)
    sampling = StepwiseSampling(backbone, PROMPT, role=role, seeds=SEEDS, **kind)
    assert run(sampling) == whole
    assert sampling.ended() == [row[-1] in backbone.stop_ids for row in whole]
    if temperature == 1.7:
        assert len(set(map(tuple, whole))) == len(SEEDS)


def test_roles_take_turns_without_mixing(backbone: Backbone) -> None:
    def sampling(role: str) -> StepwiseSampling:
        return StepwiseSampling(
            backbone, PROMPT, role=role, seeds=SEEDS[:2], max_new_tokens=12, temperature=1.0
        )

    alone = {role: run(sampling(role)) for role in ("base", "policy", "reference")}
    together = {role: sampling(role) for role in alone}
    while not all(one.done for one in together.values()):
        for one in together.values():
            one.step(3)
    assert {role: one.ids for role, one in together.items()} == alone
    assert alone["policy"] == alone["reference"] != alone["base"]


def test_an_answer_can_be_left_in_the_middle(
    backbone: Backbone, make_rows_end: Callable[[Backbone, int], None]
) -> None:
    sampling = StepwiseSampling(
        backbone, PROMPT, role="policy", seeds=SEEDS, max_new_tokens=40, temperature=1.0
    )
    for _ in range(5):
        sampling.step()
    assert [len(ids) for ids in sampling.ids] <= [5] * 4 and not sampling.done
    before = sampling.texts()
    make_rows_end(backbone, sampling.ids[1][2])
    rest = StepwiseSampling(
        backbone, PROMPT, role="policy", seeds=SEEDS, max_new_tokens=40, temperature=1.0
    )
    assert len(run(rest)[1]) == 3 and rest.ended()[1]
    # The others go on as if nothing had left the batch.
    assert [text[: len(was)] for text, was in zip(rest.texts(), before, strict=True)][0] == before[
        0
    ]


@pytest.fixture
def make_rows_end(monkeypatch: pytest.MonkeyPatch) -> Callable[[Backbone, int], None]:
    """Make a token a stop token."""

    def make(backbone: Backbone, token: int) -> None:
        monkeypatch.setattr(Backbone, "stop_ids", property(lambda self: [token]))

    return make
