"""Rollouts by a vLLM server, through TRL's client, with the policy's weights kept in step.

What is trained is an adapter on a quantised base; what a server holds of its own is neither. So it
is handed the policy as plain matrices, W + scaling B A (arXiv 2106.09685, equation 3) with W
dequantised: all of them once, and after that those that carry adapters, whenever the adapter has
changed. Its answers then come from the weights that score and learn, up to rounding.
docs/scaling.md says what speaks for this and against loading the adapter into the server.
"""

import hashlib
import math
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion, completion
from lorarlhf.backbone.kernels.dequantised import dequantised_weight
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.vllm_server import GOES_ON, host_of, in_words, is_here, reach, start_command
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

T = TypeVar("T")
AT_ONCE = 64
"""Requests under way; TRL's client keeps as many connections open."""
PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent with each request: the temperature alone may change the distribution."""
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")
PACK = 2**30
"""Bytes of weights that vLLM sends at once (its `DEFAULT_PACKED_BUFFER_SIZE_BYTES`)."""
MERGING = 10
"""Bytes a number while a weight is merged: B A and scaling B A in float32, W in 16 bit."""
SMALLER = "Take fewer adapter_layers, bits: 4, a smaller base, or generation: transformers."
BASE_LAYER = ".base_layer"  # PEFT's name for the layer under an adapter


class VLLMSampler:
    """Answers prompts with the policy on a vLLM server; stands in for `rollout.OwnSampler`.

    The first process sends the weights; each asks for the answers to its own share of the prompts.

    Args:
        backbone: whose policy answers.
        args: `vllm_server` is the address.

    Raises:
        UserError: no server, one that was started without what is needed here, one with a base of
            other sizes, no CUDA card to send from, or a base whose adapters can't be merged.
    """

    def __init__(self, backbone: Backbone, args: PPOConfig) -> None:
        self.address = args.vllm_server
        _check_mergeable(backbone)
        here = is_here(host_of(self.address))
        if not here:
            log_to_stderr(
                f"vllm_server {self.address} is not this machine: prompts, answers and the "
                "policy's weights go there."
            )
        self.client = reach(self.address, backbone.base_path, longest(args))
        self._sent: bytes | None = None  # digest of the adapter that the server has
        if not distributed.is_main():
            return
        if here:  # or vLLM would open the way for the weights on the network
            os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        with in_words(self.address, RuntimeError, LookupError):  # what it was started without
            _check_server(self.client.get_server_info(), backbone, args)
            self.client.init_communicator(device=backbone.device)

    def __call__(
        self,
        backbone: Backbone,
        encoded: list[list[int]],
        args: PPOConfig,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """As `rollout.OwnSampler`; all processes call it, also those without a prompt.

        Raises:
            UserError: the server is gone or refuses a request, or the card has no room to send the
                weights from.
        """
        if distributed.is_main():
            self._keep_in_step(backbone)
        distributed.barrier()
        if not encoded:
            return []
        threads = ThreadPoolExecutor(min(AT_ONCE, len(encoded)))
        with in_words(self.address, hint=GOES_ON), threads as pool:
            # One request an answer: several prompts in one request would share its seed, and with
            # it every draw.
            ask = partial(self._ask, backbone.stop_ids, args)
            return [_completion(backbone, *said) for said in pool.map(ask, encoded, seeds)]

    def _ask(
        self, stop_ids: list[int], args: PPOConfig, ids: list[int], seed: int
    ) -> tuple[list[int], list[float | None]]:
        """One answer's tokens, and the server's log-probability of each."""
        said = self.client.generate(
            [ids],
            max_tokens=args.max_new_tokens,
            temperature=args.temperature,
            logprobs=0,  # of the sampled token alone
            generation_kwargs={"seed": seed, "stop_token_ids": stop_ids},
            **PLAIN,
        )
        (tokens,) = said["completion_ids"]
        if not tokens:
            raise UserError(f"The vLLM server at {self.address} gave an answer without a token.")
        if said["logprobs"] is None:
            return tokens, [None] * len(tokens)
        places = zip(tokens, said["logprob_token_ids"][0], said["logprobs"][0], strict=True)
        return tokens, [dict(zip(known, of, strict=True)).get(token) for token, known, of in places]

    def _keep_in_step(self, backbone: Backbone) -> None:
        """Send the policy's weights unless the server has them."""
        now = digest(backbone)
        if now == self._sent:
            return
        whole = self._sent is None
        _check_room(backbone, whole)
        weights = or_end(self.address, merged_weights(backbone, whole=whole))
        with in_words(self.address, hint=GOES_ON):
            self.client.update_named_params(announced(backbone, whole=whole), weights)
            self.client.reset_prefix_cache()  # it holds states of the weights before
        self._sent = now


