"""Rollouts by a vLLM server, through TRL's client, with the policy's weights kept in step.

What is trained is an adapter on a quantised base; what a server holds of its own is neither. So it
is handed the policy as plain matrices, W + scaling B A (arXiv 2106.09685, equation 3) with W
dequantised: all of them once, and after that those that carry adapters, whenever the adapter has
changed. Its answers then come from the weights that score and learn, up to rounding.
docs/scaling.md says what speaks for this and against loading the adapter into the server.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from lorarlhf import processes
from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.dense import dense_weight
from lorarlhf.errors import UserError
from lorarlhf.generation import Completion, completion
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.runs import say_to_stderr

LOOPBACK = ("127.0.0.1", "localhost", "::1")
AT_ONCE = 64
"""Requests under way; TRL's client keeps as many connections open."""
PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent with each request: the temperature alone may change the distribution."""
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")
BASE_LAYER = ".base_layer"  # PEFT's name for the layer under an adapter


def reach(address: str, base: str) -> Any:
    """TRL's client of the server at `address`, which has to answer now.

    Args:
        base: named in the command that starts the server.

    Raises:
        UserError: vLLM is not installed here, or nobody answers at `address`.
    """
    from trl.generation import vllm_client

    if not hasattr(vllm_client.VLLMClient, "get_server_info"):
        raise UserError("generation: vllm needs TRL 1.16 or later, and with it Python 3.11.")
    try:
        with _in_words(address):
            return vllm_client.VLLMClient(base_url=address.rstrip("/"))
    except ImportError as error:
        raise UserError(
            'generation: vllm needs vLLM in this environment, too: pip install "trl[vllm]". It '
            f"runs on Linux with NVIDIA cards ({error}). generation: transformers needs neither."
        ) from error
    except UserError as error:
        raise UserError(f"{error} This starts it:\n  {start_command(address, base)}") from error


def start_command(address: str, base: str) -> str:
    """The command line of a server that can be kept in step."""
    place = urlparse(address)
    return (
        f"CUDA_VISIBLE_DEVICES=1 VLLM_SERVER_DEV_MODE=1 vllm serve {base} "
        f"--host {place.hostname} --port {place.port or 80} "
        """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs"""
    )


class VLLMSampler:
    """Answers prompts with the policy on a vLLM server; stands in for `rollout.sample`.

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
        host = urlparse(self.address).hostname or ""
        if host not in LOOPBACK:
            say_to_stderr(
                f"vllm_server {self.address} is not this machine: prompts, answers and the "
                "policy's weights go there."
            )
        self.client = reach(self.address, backbone.base_path)
        self._sent: bytes | None = None  # digest of the adapter that the server has
        if not processes.first():
            return
        if host in LOOPBACK:  # or vLLM would open the way for the weights on the network
            os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        with _in_words(self.address):
            _check_server(self.client.get_server_info(), backbone, args)
            self.client.init_communicator(device=backbone.device)

    def __call__(
        self,
        backbone: Backbone,
        encoded: list[list[int]],
        args: PPOConfig,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """As `rollout.sample`; all processes have to call it, also without a prompt of their own.

        Raises:
            UserError: the server is gone, or refuses a request.
        """
        if processes.first():
            self._keep_in_step(backbone)
        processes.wait()
        if not encoded:
            return []
        with _in_words(self.address), ThreadPoolExecutor(min(AT_ONCE, len(encoded))) as pool:
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
        with _in_words(self.address):
            self.client.update_named_params(
                announced(backbone, whole=whole), merged_weights(backbone, whole=whole)
            )
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
            plain = plain.float() + layer.get_delta_weight(adapter).float()
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
        return dense_weight(owner)
    from bitsandbytes.functional import int8_vectorwise_dequant

    # The first forward moves the scales; PEFT's own function takes them away on a CPU.
    scales = owner.weight.SCB if owner.weight.SCB is not None else owner.state.SCB
    return int8_vectorwise_dequant(owner.weight.data, scales)


# ---- checks


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
    for name in SIZES:
        found = re.search(rf"[\"']{name}[\"']: (\d+)", told)
        if found and int(found[1]) != getattr(ours, name):
            raise UserError(
                f"The vLLM server at {args.vllm_server} holds another base ({model.get('model')}) "
                f"than {backbone.base}: its {name} is {found[1]}, not {getattr(ours, name)}. "
                f"Start it with this one:\n  {start_command(args.vllm_server, backbone.base_path)}"
            )
    if args.temperature != 1 and model.get("logprobs_mode", "processed") == "raw_logprobs":
        raise UserError(
            f"The vLLM server at {args.vllm_server} leaves the temperature out of its "
            "log-probabilities: start it with --logprobs-mode processed_logprobs."
        )


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """TRL's client raises errors of many kinds, plain `Exception` among them: one for people."""
    try:
        yield
    except (ImportError, UserError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise UserError(
            f"No vLLM server answers at {address}. Once one does, a run that had begun goes on "
            "with --resume."
        ) from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"The vLLM server at {address} can't be used: {said}") from error
