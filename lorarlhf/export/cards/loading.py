"""How to load an exported policy, as it stands on its card: one way for each kind of export."""

import json
from collections.abc import Sequence
from pathlib import Path

from lorarlhf.backbone.fetch import PACKAGED
from lorarlhf.export.cards.base_facts import BaseFacts
from lorarlhf.export.cards.markdown import fenced, one_line

ADAPTER, MERGED, GGUF, OLLAMA = "adapter", "merged", "gguf", "ollama"
KINDS = {
    ADAPTER: "a LoRA adapter in PEFT's form",
    MERGED: "the whole model: the base with the adapter merged into it",
    GGUF: "a GGUF file of the whole model, for llama.cpp and programs that use it",
    OLLAMA: "a GGUF file of the whole model with a Modelfile for Ollama",
}
HERE = "FOLDER_OR_REPOSITORY"
"""What stands for the place of the export where nobody has named a repository."""


def how_to_load(
    kind: str, base: BaseFacts, bits: int | None, dtype: str, files: Sequence[str], repo: str
) -> str:
    """Markdown with a block of code that loads the export.

    Args:
        kind: one of `KINDS`.
        bits: in how many bits the base was loaded in training; None if not known.
        dtype: in which it computed, as `bfloat16`; "" if not known.
        files: the names of the files of the export; `*.gguf` among them are named.
        repo: the repository on the hub that it is pushed to; "" for none.
    """
    here = repo or HERE
    if kind == ADAPTER:
        return _adapter(base, bits, dtype, here)
    if kind == MERGED:
        return fenced(_MERGED.format(here=here), "python")
    weights = sorted(name for name in files if name.endswith(".gguf"))
    return _llama_cpp(weights, repo) if kind == GGUF else _ollama(repo)


_MERGED = """from transformers import pipeline

chat = pipeline("text-generation", "{here}")
messages = [{{"role": "user", "content": "Name a quiet hobby."}}]
print(chat(messages, max_new_tokens=256)[0]["generated_text"][-1]["content"])
"""
_ADAPTER = """from peft import PeftModel
{imports}

base = {base}
model = AutoModelForCausalLM.from_pretrained(base{how})
model = PeftModel.from_pretrained(model, "{here}")
tokenizer = AutoTokenizer.from_pretrained("{here}")  # with the chat template of the training

messages = [{{"role": "user", "content": "Name a quiet hobby."}}]
question = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
ending = GenerationConfig.from_pretrained("{here}")
answer = model.generate(**question, generation_config=ending, max_new_tokens=256)[0]
print(tokenizer.decode(answer[question["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_FOUR_BIT = """quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="{dtype}",{skip}
    )"""
_EIGHT_BIT = "quantization_config=BitsAndBytesConfig(load_in_8bit=True)"


def _adapter(base: BaseFacts, bits: int | None, dtype: str, here: str) -> str:
    names = ["AutoModelForCausalLM", "AutoTokenizer"]
    names += ["BitsAndBytesConfig"] if bits in (4, 8) else []
    names.append("GenerationConfig")
    imports = f"from transformers import {', '.join(names)}"
    named = f'"{one_line(base.hub_id)}"' if base.hub_id else '"FOLDER_OF_THE_BASE"'
    if base.name in PACKAGED:
        imports += "\n\nfrom lorarlhf.backbone.fetch import find_base"
        named = f'find_base("{base.name}")'
    how = "".join(f"    {argument},\n" for argument in _as_trained(base, bits, dtype))
    how = f",\n{how}" if how else ""
    block = fenced(_ADAPTER.format(imports=imports, base=named, how=how, here=here), "python")
    trained = f" It was trained on the base in {bits} bit." if bits else ""
    return f"{block}\n\nIt fits the base that it was trained on, and no other.{trained}"


def _as_trained(base: BaseFacts, bits: int | None, dtype: str) -> list[str]:
    """The arguments with which transformers loads the base as it was in training."""
    found = [f'dtype="{dtype}"'] if dtype else []
    if bits == 8:
        found.append(_EIGHT_BIT)
    if bits == 4:
        packaged = PACKAGED.get(base.name)
        plain = packaged.plain_modules if packaged is not None else ()
        names = json.dumps(["lm_head", *plain])
        skip = f"\n        llm_int8_skip_modules={names}," if plain else ""
        found.append(_FOUR_BIT.format(dtype=dtype or "bfloat16", skip=skip))
    return found


def _llama_cpp(weights: Sequence[str], repo: str) -> str:
    lines = [f"llama-cli -m {_word(name)}" for name in weights] or ["llama-cli -m FILE.gguf"]
    if repo:
        lines.append(f"llama-cli -hf {repo}")
    text = "or an endpoint for other programs with `llama-server` in place of `llama-cli`"
    return f"{fenced(chr(10).join(lines), 'sh')}\n\nThat is a conversation in the terminal; {text}."


def _ollama(repo: str) -> str:
    name = Path(repo).name.lower() or "my-assistant"
    return (
        f"{fenced(f'ollama create {name} -f Modelfile{chr(10)}ollama run {name}', 'sh')}\n\n"
        "Run the first line in the folder with the Modelfile: it names the GGUF file beside it."
    )


def _word(name: str) -> str:
    """A file's name for a shell."""
    return (
        name if name.replace("-", "").replace("_", "").replace(".", "").isalnum() else f"'{name}'"
    )
