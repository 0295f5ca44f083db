"""Rollouts by a vLLM server, through TRL's client, with the policy's weights kept up to date.

Training changes an adapter on a quantised base, and a server loads neither. It is therefore sent
the policy as plain matrices, W + scaling B A (arXiv 2106.09685, equation 3) with W dequantised: all
of them once, and then those with adapters whenever the adapter has changed. Its answers then come
from the weights that are trained, up to rounding. docs/scaling.md explains why the adapter itself
is not loaded into the server.
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

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion, completion
from lorarlhf.backbone.plain_weights import BaseWeight, base_weights, mergeable
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.vllm_server import (
    RESUME_HINT,
    as_user_error,
    connect,
    host_of,
    is_local,
    start_command,
)
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

T = TypeVar("T")
MAX_REQUESTS = 64
"""Requests at a time; TRL's client keeps as many connections open."""
PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent with each request, so that only the temperature changes the distribution."""
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")
PACK_BYTES = 2**30
"""Bytes of weights that vLLM sends at a time (its `DEFAULT_PACKED_BUFFER_SIZE_BYTES`)."""
MERGE_BYTES = 10
"""Bytes per number while a weight is merged: B A and scaling B A in float32, W in 16 bit."""
MEMORY_HINT = "Use fewer adapter_layers, bits: 4, a smaller base, or generation: transformers."


class VLLMSampler:
    """Answers prompts with the policy on a vLLM server, in place of `rollout.LocalSampler`.

    The first process sends the weights; each process requests answers to its share of the prompts.

    Args:
        backbone: its policy answers.
        args: `vllm_server` is the address.

    Raises:
        UserError: no server, a server without the required options or with a base of other sizes,
            no CUDA card to send from, or a base whose adapters can't be merged.
    """

    def __init__(self, backbone: Backbone, args: PPOConfig) -> None:
        self.address = args.vllm_server
        _check_mergeable(backbone)
        local = is_local(host_of(self.address))
        if not local:
            log_to_stderr(
                f"vllm_server {self.address} is not this machine: prompts, answers and the "
                "policy's weights are sent there."
            )
        self.client = connect(self.address, backbone.base_path, longest_sequence(args))
        self._sent: bytes | None = None  # digest of the adapter that the server has
        if not distributed.is_main():
            return
        if local:  # otherwise vLLM would listen for the weights on the network
            os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        # The server raises these where it was started without a required option.
        with as_user_error(self.address, RuntimeError, LookupError):
            _check_server(self.client.get_server_info(), backbone, args)
            self.client.init_communicator(device=backbone.device)

    def __call__(
        self,
        backbone: Backbone,
        encoded: list[list[int]],
        args: PPOConfig,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """As `rollout.LocalSampler`; all processes call it, including those without a prompt.

        Raises:
            UserError: the server has stopped or refuses a request, or the card has too little free
                memory to send the weights.
        """
        if distributed.is_main():
            self._sync_weights(backbone)
        distributed.barrier()
        if not encoded:
            return []
        threads = ThreadPoolExecutor(min(MAX_REQUESTS, len(encoded)))
        with as_user_error(self.address, hint=RESUME_HINT), threads as pool:
            # One request per answer: several prompts in one request would share its seed, and with
            # it every random number.
            ask = partial(self._ask, backbone.stop_ids, args)
            return [_completion(backbone, *answer) for answer in pool.map(ask, encoded, seeds)]

    def _ask(
        self, stop_ids: list[int], args: PPOConfig, ids: list[int], seed: int
    ) -> tuple[list[int], list[float | None]]:
        """One answer's tokens, and the server's log-probability of each."""
        response = self.client.generate(
            [ids],
            max_tokens=args.max_new_tokens,
            temperature=args.temperature,
            logprobs=0,  # of the sampled token alone
            generation_kwargs={"seed": seed, "stop_token_ids": stop_ids},
            **PLAIN,
        )
        (tokens,) = response["completion_ids"]
        if not tokens:
            raise UserError(
                f"The vLLM server at {self.address} returned an answer without a token."
            )
        if response["logprobs"] is None:
            return tokens, [None] * len(tokens)
        places = zip(tokens, response["logprob_token_ids"][0], response["logprobs"][0], strict=True)
        return tokens, [dict(zip(ids, logs, strict=True)).get(token) for token, ids, logs in places]

    def _sync_weights(self, backbone: Backbone) -> None:
        """Send the policy's weights unless the server has them."""
        digest = adapter_digest(backbone)
        if digest == self._sent:
            return
        everything = self._sent is None
        _check_free_memory(backbone, everything)
        weights = exit_on_error(self.address, merged_weights(backbone, everything=everything))
        with as_user_error(self.address, hint=RESUME_HINT):
            self.client.update_named_params(weight_specs(backbone, everything=everything), weights)
            self.client.reset_prefix_cache()  # it holds states of the old weights
        self._sent = digest


def _completion(backbone: Backbone, ids: list[int], logprobs: list[float | None]) -> Completion:
    """An answer, cut after its first stop token."""
    stops = set(backbone.stop_ids)
    end = next((n for n, token in enumerate(ids, start=1) if token in stops), len(ids))
    known = [x for x in logprobs[:end] if x is not None]
    answer = completion(backbone, ids[:end])
    return replace(answer, sampled_logprobs=known) if len(known) == end else answer


# ---- the policy as plain weights


