"""The weights of a GGUF file as safetensors, one after the other, so that memory holds few of them.

transformers knows the names and the order of rows in each family; its loader would hold the whole
model.
"""

import json
from pathlib import Path
from typing import Any

from lorarlhf.backbone.gguf_file import GGUFFile
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move

SHARD = 2_000_000_000
"""The most bytes of a file, unless one matrix is larger."""
ONE_BY_ONE = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
"""Families whose matrices are each one of the file's; others have some that belong together."""
INDEX = "model.safetensors.index.json"


def write_weights(config: Any, file: GGUFFile, folder: Path) -> Any:
    """Write all weights in bfloat16, with their index if there are several files.

    Returns:
        The model on the meta device, without weights, for its configuration.

    Raises:
        UserError: the file lacks some of the model's weights.
    """
    import torch
    from gguf import GGUFReader, dequantize
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM
    from transformers import modeling_gguf_pytorch_utils as known

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    kind = known.TENSOR_PROCESSORS.get(file.architecture, known.TensorProcessor)
    processor = kind(config=config.to_dict())
    names = known.get_gguf_hf_weights_map(model, processor)
    shards = _Shards(folder)
    tensors = GGUFReader(file.path).tensors
    for tensor in tqdm(tensors, desc="Dequantizing", mininterval=0.5):
        values = dequantize(tensor.data, tensor.tensor_type)
        made = processor.process(
            weights=values, name=tensor.name, tensor_key_mapping=names, parsed_parameters={}
        )
        if made.name in names:
            weight = torch.tensor(made.weights, dtype=torch.bfloat16, device="cpu")
            shards.add(names[made.name], weight)
    shards.finish()
    _check_all(model, shards, file)
    return model


def _check_all(model: Any, shards: "_Shards", file: GGUFFile) -> None:
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    tied = tied if model.config.tie_word_embeddings else set()
    wanted = {name for name in model.state_dict() if name not in tied}
    if missing := sorted(wanted - shards.files.keys()):
        raise UserError(
            f"{file.path} lacks {len(missing)} of the model's weights, such as {missing[0]}. Fetch "
            "the file again, or name the model's safetensors as --base."
        )


class _Shards:
    """Weights on their way into files of a limited size.

    Attributes:
        files: the file of each weight, by number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, int] = {}
        self.number = self.size = self.bytes = 0
        self.waiting: dict[str, Any] = {}

    def add(self, name: str, weight: Any) -> None:
        """Take a weight; the ones before it are written if they have become too large."""
        size = weight.numel() * weight.element_size()
        if self.waiting and self.size + size > SHARD:
            self._write()
        self.waiting[name] = weight.contiguous()
        self.size += size
        self.bytes += size

    def finish(self) -> None:
        """Write the rest, give the files the names that loaders expect, and write the index."""
        self._write()
        count = self.number
        if count == 1:
            move(self._file(1), self.folder / "model.safetensors")
            return
        names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
        for number, name in enumerate(names, start=1):
            move(self._file(number), self.folder / name)
        where = {name: names[number - 1] for name, number in self.files.items()}
        index = {"metadata": {"total_size": self.bytes}, "weight_map": where}
        (self.folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number}.safetensors"

    def _write(self) -> None:
        from safetensors.torch import save_file

        self.number += 1
        self.files |= dict.fromkeys(self.waiting, self.number)
        save_file(self.waiting, self._file(self.number), metadata={"format": "pt"})
        self.waiting, self.size = {}, 0
