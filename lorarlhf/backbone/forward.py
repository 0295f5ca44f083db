"""`Forward`: forwards through the layers of one base, from the start or from kept states on.

Sequences are padded or packed. The active role is the one that `Backbone.role` switched to.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from lorarlhf.backbone import trunk
from lorarlhf.backbone.kernels.norms import fuse_norms
from lorarlhf.backbone.kernels.packing import Pack
from lorarlhf.backbone.structure import decoder_of
from lorarlhf.backbone.trunk import Inputs

PAD = 0  # any token, because masks are made from lengths


class Forward:
    """Forwards of the active role. B sequences, T tokens, N packed rows, H hidden size.

    Attributes:
        decoder: the layers without the LM head.
        split: the first layer with adapters.
        splits: whether running the layers in two parts gives the family's own numbers.
        packs: whether running packed sequences does.
        keeps_trunk: whether the output of the layers below `split` can be kept.
    """

    def __init__(
        self, model: Any, split: int, device: torch.device, compute_dtype: torch.dtype
    ) -> None:
        """Test on a few tokens what works for the family, and fuse its norms."""
        self.model, self.decoder = model, decoder_of(model)
        self.split, self.device, self.compute_dtype = split, device, compute_dtype
        layers = len(self.decoder.layers)
        self.words = model.get_input_embeddings().weight.shape[0]
        cut = split or max(1, layers // 2)
        self.splits = layers > 1 and trunk.trunk_is_exact(self.decoder, cut, self.words)
        self._splits: dict[int, bool] = {}
        self._tuned: list[Any] = []  # PEFT's layers
        self.keeps_trunk = self.splits and split > 0
        fuse_norms(model)
        self.packs = trunk.adopt_packing(model, device, self.words)

    def trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
        """The lower layers' output (B, T, H), to be kept; None if no trunk can be kept.

        Raises:
            ValueError: ids or mask are on another kind of device than the base.
        """
        inputs = trunk.padded_inputs(input_ids, attention_mask)
        return self._lower(inputs, self.split) if self.keeps_trunk else None

    def remembered_trunk(self) -> AbstractContextManager[None]:
        """Inside, two forwards in a row on one batch run the lower layers once.

        For training code that calls the decoder itself.
        """
        if self.keeps_trunk:
            return trunk.remembered_trunk(self.decoder, self.split)
        return nullcontext()

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states (B, T, H) of the active role, above a kept trunk if one is given.

        Raises:
            ValueError: a tensor is on another kind of device than the base.
        """
        return self._hidden(trunk.padded_inputs(input_ids, attention_mask), kept)

    def hidden_of_embeddings(self, embedded: torch.Tensor) -> torch.Tensor:
        """Final hidden states of embedded tokens (B, T, H) without padding, with gradients."""
        with self._mixed_precision():
            return trunk.run_decoder(self.decoder, {"inputs_embeds": embedded})

    def packed_trunk(self, pack: Pack) -> torch.Tensor | None:
        """`trunk` of packed sequences: (N, H), or None."""
        return self.packed_lower(pack, None, self.split) if self.keeps_trunk else None

    def splits_at(self, layer: int) -> bool:
        """Whether running the layers from `layer` on separately gives the family's own numbers.

        In some families upper layers read states that other layers left, so they split at one
        layer and not at another.
        """
        if not self.splits:
            return False
        if layer not in self._splits:
            self._splits[layer] = trunk.trunk_is_exact(self.decoder, layer, self.words)
        return self._splits[layer]

    def packed_lower(self, pack: Pack, kept: torch.Tensor | None, last: int) -> torch.Tensor:
        """States (N, H) of the active role below layer `last`, above a kept trunk if one is given.

        Without gradients. Only for families that split there (`splits_at`).
        """
        return self._on_rows(pack, kept, lambda inputs, above: self._lower(inputs, last, above))

    def packed_hidden(
        self, pack: Pack, kept: torch.Tensor | None = None, first: int | None = None
    ) -> torch.Tensor:
        """`hidden` of packed sequences: (N, H).

        Args:
            kept: the trunk or, with `first`, the states below that layer.
        """
        return self._on_rows(pack, kept, lambda inputs, above: self._hidden(inputs, above, first))

    def _on_rows(
        self,
        pack: Pack,
        kept: torch.Tensor | None,
        run: Callable[[Inputs, torch.Tensor | None], torch.Tensor],
    ) -> torch.Tensor:
        """A forward on packed rows (N, H); for families that don't pack, through padded ones."""
        if self.packs:
            return run(trunk.packed_inputs(pack), None if kept is None else kept[None])[0]
        above = None if kept is None else pack.padded_rows(kept)
        return pack.rows_of(run(trunk.padded_inputs(*pack.padded(PAD)), above))

    def _lower(self, inputs: Inputs, last: int, kept: torch.Tensor | None = None) -> torch.Tensor:
        self._check_device(inputs | {"kept": kept})
        with self._mixed_precision():
            return trunk.run_lower(self.decoder, last, inputs, self.split, kept)

    def _hidden(
        self, inputs: Inputs, kept: torch.Tensor | None, first: int | None = None
    ) -> torch.Tensor:
        self._check_device(inputs | {"kept": kept})
        with self._mixed_precision():
            if kept is None:
                return trunk.run_decoder(self.decoder, inputs)
            return trunk.run_upper(self.decoder, first or self.split, kept, inputs)

    def _check_device(self, inputs: Inputs) -> None:
        """Raise a `ValueError` for a tensor on another kind of device than the weights."""
        for name, tensor in inputs.items():
            if isinstance(tensor, torch.Tensor) and tensor.device.type != self.device.type:
                raise ValueError(
                    f"{name} is on {tensor.device} and the backbone on {self.device}: move it with "
                    ".to(backbone.device)"
                )

    @contextmanager
    def _mixed_precision(self) -> Iterator[None]:
        """Multiply adapters, which are stored in float32, in the compute dtype.

        Without autocast PEFT would cast every layer's input to float32 and keep that copy for the
        backward, which takes a third more time and twice the activations.
        """
        if self.compute_dtype == torch.float32:
            yield
            return
        if not self._tuned:  # once: PEFT's own context walks over all modules for each forward
            self._tuned = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        before = [layer.cast_input_dtype_enabled for layer in self._tuned]
        for layer in self._tuned:
            layer.cast_input_dtype_enabled = False
        try:
            with torch.autocast(self.device.type, self.compute_dtype):
                yield
        finally:
            for layer, casts in zip(self._tuned, before, strict=True):
                layer.cast_input_dtype_enabled = casts