def adapter_digest(backbone: Backbone) -> bytes:
    """A hash of the policy's adapter, which detects every change, not only that of an update."""
    found = hashlib.blake2b()
    for weight in backbone.parameters_of("policy"):
        found.update(weight.detach().cpu().numpy().tobytes())
    return found.digest()


def weight_specs(backbone: Backbone, *, everything: bool) -> list[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each tensor of `merged_weights`, in its order."""
    dtype = str(backbone.compute_dtype).removeprefix("torch.")
    found = base_weights(backbone, everything=everything)
    return [(one.name, dtype, one.shape) for one in found]


@torch.no_grad()
def merged_weights(backbone: Backbone, *, everything: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy with its adapter merged: the base's names, weights in the compute dtype.

    They are made one at a time: dequantised, scaling B A added in float32, rounded once.

    Args:
        everything: all weights; otherwise those of the adapted layers, with their biases, since a
            server loads a layer as a whole.
    """
    adapter = roles.ADAPTERS["policy"]
    for one in base_weights(backbone, everything=everything):
        plain = one.merged(adapter)
        yield one.name, plain.detach().to(backbone.compute_dtype).contiguous()


def exit_on_error(address: str, weights: Iterator[T]) -> Iterator[T]:
    """The same weights, but an error while they are made ends this process.

    TRL's client can't pass on an error from here, since it first waits for the server, and the
    server waits for the remaining weights.
    """
    try:
        yield from weights
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("LORARLHF_DEBUG") == "1":
            traceback.print_exc()
        message = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        hint = f" {MEMORY_HINT}" if isinstance(error, torch.OutOfMemoryError) else ""
        log_to_stderr(
            f"While sending the policy's weights to the vLLM server at {address}: {message}.{hint}"
            " The server waits for the remaining weights, so restart it as well. A run that had "
            "begun continues with --resume."
        )
        sys.stdout.flush()
        os._exit(1)


def bytes_to_send(backbone: Backbone, *, everything: bool) -> int:
    """Bytes that sending needs on the training's card, from vLLM's source and `merged_weights`.

    vLLM gathers weights until they exceed `PACK_BYTES` and copies them into one tensor, while the
    previous tensor is still being sent. Weights that the base holds in the sent form are gathered
    without a copy.
    """
    size = backbone.compute_dtype.itemsize
    peak = merging = gathered = pack = before = 0
    for one in base_weights(backbone, everything=everything):
        count, made = math.prod(one.shape), _is_made(one, backbone.compute_dtype)
        merging = max(merging, MERGE_BYTES * count * made)
        pack, gathered = pack + size * count, gathered + size * count * made
        peak = max(peak, before + pack + gathered)
        if pack > PACK_BYTES:
            before, pack, gathered = pack, 0, 0
    return peak + merging


def _is_made(one: BaseWeight, dtype: torch.dtype) -> bool:
    """Whether the base does not hold the weight in the form in which it is sent."""
    return one.quantised or one.layer is not None or one.weight.dtype != dtype


# ---- checks


def longest_sequence(args: PPOConfig) -> int:
    """Tokens of the longest prompt with the longest answer."""
    return args.max_prompt_tokens + args.max_new_tokens


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a card, torch's caches included; None for other devices."""
    if device.type != "cuda":
        return None
    clear_device_cache(garbage_collection=True)  # other streams can't use this stream's cache
    return torch.cuda.mem_get_info(device)[0]


def _check_free_memory(backbone: Backbone, everything: bool) -> None:
    """Check that the weights can be made, before the server waits for them."""
    free, needed = free_bytes(backbone.device), bytes_to_send(backbone, everything=everything)
    if free is not None and free < needed:
        raise UserError(
            f"Sending the policy's weights to the vLLM server needs {needed / 1e9:.1f} GB on this "
            f"card, and {free / 1e9:.1f} GB are free. {MEMORY_HINT}"
        )


def _check_mergeable(backbone: Backbone) -> None:
    if not mergeable(backbone):
        raise UserError(
            f"{backbone.base} has adapters on weights that are not linear layers (experts). "
            "They can't be merged for a server. Use generation: transformers."
        )


def _check_server(info: dict[str, Any], backbone: Backbone, args: PPOConfig) -> None:
    """Check that the server's base has the sizes of ours, as far as the server reports them."""
    model = info.get("model_config") or {}
    if model.get("quantization"):  # its packed weights can't be replaced by plain matrices
        raise UserError(
            f"The vLLM server at {args.vllm_server} holds a quantised base "
            f"({model['quantization']}). Start it with the 16-bit original. It is sent the trained "
            "weights in any case."
        )
    described = str(model.get("hf_text_config") or model.get("hf_config"))
    ours = backbone.causal.config.get_text_config()
    command = start_command(args.vllm_server, backbone.base_path, longest_sequence(args))
    for name in SIZES:
        found = re.search(rf"[\"']{name}[\"']: (\d+)", described)
        if found and int(found[1]) != getattr(ours, name):
            raise UserError(
                f"The vLLM server at {args.vllm_server} holds another base ({model.get('model')}) "
                f"than {backbone.base}: its {name} is {found[1]}, not {getattr(ours, name)}. "
                f"Start it with this one:\n  {command}"
            )
    if args.temperature != 1 and model.get("logprobs_mode", "processed") == "raw_logprobs":
        raise UserError(
            f"The vLLM server at {args.vllm_server} does not apply the temperature to its "
            "log-probabilities. Start it with --logprobs-mode processed_logprobs."
        )
