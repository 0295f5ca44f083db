"""An exported folder in plain transformers and PEFT: `python -m ... JOB RESULT` (see engines.py)."""

import json
import tempfile
from typing import Any

import numpy as np

from lorarlhf.export.difference import read_row
from lorarlhf.export.engines import job_and_result, tell

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
            logits = model(input_ids=ids).logits[0, len(place["prompt"]) - 1 : -1]
            top = np.asarray(place["top_ids"])
            rows.append(read_row(logits.float().cpu().numpy(), place["answer"], top))
            tell(len(rows))
        prompts = [render(tokenizer, prompt) for prompt in job["prompts"]]
        answers = answer(model, tokenizer, generation, prompts, job["max_new_tokens"])
    stops = generation.eos_token_id
    result = {
        "rows": rows,
        "prompts": prompts,
        "answers": answers,
        "stop_ids": stops if isinstance(stops, list) else [stops],
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

    found = []
    for number, ids in enumerate(prompts):
        # Penalties that a base's own configuration may name were no part of the training.
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=generation.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        given = torch.tensor([ids], device=model.device)
        made = model.generate(given, attention_mask=torch.ones_like(given), generation_config=greedy)
        new = made[0, len(ids) :].tolist()
        found.append({"ids": new, "text": tokenizer.decode(new, skip_special_tokens=True).strip()})
        tell(len(prompts) + number + 1)
    return found


if __name__ == "__main__":
    main()
