"""An exported folder in plain transformers: `python -m ... JOB RESULT` (see engines.py)."""

import json
import tempfile
from typing import Any

import numpy as np

from lorarlhf.export.difference import read_row
from lorarlhf.export.engines import job_and_result, tell

BATCH_SIZE = 8
Row = dict[str, Any]


def main() -> None:
    """Load the folder, render the prompts, read the answers' places, and answer."""
    import torch
    import transformers
    from transformers import AutoTokenizer, GenerationConfig

    transformers.utils.logging.disable_progress_bar()
    job, told = job_and_result()
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    generation = GenerationConfig.from_pretrained(job["folder"])
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        model = load(job, scratch)
        tell(0)
        rows = []
        for place in job["places"]:
            ids = torch.tensor([place["prompt"] + place["answer"]], device=model.device)
            kept = len(place["answer"]) + 1
            logits = model(input_ids=ids, logits_to_keep=kept).logits[0, -kept:-1]
            top = np.asarray(place["top_ids"])
            rows.append(read_row(logits.float().cpu().numpy(), place["answer"], top))
            tell(len(rows))
        prompts = [render(tokenizer, prompt) for prompt in job["prompts"]]
        answers = answer(model, tokenizer, generation, prompts, job["max_new_tokens"])
    result = {
        "rows": rows,
        "prompts": prompts,
        "answers": answers,
        "stop_ids": stop_ids(generation),
    }
    told.write_text(json.dumps(result), encoding="utf-8")


def load(job: Row, scratch: str) -> Any:
    """The merged model, or the base in the run's precision with the adapter on it."""
    from transformers import AutoModelForCausalLM

    how: Row = {"device_map": "auto", "offload_folder": scratch}
    if "base" not in job:
        return AutoModelForCausalLM.from_pretrained(job["folder"], dtype="auto", **how).eval()
    from peft import PeftModel

    how = {"device_map": {"": job["device"]}, "dtype": job["dtype"]}
    if job["quantization"]:
        from transformers import BitsAndBytesConfig

        how["quantization_config"] = BitsAndBytesConfig(**job["quantization"])
    base = AutoModelForCausalLM.from_pretrained(job["base"], **how)
    return PeftModel.from_pretrained(base, job["folder"]).eval()


def render(tokenizer: Any, prompt: Row) -> list[int]:
    """Token ids of a prompt, as a user of the tokenizer gets them."""
    if "text" in prompt:
        return tokenizer(prompt["text"])["input_ids"]
    return tokenizer.apply_chat_template(
        prompt["messages"], add_generation_prompt=True, return_dict=False, **prompt["template"]
    )


def answer(
    model: Any, tokenizer: Any, generation: Any, prompts: list[list[int]], count: int
) -> list[Row]:
    """The likeliest answer to each prompt, by transformers' own sampling loop."""
    import torch
    from transformers import GenerationConfig

    # Penalties that a base's own configuration may name were no part of the training.
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=generation.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    stops = set(stop_ids(generation))
    found: list[Row] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        some = prompts[start : start + BATCH_SIZE]
        width = max(map(len, some))
        padded = [[tokenizer.pad_token_id] * (width - len(ids)) + ids for ids in some]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in some]
        made = model.generate(
            torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=greedy,
        )
        for row in made[:, width:].tolist():
            end = next((n for n, token in enumerate(row) if token in stops), None)
            text = tokenizer.decode(row[:end], skip_special_tokens=True)
            found.append({"text": text.strip(), "ended": end is not None})
        tell(len(prompts) + len(found))
    return found


def stop_ids(generation: Any) -> list[int]:
    """The tokens that end an answer."""
    stops = generation.eos_token_id
    return [token for token in (stops if isinstance(stops, list) else [stops]) if token is not None]


if __name__ == "__main__":
    main()
