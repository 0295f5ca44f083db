"""What a GGUF file holds, read from its header: which family, in how many bits, with what template.

No torch is imported; `transformers` only for the list of the families that it reads.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorarlhf.runtime.errors import UserError

MAGIC = b"GGUF"
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_OTHERS = {"clip": "mmproj", "mmproj": "mmproj", "adapter": "adapter", "imatrix": "imatrix"}
NO_MODEL = {
    "mmproj": "the part of a model that reads pictures (mmproj). Name the file of the model "
    "itself, which usually lies beside it",
    "adapter": "an adapter. Name the GGUF file of the model that it belongs to",
    "imatrix": "a table that was used to quantise a model. Name the file of the model itself",
    "vocabulary": "a vocabulary without weights. Name the file of the whole model",
}
NO_CAUSAL = {"general", "tokenizer", "t5", "umt5"}
"""Keys of transformers' table that are no families of models which continue a text."""
WELL_TRIED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file whose header was read.

    Attributes:
        architecture: the family's name in llama.cpp, such as qwen2.
        weights: how many there are; bits: of a weight, on average.
        kind: how it was quantised, such as Q4_K_M; "" if the file does not say.
        template: whether it has a chat template.
        origin: where the model comes from, if the file says it.
        values: metadata by key, without long lists.
        factors: small tensors that transformers does not read: those of the rotary embeddings.
    """

    path: Path
    architecture: str
    weights: int
    bits: float
    kind: str
    template: bool
    origin: str
    values: dict[str, Any]
    factors: dict[str, Any]

    @cached_property
    def needed_bytes(self) -> int:
        """Free disk space for the converted folder: 16 bit a weight, and the tokenizer."""
        return 2 * self.weights + 100_000_000

    def cost(self) -> str:
        """What the quantisation costs, as a sentence."""
        if self.bits > 15.5:
            return f"The weights of {self.path.name} have 16 bits or more: hardly anything is lost."
        kind = f" ({self.kind})" if self.kind else ""
        source = f", from {self.origin}" if self.origin else ""
        return (
            f"The weights of {self.path.name} have {self.bits:.1f} bits each on average{kind}, and "
            "what was rounded away is lost. In 4 bit (NF4) they are rounded once more, on another "
            f"grid. If you can get the model as safetensors{source}, name that as --base instead."
        )


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a model's file.

    Raises:
        UserError: no GGUF file, a part of one, a file cut off, or one that holds no model.
    """
    _check_beginning(path)
    if part := _PART.search(path.name):
        raise UserError(_split(path, int(part[1]), int(part[2])))
    reader = _open(path)
    values = {name: _value(field) for name, field in reader.fields.items()}
    if (parts := values.get("split.count")) and int(parts) > 1:
        raise UserError(_split(path, int(values.get("split.no") or 0) + 1, int(parts)))
    architecture = str(values.get("general.architecture") or "")
    other = _OTHERS.get(str(values.get("general.type"))) or _OTHERS.get(architecture)
    if not other and not reader.tensors:
        other = "vocabulary"
    if other:
        raise UserError(f"{path} is {NO_MODEL[other]}.")
    weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    size = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    return GGUFFile(
        path=path,
        architecture=architecture,
        weights=weights,
        bits=8 * size / weights,
        kind=_kind(values.get("general.file_type")),
        template=bool(values.get("tokenizer.chat_template")),
        origin=_origin(values),
        values=values,
        factors={t.name: t.data for t in reader.tensors if t.name.startswith("rope_f")},
    )


def _check_beginning(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}). Check the path.") from error
    if begin.startswith(MAGIC):
        return
    if not begin:
        raise UserError(f"{path} is empty. Fetch the model again.")
    if begin.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a pointer of Git LFS and not the model. Fetch the file itself, with "
            "`git lfs pull` or by its download button."
        )
    found = "a web page" if begin.lstrip()[:1] == b"<" else f"{begin[:8]!r} at its beginning"
    raise UserError(
        f"{path} is not a GGUF file: it has {found} and not {MAGIC!r}. Fetch it again, or name a "
        "folder that holds the model."
    )


def _open(path: Path) -> Any:
    """gguf's reader of a file, all of whose tensors are there."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(
            "A GGUF file needs the package gguf, which is not installed: pip install gguf."
        ) from error
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        if "version" in str(error):
            raise UserError(
                f"{path} has a version of GGUF that can't be read ({error}). Get a newer file."
            ) from error
        raise UserError(
            f"{path} is damaged or was cut off: its header names more than its "
            f"{path.stat().st_size:,} bytes hold. Fetch the model again."
        ) from error


def _value(field: Any) -> Any:
    """A value of the metadata; of long lists only how many there are."""
    if len(field.data) > 64:
        return len(field.data)
    return field.contents()


def _split(path: Path, part: int, parts: int) -> str:
    whole = _PART.sub(".gguf", path.name)
    first = _PART.sub(f"-00001-of-{parts:05d}.gguf", path.name)
    return (
        f"{path} is part {part} of {parts} of a model. Join the parts with llama.cpp's "
        f"`llama-gguf-split --merge {first} {whole}` and name {whole}."
    )


def _kind(number: Any) -> str:
    from gguf import LlamaFileType

    try:
        return LlamaFileType(int(number)).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (TypeError, ValueError):
        return ""


def _origin(values: dict[str, Any]) -> str:
    names = ("base_model.0.repo_url", "source.repo_url", "source.url", "repo_url", "url")
    found = (values.get(f"general.{name}") for name in names)
    return next((url for url in found if isinstance(url, str) and url), "")


# ---- families


def families() -> list[str]:
    """The families that the installed transformers reads from GGUF and that write text."""
    from transformers import modeling_gguf_pytorch_utils as table

    names = set(table.GGUF_SUPPORTED_ARCHITECTURES)
    try:
        from transformers.integrations.gguf import GGUF_ARCHS
    except ImportError:  # older versions have only the one table
        GGUF_ARCHS = {}
    return sorted((names | set(GGUF_ARCHS)) - NO_CAUSAL)


def check_family(file: GGUFFile) -> None:
    """Check that transformers reads the family.

    Raises:
        UserError: it does not; the message names those that it reads.
    """
    import transformers

    known = families()
    # Names of mixtures of experts have an underscore in transformers and none in the files.
    plain = {name.replace("_", "").replace("-", "") for name in known}
    if file.architecture.replace("_", "").replace("-", "") in plain:
        return
    source = f" ({file.origin})" if file.origin else ""
    raise UserError(
        f'{file.path} is of the family "{file.architecture}", which transformers '
        f"{transformers.__version__} does not read from GGUF. It reads {', '.join(known)}. Name "
        f"the model's safetensors{source} as --base, or a model of one of these families; newer "
        "versions of transformers may read more."
    )
