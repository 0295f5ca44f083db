"""The address of a vLLM server: who answers there, how to start one, and its errors in words."""

import ipaddress
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import requests

from lorarlhf.runtime.errors import UserError

GOES_ON = " Once one does, a run that had begun goes on with --resume."


def reach(address: str, base: str, tokens: int) -> Any:
    """TRL's client of the server at `address`, which has to answer now.

    Args:
        base: folder or hub id, and tokens: of the longest prompt with its answer; both stand in
            the command that starts the server.

    Raises:
        UserError: the address is nobody's, vLLM is not installed here, or nobody answers.
    """
    from trl.generation import vllm_client

    host = host_of(address)
    if not hasattr(vllm_client.VLLMClient, "get_server_info"):
        raise UserError("generation: vllm needs TRL 1.16 or later, and with it Python 3.11.")
    if is_here(host):
        _pass_by_proxies(host)
    try:
        # What answers but is no vLLM server lacks what is looked for in its answer.
        with in_words(address, LookupError, TypeError):
            client = vllm_client.VLLMClient(base_url=address.rstrip("/"))
    except ImportError as error:
        raise UserError(
            'generation: vllm needs vLLM in this environment, too: pip install "trl[vllm]". It '
            f"runs on Linux with NVIDIA cards ({error}). generation: transformers needs neither."
        ) from error
    except UserError as error:
        command = start_command(address, base, tokens)
        raise UserError(f"{error} This starts it:\n  {command}") from error
    client.session.trust_env = not is_here(host)
    return client


def start_command(address: str, base: str, tokens: int) -> str:
    """The command line of a server that can be kept in step; arguments as of `reach`."""
    host = "127.0.0.1" if host_of(address) == "localhost" else host_of(address)
    return (
        f"CUDA_VISIBLE_DEVICES=1 VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(base)} "
        f"--host {host} --port {urlparse(address).port or 80} --max-model-len {tokens} "
        """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs"""
    )


def host_of(address: str) -> str:
    """The machine that an address names.

    Raises:
        UserError: it names none, or every one (0.0.0.0 is where a server listens, no place to go).
    """
    try:
        place = urlparse(address)
        host, _ = place.hostname or "", place.port
    except ValueError as error:
        raise UserError(f"vllm_server is http://HOST:PORT, not {address} ({error}).") from error
    if not host or _has(host, "is_unspecified"):
        raise UserError(
            f"vllm_server {address} names no machine: name 127.0.0.1, or the server's own address."
        )
    return host


def is_here(host: str) -> bool:
    """Whether what goes to `host` stays on this machine."""
    return host == "localhost" or _has(host, "is_loopback")


def _has(host: str, trait: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), trait))
    except ValueError:  # a name
        return False


def _pass_by_proxies(host: str) -> None:
    """See that no proxy of the environment gets what is for this machine.

    TRL's client asks for the server's health outside its session, so that the session's own switch
    is not enough.
    """
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if known != "*" and host not in known.split(","):
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = f"{known},{host}".removeprefix(",")


@contextmanager
def in_words(address: str, *kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """What TRL's client raises when the server is gone or refuses, as an error for people.

    Args:
        kinds: that the calls inside raise besides, about the server; all others are our mistakes.
        hint: behind the words that nobody answers.
    """
    try:
        yield
    except (requests.RequestException, ConnectionError) as error:
        raise UserError(f"No vLLM server answers at {address}.{hint}") from error
    except Exception as error:
        # A status other than 200 is a plain Exception.
        if type(error) is not Exception and not isinstance(error, kinds):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"The vLLM server at {address} can't be used: {said}") from error
