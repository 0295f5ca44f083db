"""KL between a server's own 16-bit base and the 4-bit base that is trained, in nats per token.

    .venv/bin/python benchmarks/vllm_mismatch.py

First the small base in 16 bit answers, like a server with its own weights. Then it answers with the
weights that `generation: vllm` sends. The adapters are new and change nothing. Both bases are in
memory at once.
"""

import json

import torch

from lorarlhf import Backbone
from lorarlhf.backbone.generation import Completion, generate
from lorarlhf.data.readers import as_conversation, bundled, read_prompts
from lorarlhf.ppo.vllm import merged_weights

PROMPTS, TOKENS = 16, 32


def main() -> None:
    """Print both KLs (k3 estimator, over the server's own answers) as JSON."""
    ours, server = Backbone.load(bits=4), Backbone.load(bits=16)
    rows = [row["prompt"] for row in read_prompts(bundled("prompts.jsonl"))]
    prompts = [as_conversation(prompt) for prompt in rows[:PROMPTS]]
    found = {"its_own_weights": kl(server, ours, prompts)}
    theirs = dict(server.causal.named_parameters())
    for name, weight in merged_weights(ours, everything=True):
        adapted = name.replace(".weight", ".base_layer.weight")
        theirs[name if name in theirs else adapted].data.copy_(weight)
    found["our_weights"] = kl(server, ours, prompts)
    print(json.dumps(found))


def kl(server: Backbone, ours: Backbone, prompts: list) -> float:
    """KL from the server's base to the policy on the server's answers: mean k3 per token."""
    answers = generate(server, prompts, role="base", max_new_tokens=TOKENS)
    encoded = [ours.encode(prompt) for prompt in prompts]
    theirs = logprobs(server, "base", encoded, answers)
    log_ratio = logprobs(ours, "policy", encoded, answers) - theirs
    return (log_ratio.exp() - 1 - log_ratio).mean().item()


@torch.no_grad()
def logprobs(
    backbone: Backbone, role: str, encoded: list[list[int]], answers: list[Completion]
) -> torch.Tensor:
    """Log-probabilities of all answer tokens: (n,)."""
    found = []
    with backbone.role(role):
        for prompt, answer in zip(encoded, answers, strict=True):
            ids = torch.tensor([prompt + answer.ids], device=backbone.device)
            logits = backbone.causal(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            chosen = ids[0, len(prompt) :, None]
            found.append(logits.log_softmax(dim=-1).gather(1, chosen).squeeze(1).cpu())
    return torch.cat(found)


if __name__ == "__main__":
    main()
