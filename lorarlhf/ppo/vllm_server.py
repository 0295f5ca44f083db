"""Connecting to a vLLM server: its address, the command that starts one, readable errors."""

import ipaddress
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import requests

from lorarlhf.runtime.errors import UserError

RESUME_HINT = " Once it runs again, a run that had begun continues with --resume."


def connect(address: str, base: str, tokens: int) -> Any:
    """TRL's client for the server at `address`, which must be running.

    Args:
        base: folder or hub id, for the command that starts the server.
        tokens: of the longest prompt with its answer, for the same command.

    Raises:
        UserError: the address is no host's, vLLM is not installed here, or no server answers.
    """
    from trl.generation import vllm_client

    host = host_of(address)
    if not hasattr(vllm_client.VLLMClient, "get_server_info"):
        raise UserError("generation: vllm needs TRL 1.16 or later, and with it Python 3.11.")
    if is_local(host):
        _bypass_proxies(host)
    try:
        # The response of another kind of server lacks the expected fields.
        with as_user_error(address, LookupError, TypeError):
            client = vllm_client.VLLMClient(base_url=address.rstrip("/"))
    except ImportError as error:
        raise UserError(
            'generation: vllm needs vLLM in this environment as well: pip install "trl[vllm]". It '
            f"runs on Linux with NVIDIA cards ({error}). generation: transformers needs neither."
        ) from error
    except UserError as error:
        command = start_command(address, base, tokens)
        raise UserError(f"{error} This starts it:\n  {command}") from error
    client.session.trust_env = not is_local(host)
    return client


def start_command(address: str, base: str, tokens: int) -> str:
    """The command that starts a server with the required options; arguments as of `connect`."""
    host = "127.0.0.1" if host_of(address) == "localhost" else host_of(address)
    return (
        f"CUDA_VISIBLE_DEVICES=1 VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(base)} "
        f"--host {host} --port {urlparse(address).port or 80} --max-model-len {tokens} "
        """--weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs"""
    )


def host_of(address: str) -> str:
    """The host of an address.

    Raises:
        UserError: there is none, or it stands for all (0.0.0.0: a server can listen on it, but a
            client can't connect to it).
    """
    try:
        place = urlparse(address)
        host, _ = place.hostname or "", place.port
    except ValueError as error:
        raise UserError(f"vllm_server is http://HOST:PORT, not {address} ({error}).") from error
    if not host or _has(host, "is_unspecified"):
        raise UserError(
            f"vllm_server {address} names no host: use 127.0.0.1 or the server's own address."
        )
    return host


def is_local(host: str) -> bool:
    """Whether `host` is this machine."""
    return host == "localhost" or _has(host, "is_loopback")


def _has(host: str, trait: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), trait))
    except ValueError:  # a name
        return False


def _bypass_proxies(host: str) -> None:
    """Exclude a local host from the proxies in the environment.

    TRL's client checks the server's health outside its session, so the session's own setting is not
    enough.
    """
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if known != "*" and host not in known.split(","):
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = f"{known},{host}".removeprefix(",")


@contextmanager
def as_user_error(address: str, *kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """Turn what TRL's client raises about the server into a `UserError`.

    Args:
        kinds: further exceptions that the calls inside raise about the server. All others pass, as
            they are errors in this program.
        hint: appended to the message that no server answers.
    """
    try:
        yield
    except (requests.RequestException, ConnectionError) as error:
        raise UserError(f"No vLLM server answers at {address}.{hint}") from error
    except Exception as error:
        # A status other than 200 is a plain Exception.
        if type(error) is not Exception and not isinstance(error, kinds):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"The vLLM server at {address} can't be used: {message}") from error
