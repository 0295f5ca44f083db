"""An export from the loaded policy to the finished folder: made, checked, named."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.fetch import PACKAGED
from lorarlhf.export import merged
from lorarlhf.export.cards.model_card import write_model_card
from lorarlhf.export.engines import LLAMA, SERVER, TRANSFORMERS, ask, check_installed
from lorarlhf.export.gate import (
    Checked,
    check_difference,
    check_ends,
    check_prompts,
    check_stops,
    score,
)
from lorarlhf.export.gguf_file import GGUFFile, check_gguf, write_gguf
from lorarlhf.export.ollama import MODELFILE, check_modelfile, make_modelfile
from lorarlhf.export.original import Original
from lorarlhf.export.staging import keep_refused, staged
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import TIME, library_versions
from lorarlhf.runtime.terminal import log_to_stderr, progress_steps

RECORD = "export.json"
FORMS = ("adapter", "merged", "gguf", "ollama")
QUANTS = ("f16", "q8_0", "q4_k_m")
COPIES = {"f16": 2.0, "q8_0": 1.6, "q4_k_m": 2.6}
"""The room that a GGUF file needs while it is made, in sizes of the merged model: that model, the
file, and for `q4_k_m` the 16-bit file that it is made of. Some matrices take more than 4 bit."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What is to be exported, and how.

    Attributes:
        form: one of `FORMS`; quant: one of `QUANTS`, for GGUF files.
        to: the new folder.
        name: of the GGUF file, without its ending.
        system: a system prompt for Ollama.
        keep_refused: keep what the gate refuses, beside the folder.
        run: the run's folder, for the model card; without it there is none.
        repo: the repository on the hub that the export is for, or "".
        about: more for the record: the run, the reward role.
    """

    form: str
    to: Path
    quant: str = "q8_0"
    name: str = "model"
    system: str = ""
    keep_refused: bool = False
    run: Path | None = None
    repo: str = ""
    about: Row | None = None


@dataclass(frozen=True)
class Exported:
    """What became of it.

    Attributes:
        folder: the new folder; None if the gate refused it and nothing was kept.
        record: what `export.json` holds.
    """

    folder: Path | None
    checked: Checked
    record: Row
    notes: list[str]


class _RefusedByGate(Exception):
    """Ends the staging without a name."""


def check_before(wish: Wish) -> None:
    """See that what a form needs is installed, before anything is loaded.

    Raises:
        UserError: it is not.
    """
    if wish.form in ("gguf", "ollama"):
        check_installed(LLAMA, SERVER)


def export(backbone: Backbone, original: Original, wish: Wish) -> Exported:
    """Make an export and check it in the program that will run it.

    Args:
        backbone: with the policy, and maybe a reward role.
        original: what the policy says to the held-out prompts.

    Raises:
        UserError: it can't be made: the base can't be merged or converted, the merged weights are
            too far from the trained ones, there is no room on the disk, a library is missing.
    """
    place: Path | None = wish.to
    try:
        with staged(wish.to) as folder:
            checked, more, notes = MAKERS[wish.form](backbone, original, wish, folder)
            record = _record(backbone, original, wish, checked, more)
            write_json(folder / RECORD, record)
            if not checked.holds:
                place = keep_refused(folder, wish.to) if wish.keep_refused else None
                raise _RefusedByGate
            if wish.run is not None:
                told = [*notes, *checked.in_words().splitlines()]
                sentences = [text[0].upper() + text[1:] for text in told]
                write_model_card(wish.run, folder, wish.form, checks=sentences, repo=wish.repo)
    except _RefusedByGate:
        pass
    return Exported(place, checked, record, notes)


def _record(backbone: Backbone, original: Original, wish: Wish, checked: Checked, more: Row) -> Row:
    found: Row = {"form": wish.form, "base": backbone.base, "bits": backbone.bits}
    found |= {"made": time.strftime(TIME), "prompts": len(original.prompts)}
    found |= wish.about or {}
    found["stop_tokens"] = backbone.tokenizer.convert_ids_to_tokens(backbone.stop_ids)
    found["base_without_adapter"] = original.from_base.as_json()
    return found | more | {"gate": checked.as_json(), "versions": library_versions()}


# ---- adapter and merged: transformers


def _adapter(
    backbone: Backbone, original: Original, wish: Wish, folder: Path
) -> tuple[Checked, Row, list[str]]:
    backbone.save("policy", folder)
    backbone.causal.generation_config.save_pretrained(folder)
    merged.write_tokenizer(backbone, merged.model_folder(backbone.base_path), folder)
    how: Row = {
        "base": backbone.base_path,
        "dtype": str(backbone.compute_dtype).removeprefix("torch."),
        "quantization": quantization(backbone),
    }
    job = how | {"device": _second_device(backbone)}
    return _in_transformers(backbone, original, "adapter", folder, job), {"load_base_with": how}, []


def _second_device(backbone: Backbone) -> str:
    """Where a second copy of the base fits: its device, or a card's CPU."""
    if backbone.device.type != "cuda":
        return str(backbone.device)
    free, _ = torch.cuda.mem_get_info(backbone.device)
    needed = sum(weight.nbytes for weight in backbone.causal.parameters())
    return str(backbone.device) if free > 1.5 * needed else "cpu"