def _completion(backbone: Backbone, ids: list[int], logprobs: list[float | None]) -> Completion:
    """An answer, cut after its first stop token."""
    stops = set(backbone.stop_ids)
    end = next((n for n, token in enumerate(ids, start=1) if token in stops), len(ids))
    known = [x for x in logprobs[:end] if x is not None]
    answer = completion(backbone, ids[:end])
    return replace(answer, sampled_logprobs=known) if len(known) == end else answer


# ---- the policy as plain weights


def digest(backbone: Backbone) -> bytes:
    """A hash of the policy's adapter, so that a change is seen whoever made it."""
    found = hashlib.blake2b()
    for weight in backbone.parameters_of("policy"):
        found.update(weight.detach().cpu().numpy().tobytes())
    return found.digest()


def announced(backbone: Backbone, *, whole: bool) -> list[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each tensor of `merged_weights`, in its order."""
    dtype = str(backbone.compute_dtype).removeprefix("torch.")
    return [
        (name, dtype, [owner.out_features, owner.in_features] if quantised else list(weight.shape))
        for name, owner, _, weight in _parameters(backbone, whole)
        for quantised in [_is_quantised(weight)]
    ]


@torch.no_grad()
def merged_weights(backbone: Backbone, *, whole: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy without adapters: names of the base's own, weights in the compute dtype.

    One is made at a time: dequantised, scaling B A added in float32, rounded once.

    Args:
        whole: all weights; otherwise those of the layers with adapters, biases included: a server
            loads a layer as a whole.
    """
    adapter = roles.ADAPTERS["policy"]
    for name, owner, layer, weight in _parameters(backbone, whole):
        plain = _dequantised(owner) if _is_quantised(weight) else weight
        if layer is not None and adapter in layer.lora_A and weight.dim() == 2:
            plain = layer.get_delta_weight(adapter).float().add_(plain)  # a tensor of our own
        yield name, plain.detach().to(backbone.compute_dtype).contiguous()


def _parameters(backbone: Backbone, whole: bool) -> Iterator[tuple[str, Any, Any, nn.Parameter]]:
    """Each weight of the base: its name, its module, the adapted layer above that, itself."""
    causal = backbone.causal
    for name, weight in causal.named_parameters():
        path = name.rpartition(".")[0]
        adapted = path.endswith(BASE_LAYER)
        if "lora_" in name or not (whole or adapted):
            continue
        layer = causal.get_submodule(path.removesuffix(BASE_LAYER)) if adapted else None
        yield name.replace(BASE_LAYER, ""), causal.get_submodule(path), layer, weight


def _is_quantised(weight: nn.Parameter) -> bool:
    return type(weight).__name__ in ("Params4bit", "Int8Params")


def _dequantised(owner: Any) -> torch.Tensor:
    if type(owner.weight).__name__ == "Params4bit":
        return dequantised_weight(owner)
    from bitsandbytes.functional import int8_vectorwise_dequant

    # The first forward moves the scales; PEFT's own function takes them away on a CPU.
    scales = owner.weight.SCB if owner.weight.SCB is not None else owner.state.SCB
    return int8_vectorwise_dequant(owner.weight.data, scales)


def or_end(address: str, weights: Iterator[T]) -> Iterator[T]:
    """The same, but an error on the way ends this process.

    TRL's client can't hand on an error from here: it first waits for the server, which waits for
    the weights that are not sent.
    """
    try:
        yield from weights
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("LORARLHF_DEBUG") == "1":
            traceback.print_exc()
        said = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        advice = f" {SMALLER}" if isinstance(error, torch.OutOfMemoryError) else ""
        log_to_stderr(
            f"While the policy's weights were sent to the vLLM server at {address}: {said}.{advice}"
            " The server waits for the rest, so start it anew, too; a run that had begun goes on "
            "with --resume."
        )
        sys.stdout.flush()
        os._exit(1)


def room_to_send(backbone: Backbone, *, whole: bool) -> int:
    """Bytes that sending takes on the training's card, by vLLM's source and `merged_weights`.

    vLLM gathers weights until they are more than `PACK`, copies them into one tensor, and meanwhile
    the one before is still under way. Weights that the base holds as they are sent are not copied
    to be gathered.
    """
    size = backbone.compute_dtype.itemsize
    peak = merging = gathered = pack = before = 0
    listed = announced(backbone, whole=whole)
    for (_, _, shape), (_, _, layer, weight) in zip(
        listed, _parameters(backbone, whole), strict=True
    ):
        count = math.prod(shape)
        made = _is_quantised(weight) or layer is not None or weight.dtype != backbone.compute_dtype
        merging = max(merging, MERGING * count * made)
        pack, gathered = pack + size * count, gathered + size * count * made
        peak = max(peak, before + pack + gathered)
        if pack > PACK:
            before, pack, gathered = pack, 0, 0
    return peak + merging


# ---- checks


def longest(args: PPOConfig) -> int:
    """Tokens of the longest prompt with the longest answer."""
    return args.max_prompt_tokens + args.max_new_tokens


def free_bytes(device: torch.device) -> int | None:
    """What is free on a card, the caches of torch included; None: not a card."""
    if device.type != "cuda":
        return None
    clear_device_cache(garbage_collection=True)  # other streams can't use what is cached in this
    return torch.cuda.mem_get_info(device)[0]


def _check_room(backbone: Backbone, whole: bool) -> None:
    """See that the weights can be made before the server waits for them."""
    free, needed = free_bytes(backbone.device), room_to_send(backbone, whole=whole)
    if free is not None and free < needed:
        raise UserError(
            f"Sending the policy's weights to the vLLM server takes {needed / 1e9:.1f} GB on this "
            f"card, and {free / 1e9:.1f} GB are free. {SMALLER}"
        )


def _check_mergeable(backbone: Backbone) -> None:
    for layer in roles.lora_layers(backbone.model):
        if not isinstance(layer.get_base_layer(), nn.Linear):
            raise UserError(
                f"{backbone.base} has adapters on weights that are no linear layers (experts), "
                "which can't be merged for a server here. Use generation: transformers."
            )


def _check_server(info: dict[str, Any], backbone: Backbone, args: PPOConfig) -> None:
    """See that the server's base has our sizes, as far as it says; its weights become ours."""
    model = info.get("model_config") or {}
    if model.get("quantization"):  # weights as plain matrices would not fit its packed ones
        raise UserError(
            f"The vLLM server at {args.vllm_server} holds a quantised base "
            f"({model['quantization']}). Start it with the 16-bit original: it gets the weights "
            "that are trained anyway."
        )
    told = str(model.get("hf_text_config") or model.get("hf_config"))
    ours = backbone.causal.config.get_text_config()
    command = start_command(args.vllm_server, backbone.base_path, longest(args))
    for name in SIZES:
        found = re.search(rf"[\"']{name}[\"']: (\d+)", told)
        if found and int(found[1]) != getattr(ours, name):
            raise UserError(
                f"The vLLM server at {args.vllm_server} holds another base ({model.get('model')}) "
                f"than {backbone.base}: its {name} is {found[1]}, not {getattr(ours, name)}. "
                f"Start it with this one:\n  {command}"
            )
    if args.temperature != 1 and model.get("logprobs_mode", "processed") == "raw_logprobs":
        raise UserError(
            f"The vLLM server at {args.vllm_server} leaves the temperature out of its "
            "log-probabilities: start it with --logprobs-mode processed_logprobs."
        )
