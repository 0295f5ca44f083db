"""A GGUF file in llama.cpp's own library: `python -m ... JOB RESULT` (see engines.py).

It tokenises texts, reads exact log-probabilities, and quantises. The library is the one in the wheel
of llama-cpp-py-sync, called through its C interface.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from lorarlhf.export.difference import read_row
from lorarlhf.export.engines import job_and_result, tell

Row = dict[str, Any]
ERROR = 4  # GGML_LOG_LEVEL_ERROR


class Library:
    """llama.cpp's functions, with what it says kept to errors."""

    def __init__(self) -> None:
        import sys

        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

        self.ffi, self.lib = get_ffi(), get_lib()

        @self.ffi.callback("void(enum ggml_log_level, const char *, void *)")
        def log(level: int, text: Any, _: Any) -> None:
            if level >= ERROR:
                sys.stderr.write(self.ffi.string(text).decode("utf-8", "replace"))

        self._log = log  # llama.cpp calls it as long as it lives
        self.lib.llama_log_set(log, self.ffi.NULL)
        self.lib.llama_backend_init()

    def open(self, path: str, *, vocab_only: bool = False) -> Any:
        """A model. Raises `RuntimeError` if llama.cpp can't load it."""
        how = self.lib.llama_model_default_params()
        how.vocab_only, how.n_gpu_layers = vocab_only, 0
        model = self.lib.llama_model_load_from_file(os.fsencode(path), how)
        if model == self.ffi.NULL:
            raise RuntimeError(f"llama.cpp can't load {path}")
        return model

    def tokenize(self, model: Any, text: str) -> list[int]:
        """Token ids of a rendered prompt, as llama.cpp's programs read one."""
        vocab, raw = self.lib.llama_model_get_vocab(model), text.encode()
        room = len(raw) + 16
        ids = self.ffi.new("llama_token[]", room)
        count = self.lib.llama_tokenize(vocab, raw, len(raw), ids, room, True, True)
        return [int(ids[i]) for i in range(count)]

    def special(self, model: Any, stop_ids: list[int]) -> Row:
        """Which tokens end an answer, and whether a prompt gets a beginning token."""
        vocab = self.lib.llama_model_get_vocab(model)
        return {
            "ending": [i for i in stop_ids if self.lib.llama_vocab_is_eog(vocab, i)],
            "bos": int(self.lib.llama_vocab_bos(vocab)),
            "add_bos": bool(self.lib.llama_vocab_get_add_bos(vocab)),
        }


def read(library: Library, model: Any, places: list[Row]) -> list[Row]:
    """The rows of `read_row` for prompts and answers, each in one forward."""
    lib, ffi = library.lib, library.ffi
    longest = max(len(place["prompt"]) + len(place["answer"]) for place in places)
    how = lib.llama_context_default_params()
    how.n_ctx = how.n_batch = how.n_ubatch = max(64, longest)
    how.n_threads = how.n_threads_batch = threads()
    context = lib.llama_init_from_model(model, how)
    if context == ffi.NULL:
        raise RuntimeError("llama.cpp has no room for the answers")
    width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(longest, 0, 1)
    rows = []
    for place in places:
        ids, first = place["prompt"] + place["answer"], len(place["prompt"]) - 1
        for n, token in enumerate(ids):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = token, n, 1, 0
            batch.logits[n] = first <= n < len(ids) - 1
        batch.n_tokens = len(ids)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        if lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama.cpp can't compute the answers")
        logits = [
            np.frombuffer(ffi.buffer(lib.llama_get_logits_ith(context, n), 4 * width), np.float32)
            for n in range(first, len(ids) - 1)
        ]
        rows.append(read_row(np.stack(logits), place["answer"], np.asarray(place["top_ids"])))
        tell(len(rows))
    return rows


def threads() -> int:
    """As many threads as torch would take."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(named) if named.isdecimal() and int(named) else max(1, cores or 1)


def quantise(library: Library, job: Row) -> Row:
    """Write a GGUF file with smaller weights, which ones by llama.cpp's own rules."""
    how = library.lib.llama_model_quantize_default_params()
    how.ftype, how.nthread = getattr(library.lib, job["ftype"]), threads()
    names = (os.fsencode(job["model"]), os.fsencode(job["out"]))
    if library.lib.llama_model_quantize(*names, library.ffi.addressof(how)) != 0:
        raise RuntimeError("llama.cpp can't quantise the model")
    return {}


def tokens(library: Library, job: Row) -> Row:
    """How each model's vocabulary reads the texts; None where llama.cpp refuses the model."""
    found: list[Row | None] = []
    for path in job["models"]:
        try:
            model = library.open(path, vocab_only=True)
        except RuntimeError:
            found.append(None)
            continue
        read = [library.tokenize(model, text) for text in job["texts"]]
        found.append({"tokens": read, "special": library.special(model, job["stop_ids"])})
        library.lib.llama_model_free(model)
        tell(len(found))
    return {"models": found}


def examine(library: Library, job: Row) -> Row:
    """What the model says along the answers, and which tokens are special to it."""
    model = library.open(job["model"])
    return {
        "special": library.special(model, job["stop_ids"]),
        "rows": read(library, model, job["places"]),
    }


def main() -> None:
    """Run the job."""
    job, told = job_and_result()
    kinds: dict[str, Callable[[Library, Row], Row]] = {
        "tokens": tokens,
        "examine": examine,
        "quantise": quantise,
    }
    result = kinds[job["kind"]](Library(), job)
    told.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