def quantization(backbone: Backbone) -> Row | None:
    """The arguments of transformers' `BitsAndBytesConfig` with which the base was loaded."""
    if backbone.bits == 16 or getattr(backbone.causal.config, "quantization_config", None) is None:
        return None
    if backbone.bits == 8:
        return {"load_in_8bit": True}
    found: Row = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": str(backbone.compute_dtype).removeprefix("torch."),
    }
    if backbone.base in PACKAGED:
        found["llm_int8_skip_modules"] = ["lm_head", *PACKAGED[backbone.base].plain_modules]
    return found


def _merged(
    backbone: Backbone, original: Original, wish: Wish, folder: Path
) -> tuple[Checked, Row, list[str]]:
    merge = write_model(backbone, original, folder, 1.0)
    checked = _in_transformers(backbone, original, "merged", folder, {})
    return checked, {"merge": merged.merge_json(merge)}, [merged.describe(merge)]


def write_model(
    backbone: Backbone, original: Original, folder: Path, copies: float
) -> merged.Merge:
    """Decide how to merge, and write the merged model.

    Args:
        copies: how much room the disk needs, in sizes of this model.

    Raises:
        UserError: the nearer way is too far from the policy, or the disk has no room.
    """
    size = merged.size_of(backbone)
    free = shutil.disk_usage(folder).free
    if free < size * copies * 1.02:
        raise UserError(
            f"The export needs {size * copies / 1e9:.1f} GB while it is made, and on the disk of "
            f"--to {free / 1e9:.1f} GB are free. Free some space, or name a folder on another disk."
        )
    merge = merged.decide(backbone, original)
    with progress_steps("merging (MB)", size // 10**6) as progress:
        merged.write_merged(backbone, merge, folder, lambda done: progress(done // 10**6))
    return merge


def _in_transformers(
    backbone: Backbone, original: Original, form: str, folder: Path, how: Row
) -> Checked:
    """The gate of a folder that transformers reads."""
    count = max(original.lengths)
    job = {
        "folder": str(folder.resolve()),
        "places": original.places(),
        "prompts": original.asked(),
        "max_new_tokens": count,
        **how,
    }
    with progress_steps("checking in transformers", 2 * len(original.prompts)) as progress:
        told = ask(TRANSFORMERS, job, progress)
    checked = Checked("transformers and PEFT" if how else "transformers")
    checked.problems += check_prompts(backbone, original.encoded, told["prompts"], checked.engine)
    checked.problems += check_stops(backbone, told["stop_ids"], checked.engine)
    checked.difference = original.compare(told["rows"])
    checked.problems += check_difference(form, checked.difference)
    checked.ended = [answer["ended"] for answer in told["answers"]]
    if not checked.problems:
        checked.problems += check_ends(original, checked.ended)
    checked.answers = [answer["text"] for answer in told["answers"]]
    checked.scores = score(backbone, original, checked.answers)
    return checked


# ---- GGUF: llama.cpp


def _gguf(
    backbone: Backbone, original: Original, wish: Wish, folder: Path
) -> tuple[Checked, Row, list[str]]:
    modelfile = None
    file = GGUFFile(folder / f"{wish.name}-{wish.quant.upper()}.gguf", wish.quant)
    if wish.form == "ollama":
        modelfile = make_modelfile(backbone, file.path.name, wish.system)
    model = folder / "merged"
    model.mkdir()
    merge = write_model(backbone, original, model, COPIES[wish.quant])
    split = write_gguf(backbone, model, file, log_to_stderr)
    shutil.rmtree(model)
    checked = check_gguf(backbone, original, file)
    if modelfile is not None:
        (folder / MODELFILE).write_text(modelfile.text(), encoding="utf-8")
        checked.problems += check_modelfile(folder, backbone, file.path)
    more = {"quant": wish.quant, "merge": merged.merge_json(merge), "split": split}
    return checked, more, [merged.describe(merge)]


MAKERS: dict[str, Callable[..., tuple[Checked, Row, list[str]]]] = {
    "adapter": _adapter,
    "merged": _merged,
    "gguf": _gguf,
    "ollama": _gguf,
}
