"""A GGUF file in llama.cpp's own library: `python -m ... JOB RESULT` (see engines.py).

It tokenises texts, reads exact log-probabilities, and quantises. The library is the one in the
wheel of cyllama, which binds its C functions one by one.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from lorarlhf.export.difference import read_row
from lorarlhf.export.engines import job_and_result, tell

Row = dict[str, Any]
FTYPES = {"q4_k_m": 15}
"""Quantisations that the converter does not write itself, by llama.cpp's numbers (llama_ftype)."""


def open_model(llama: Any, path: str) -> Any:
    """A model on the CPU. Raises what cyllama raises if llama.cpp can't load it."""

    class Model(llama.LlamaModel):
        @property
        def n_vocab(self) -> int:  # cyllama 0.2.18 asks for it where it hands out logits
            return self.get_vocab().n_vocab

    how = llama.LlamaModelParams()
    how.n_gpu_layers = 0
    return Model(path_model=path, params=how, verbose=False)


def special(model: Any, stop_ids: list[int]) -> Row:
    """Which tokens end an answer, and whether a prompt gets a beginning token."""
    vocab = model.get_vocab()
    return {
        "ending": [token for token in stop_ids if vocab.is_eog(token)],
        "add_bos": bool(vocab.get_add_bos()),
    }


def read(llama: Any, model: Any, places: list[Row]) -> list[Row]:
    """The rows of `read_row` for prompts and answers, each in one forward."""
    longest = max(len(place["prompt"]) + len(place["answer"]) for place in places)
    how = llama.LlamaContextParams()
    how.n_ctx = how.n_batch = how.n_ubatch = max(64, longest)
    how.n_threads = how.n_threads_batch = threads()
    context = llama.LlamaContext(model, how, verbose=False)
    rows = []
    for place in places:
        ids, first = place["prompt"] + place["answer"], len(place["prompt"]) - 1
        batch = llama.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for n, token in enumerate(ids):
            batch.add(token, n, [0], first <= n < len(ids) - 1)
        context.kv_cache_clear()
        context.decode(batch)
        places_of_answer = range(first, len(ids) - 1)
        logits = [np.asarray(context.get_logits_ith(n), np.float32) for n in places_of_answer]
        top = np.asarray(place["top_ids"])
        rows.append(read_row(np.stack(logits), place["answer"], top))
        tell(len(rows))
    return rows


def threads() -> int:
    """As many threads as torch would take."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(named) if named.isdecimal() and int(named) else max(1, cores or 1)


def quantise(llama: Any, job: Row) -> Row:
    """Write a GGUF file with smaller weights, which ones by llama.cpp's own rules."""
    how = llama.LlamaModelQuantizeParams()
    how.ftype, how.nthread = FTYPES[job["quant"]], threads()
    llama.model_quantize(job["model"], job["out"], how)
    return {}


def tokens(llama: Any, job: Row) -> Row:
    """How each model reads the texts, by its vocabulary; None where llama.cpp refuses the model."""
    found: list[Row | None] = []
    for path in job["models"]:
        try:
            model = open_model(llama, path)
        except (RuntimeError, ValueError):
            found.append(None)
            continue
        vocab = model.get_vocab()
        read = [list(vocab.tokenize(text, job["add_special"], True)) for text in job["texts"]]
        found.append({"tokens": read, "special": special(model, job["stop_ids"])})
        model.close()
        tell(len(found))
    return {"models": found}


def examine(llama: Any, job: Row) -> Row:
    """What the model says along the answers, and which tokens are special to it."""
    model = open_model(llama, job["model"])
    return {
        "special": special(model, job["stop_ids"]),
        "rows": read(llama, model, job["places"]),
    }


def main() -> None:
    """Run the job."""
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    llama_cpp.llama_backend_init()
    job, told = job_and_result()
    kinds: dict[str, Callable[[Any, Row], Row]] = {
        "tokens": tokens,
        "examine": examine,
        "quantise": quantise,
    }
    result = kinds[job["kind"]](llama_cpp, job)
    told.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
