"""A GGUF file of the policy: converted, quantised, and checked in llama.cpp itself.

Two parts of llama.cpp look at it. Its library reads the log-probabilities along the original's
answers and says which tokens end an answer. Its server, which people chat with, renders the
conversations by the chat template in the file and answers them.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.loading import NO_THOUGHTS, THINKING
from lorarlhf.export.converter import convert, own_quantiser
from lorarlhf.export.engines import LLAMA, SERVER, ask
from lorarlhf.export.gate import (
    Checked,
    check_difference,
    check_ends,
    check_prompts,
    check_stops,
    score,
)
from lorarlhf.export.original import Original
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import progress_steps

ENGINE = "llama.cpp"
QUANTISED = ("q4_k_m",)
"""What the converter does not write itself."""
Row = dict[str, Any]


@dataclass(frozen=True)
class GGUFFile:
    """A file, and how its weights are stored: `f16`, `q8_0` or `q4_k_m`."""

    path: Path
    quant: str


def write_gguf(backbone: Backbone, model: Path, file: GGUFFile, log: Callable[[str], None]) -> str:
    """Write the file from a merged folder; returns how texts are split, if it had to be found.

    Raises:
        UserError: llama.cpp does not know the family or the tokenizer, or can't quantise it.
    """
    outtype = "f16" if file.quant in QUANTISED else file.quant
    out = file.path.with_suffix(".f16.part") if file.quant in QUANTISED else file.path
    _without_thoughts(model)
    log("Converting to GGUF ...")
    split = convert(
        model,
        out,
        outtype,
        lambda text: backbone.tokenizer(text, add_special_tokens=False)["input_ids"],
        stop_id=backbone.stop_id,
        add_bos=writes_bos(backbone),
        log=log,
    )
    if file.quant in QUANTISED:
        log(f"Quantising to {file.quant} ...")
        quantise(out, file)
        out.unlink()
    return split


def _without_thoughts(model: Path) -> None:
    """Switch thoughts off in the chat template of a policy that was trained without them.

    In other programs a template that is left to itself begins an answer with thoughts, and so it
    has the variable defined.
    """
    file = model / "chat_template.jinja"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text.startswith(NO_THOUGHTS):
        rest = text.removeprefix(NO_THOUGHTS)
        # A line break behind a statement is no part of a text, and llama.cpp has no `+%}`.
        kept = "{{ '' }}" if rest.startswith("\n") else ""
        file.write_text(f"{{% set {THINKING} = false %}}{kept}{rest}", encoding="utf-8")


def writes_bos(backbone: Backbone) -> bool:
    """Whether a prompt begins with the beginning token, once.

    The small base's is `<|im_start|>`, which begins every message: that one is part of the text.
    """
    bos = backbone.tokenizer.bos_token_id
    if backbone.tokenizer.chat_template is None:
        ids = backbone.encode("Hi")
    else:
        ids = backbone.encode([{"role": "user", "content": "Hi"}])
    return bos is not None and ids[:1] == [bos] and ids.count(bos) == 1


def quantise(source: Path, file: GGUFFile) -> None:
    """Write the file with smaller weights, by llama.cpp's own quantiser."""
    own = own_quantiser()
    if own is not None:
        words = [own, str(source), str(file.path), file.quant.upper()]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{own} could not quantise the model: {last}")
        return
    job = {"kind": "quantise", "model": str(source), "out": str(file.path)}
    ask(LLAMA, job | {"quant": file.quant})


def check_gguf(backbone: Backbone, original: Original, file: GGUFFile) -> Checked:
    """The gate of a GGUF file."""
    checked = Checked(ENGINE)
    job = {
        "kind": "examine",
        "model": str(file.path.resolve()),
        "stop_ids": backbone.stop_ids,
        "places": original.places(),
    }
    with progress_steps("checking in llama.cpp", len(original.prompts)) as progress:
        told = ask(LLAMA, job, progress)
    checked.problems += check_stops(backbone, told["special"]["ending"], ENGINE)
    checked.difference = original.compare(told["rows"])
    checked.problems += check_difference(file.quant, checked.difference)
    with progress_steps("answering in llama.cpp", len(original.prompts)) as progress:
        answered = ask(SERVER, server_job(original, file), progress)
    found = [answer["prompt"] for answer in answered["answers"]]
    checked.problems += check_prompts(backbone, original.encoded, found, f"{ENGINE}'s server")
    checked.ended = [answer["ended"] for answer in answered["answers"]]
    if not checked.problems:
        checked.problems += check_ends(original, checked.ended)
    checked.answers = [answer["text"].strip() for answer in answered["answers"]]
    checked.scores = score(backbone, original, checked.answers)
    return checked


def server_job(original: Original, file: GGUFFile) -> Row:
    """The conversations for the server."""
    return {
        "model": str(file.path.resolve()),
        "prompts": original.asked(),
        "max_new_tokens": max(original.lengths),
        "context": max(len(x) + n for x, n in zip(original.encoded, original.lengths, strict=True)),
    }
