"""What 4 bit costs the small base: nats a token and megabytes, by the layers that are left out.

    .venv/bin/python benchmarks/quantisation.py            # a few minutes

The texts are the answers of the bundled demonstrations, after their prompts. `KL` is the mean
divergence of the quantised model's next-token distribution from that of the weights as they are,
`loss` the mean negative log-likelihood of the answers, both in nats a token. `MB` counts the linear
weights of the layers with their scales; those left out count 16 bits.
"""

import argparse
import json
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorarlhf.backbone.fetch import PACKAGED, find_base
from lorarlhf.backbone.loading import load_tokenizer
from lorarlhf.data.readers import bundled

BASE = "smollm2-135m"
KEYS = ["k_proj", "v_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "nf4": {},
    "nf4 without double quantisation": {"bnb_4bit_use_double_quant": False},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
    "nf4 but v": {"llm_int8_skip_modules": ["v_proj"]},
    "nf4 but k, v": {"llm_int8_skip_modules": KEYS},
    "nf4 but k, v, first layer": {"llm_int8_skip_modules": [*KEYS, r"model\.layers\.0\."]},
    "nf4 but k, v, last layer": {"llm_int8_skip_modules": [*KEYS, r"model\.layers\.29\."]},
    "as loaded": {"llm_int8_skip_modules": list(PACKAGED[BASE].plain_modules)},
    "nf4 but k, v, down": {"llm_int8_skip_modules": [*KEYS, "down_proj"]},
    "8 bit": {"load_in_8bit": True},
}


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=70, help="demonstrations to read (default: 70)")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="these variants alone")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    path = find_base(BASE)
    texts = read_texts(path, args.rows)
    wanted = distributions(load(path, None), texts)
    for name in args.only or VARIANTS:
        model = load(path, quantisation(VARIANTS[name]))
        kl, loss = compare(wanted, distributions(model, texts), texts)
        megabytes = layer_bytes(model) / 1e6
        print(f"{name:32} KL {kl:.3f}  loss {loss:.3f}  MB {megabytes:.1f}", flush=True)
    print(f"{'16 bit':32} KL 0.000  loss {compare(wanted, wanted, texts)[1]:.3f}")


def quantisation(changed: dict[str, Any]) -> BitsAndBytesConfig:
    """The settings of a variant."""
    if "load_in_8bit" in changed:
        return BitsAndBytesConfig(**changed)
    settings: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    }
    changed = {**changed, "llm_int8_skip_modules": changed.get("llm_int8_skip_modules", [])}
    changed["llm_int8_skip_modules"] = ["lm_head", *changed["llm_int8_skip_modules"]]
    return BitsAndBytesConfig(**settings | changed)


def load(path: str, config: BitsAndBytesConfig | None) -> Any:
    """The model in float32, quantised as `config` says."""
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=config, device_map={"": "cpu"}, **settings
    )
    return model.eval()


def read_texts(path: str, rows: int) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts and answers."""
    tokenizer = load_tokenizer(path, None)
    texts = []
    for line in bundled("demonstrations").read_text(encoding="utf-8").splitlines()[:rows]:
        row = json.loads(line)
        chat = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        answer = tokenizer(row["completion"], add_special_tokens=False).input_ids
        texts.append((prompt, [*answer, tokenizer.eos_token_id]))
    return texts


@torch.no_grad()
def distributions(model: Any, texts: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """Log-probabilities (answer tokens, V) of each text, in float16 to save memory."""
    found = []
    for prompt, answer in texts:
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.float().log_softmax(dim=1).half())
    return found


def compare(
    wanted: list[torch.Tensor],
    found: list[torch.Tensor],
    texts: list[tuple[list[int], list[int]]],
) -> tuple[float, float]:
    """Mean KL(wanted || found), and the mean loss of the answers under `found`, a token."""
    divergence, loss = [], []
    for ours, theirs, (_, answer) in zip(found, wanted, texts, strict=True):
        p, q = theirs.float(), ours.float()
        divergence.append((p.exp() * (p - q)).sum(dim=1))
        loss.append(-q.gather(1, torch.tensor(answer)[:, None]).squeeze(1))
    return torch.cat(divergence).mean().item(), torch.cat(loss).mean().item()


def layer_bytes(model: Any) -> int:
    """Bytes of the decoder's linear weights, with the scales of quantised ones."""
    total = 0
    for module in model.get_decoder().modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        weight: Any = module.weight
        state = getattr(weight, "quant_state", None)
        if state is not None:
            nested = state.state2.absmax.nbytes if state.nested else 0
            total += weight.nbytes + state.absmax.nbytes + nested
        elif weight.dtype == torch.int8:
            total += weight.nbytes + 4 * module.out_features
        else:
            total += 2 * weight.numel()
    return total


if __name__ == "__main__":
    main()
