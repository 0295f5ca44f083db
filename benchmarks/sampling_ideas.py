"""Ways to sample faster that were tried and are not used, each with the figure that decided it.

    .venv/bin/python benchmarks/sampling_ideas.py
    .venv/bin/python benchmarks/sampling_ideas.py --avx2

*One read*: the products of q, k and v, and of gate and up, each as one product with the weights one
below the other, against two and three products; milliseconds for all layers of the small base, with
16 rows, as in a sampling step. *Drafts*: what share of drafted tokens would be accepted by exact
rejection (arXiv 2211.17192, theorem 3.5), drafted by the trunk through the LM head, and by looking
up the last two tokens in prompt and answer; and what a forward that checks four drafts costs,
divided by one that samples a token. Drafts gain where the tokens of a forward grow by more.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from _memory import environment

ROWS, TOKENS, DRAFTS, GRAM = 16, 40, 4, 2


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.one:
        command = [sys.executable, __file__, "--one"]
        subprocess.run(command, check=True, env=environment("cpu", args.avx2))
        return
    import bitsandbytes  # noqa: F401

    from lorarlhf import Backbone

    backbone = Backbone.load()
    print(json.dumps({"one_read": one_read(backbone), "drafts": drafts(backbone)}, indent=2))


def in_turn(*ways: Callable[[], Any]) -> list[float]:
    """Median milliseconds of each, in turn."""
    spent: list[list[float]] = [[] for _ in ways]
    for _ in range(15):
        for way, times in zip(ways, spent, strict=True):
            started = time.perf_counter()
            way()
            times.append(1000 * (time.perf_counter() - started))
    return [round(median(times[2:]), 1) for times in spent]


def one_read(backbone: Any) -> dict[str, Any]:
    """Milliseconds of separate and of joined products, over all layers."""
    import torch

    from lorarlhf.backbone.kernels.dequantised import dequantised_weight, prepared, product

    found = {}
    x = torch.randn(ROWS, backbone.hidden_size, dtype=backbone.compute_dtype)
    for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        apart, joined = [], []
        for layer in backbone.decoder.layers:
            modules = dict(layer.named_modules())
            weights = []
            for name in names:
                module = next(m for key, m in modules.items() if key.endswith(f".{name}"))
                weights.append(dequantised_weight(getattr(module, "base_layer", module)))
            apart.append([prepared(weight) for weight in weights])
            joined.append(prepared(torch.cat(weights)))

        def separate(apart: Any = apart) -> None:
            for layer in apart:
                for weight in layer:
                    product(x, weight, None)

        def together(joined: Any = joined) -> None:
            for weight in joined:
                product(x, weight, None)

        with torch.no_grad():
            times = in_turn(separate, together)
        found[", ".join(names)] = dict(zip(("apart_ms", "joined_ms"), times, strict=True))
    return found


def drafts(backbone: Any) -> dict[str, Any]:
    """Acceptance of drafts on sampled answers, and the cost of checking them."""
    from lorarlhf.backbone.generation import generate_encoded
    from lorarlhf.data.readers import as_conversation, bundled, read_prompts

    rows = list(read_prompts(bundled("prompts")))[: 2 * ROWS]
    prompts = [backbone.encode(as_conversation(row["prompt"])) for row in rows]
    found: dict[str, Any] = {}
    for temperature in (1.0, 0.7):
        with backbone.role("base"):
            answers = generate_encoded(
                backbone, prompts, max_new_tokens=TOKENS, temperature=temperature
            )
            pairs = list(zip(prompts, (answer.ids for answer in answers), strict=True))
            found[f"temperature {temperature}"] = accepted(backbone, pairs, temperature)
    return found | {"checking_4_drafts_costs": checking(backbone, prompts[:ROWS])}


def accepted(backbone: Any, pairs: list[Any], temperature: float) -> dict[str, float]:
    """The mean chance that a draft is accepted; for looked-up ones also how often there is one."""
    import torch

    trunk, looked, places = [], [], 0
    for prompt, answer in pairs:
        ids = torch.tensor([[*prompt, *answer]])
        mask = torch.ones_like(ids)
        with torch.no_grad():
            kept = backbone.forward.trunk(ids, mask)
            norm, head = backbone.decoder.norm, backbone.causal.get_output_embeddings()
            p, q = (
                (head(states)[0].float() / temperature).softmax(-1)
                for states in (backbone.forward.hidden(ids, mask, kept), norm(kept))
            )
        for place in range(len(prompt) - 1, ids.shape[1] - 1):
            places += 1
            trunk.append(torch.minimum(p[place], q[place]).sum().item())
            draft = looked_up(ids[0, : place + 1].tolist())
            if draft is not None:
                looked.append(p[place, draft].item())
    return {
        "by_the_trunk": round(sum(trunk) / places, 3),
        "by_look_up": round(sum(looked) / max(1, len(looked)), 3),
        "look_up_finds_one": round(len(looked) / places, 3),
    }


def looked_up(ids: list[int]) -> int | None:
    """The token that followed the last occurrence of the last `GRAM` tokens."""
    tail = ids[-GRAM:]
    for start in range(len(ids) - GRAM - 1, -1, -1):
        if ids[start : start + GRAM] == tail:
            return ids[start + GRAM]
    return None


def checking(backbone: Any, prompts: list[list[int]]) -> float:
    """Seconds of a forward of `DRAFTS` + 1 tokens a row, divided by those of one token a row."""
    import torch

    from lorarlhf.backbone.generation import weights_for_sampling
    from lorarlhf.backbone.sampler import Sampler

    def step(tokens: int) -> Callable[[], None]:
        sampler = Sampler(
            backbone,
            prompts,
            seeds=range(len(prompts)),
            max_new_tokens=200,
            temperature=1.0,
        )
        sampler.step()

        def run() -> None:
            ids = torch.full((len(prompts), tokens), 5)
            length = sampler._mask.shape[1]
            sampler._mask = torch.cat([sampler._mask, sampler._mask.new_ones(ids.shape)], dim=1)
            sampler._forward(ids)
            for layer in sampler._cache.layers:
                layer.keys, layer.values = (
                    layer.keys[..., :length, :],
                    layer.values[..., :length, :],
                )
            sampler._mask = sampler._mask[:, :length]

        return run

    with torch.no_grad(), backbone.role("base"), weights_for_sampling(backbone):
        one, many = in_turn(step(1), step(1 + DRAFTS))
    return round(many / one, 2)


if __name__ == "__main__":
    main()
