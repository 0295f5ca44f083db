"""How far sampling from merged weights is from the policy itself, in nats a token.

    .venv/bin/python benchmarks/merged_sampling.py runs/demo

The policy of a finished run answers 32 bundled prompts. Along these answers its distributions are
computed in four ways: in float32; in the machine's dtype with the adapter beside the base, in
batches of eight and one by one; and with the adapter merged into the base's weights, as while
sampling. On a processor without bfloat16 all are in float32, and the same but for rounding.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

ANSWERS, TOKENS = 32, 40


def main() -> None:
    """Print mean KLs as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run with a policy")
    args = parser.parse_args()
    import bitsandbytes  # noqa: F401

    from lorarlhf.backbone.generation import generate, weights_for_sampling
    from lorarlhf.data.readers import as_conversation, bundled, read_prompts

    backbone = load(args.run)
    rows = list(read_prompts(bundled("prompts")))[:ANSWERS]
    prompts = [as_conversation(row["prompt"]) for row in rows]
    answers = generate(backbone, prompts, max_new_tokens=TOKENS, temperature=0.7)
    pairs = [
        (backbone.encode(prompt), answer.ids)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    with backbone.role("policy"):
        beside, alone = logprobs(backbone, pairs, 8), logprobs(backbone, pairs, 1)
        with weights_for_sampling(backbone):
            merged = logprobs(backbone, pairs, 8)
    exact = load(args.run, compute_dtype="float32")
    with exact.role("policy"):
        wide = logprobs(exact, pairs, 8)
    figures = {
        "merged_to_beside": kl(merged, beside),
        "merged_to_float32": kl(merged, wide),
        "beside_to_float32": kl(beside, wide),
        "beside_to_one_by_one": kl(beside, alone),
    }
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}, indent=2))


def load(run: Path, **more: Any) -> Any:
    """The run's base with its policy."""
    from lorarlhf import Backbone
    from lorarlhf.project.lineage import read_source_run

    source = read_source_run(run, "policy", "RUN")
    layers = source.settings.get("adapter_layers", "upper-half")
    backbone = Backbone.load(source.loads, adapter_layers=layers, **more)
    backbone.load_role("policy", source.adapter)
    return backbone


@torch.no_grad()
def logprobs(backbone: Any, pairs: list[tuple[list[int], list[int]]], size: int) -> torch.Tensor:
    """Log-probabilities of all tokens (n, V) at each answer token."""
    found = []
    for start in range(0, len(pairs), size):
        some = pairs[start : start + size]
        width = max(len(prompt) + len(answer) for prompt, answer in some)
        gaps = [width - len(prompt) - len(answer) for prompt, answer in some]
        ids = [
            [backbone.pad_id] * gap + [*prompt, *answer]
            for gap, (prompt, answer) in zip(gaps, some, strict=True)
        ]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        states = backbone.forward.hidden(torch.tensor(ids), torch.tensor(mask))
        head = backbone.causal.get_output_embeddings()
        for (_, answer), own in zip(some, states, strict=True):
            found.append(head(own[-len(answer) - 1 : -1]).float().log_softmax(-1))
    return torch.cat(found)


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean KL of two sets of distributions (n, V), in nats."""
    return (p.exp() * (p - q)).sum(-1).mean().item()


if __name__ == "__main__":
    main()
