"""A fake vLLM server for TRL's client, which answers with its own tiny model.

vLLM itself needs a CUDA card. TRL's client, its HTTP requests over loopback, and the order and
contents of what is sent are real. The package vLLM is not: `install_fake_vllm` replaces the few
names that the client takes from it, and weights go through a queue instead of NCCL. The tests
therefore do not show that a real server accepts what is sent.
"""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

WIRE: "queue.Queue[torch.Tensor]" = queue.Queue()
"""Stands for NCCL between the client and the server, both in one process."""


def install_fake_vllm(patch: pytest.MonkeyPatch) -> None:
    """Make TRL's client find vLLM and a CUDA card, and send weights over `WIRE`."""
    from trl.generation import vllm_client

    def packed_nccl_broadcast_producer(
        iterator: Any, group: Any, src: int, post_iter_func: Any
    ) -> None:
        for item in iterator:
            WIRE.put(post_iter_func(item).clone())

    def open_trainer_endpoint(info: dict[str, Any]) -> Any:
        assert info["world_size"] == 2 and info["rank_offset"] == 1
        return SimpleNamespace(group=SimpleNamespace(store=None, socket=None))

    card = SimpleNamespace(type="cuda", index=None)
    names: dict[str, Any] = {
        "is_vllm_available": lambda *_: True,
        "get_ip": lambda: "127.0.0.1",
        "_HAS_STATEFUL_TRAINER_ENGINE": True,  # of vLLM 0.28 and later
        "_HAS_RESET_PREFIX_CACHE_SUCCESS": True,
        "packed_nccl_broadcast_producer": packed_nccl_broadcast_producer,
        "open_trainer_endpoint": open_trainer_endpoint,
        "torch": SimpleNamespace(device=lambda *_: card),  # read in init_communicator alone
    }
    for name, value in names.items():
        patch.setattr(vllm_client, name, value, raising=False)


class FakeVLLM:
    """The server, with its `address`, its `model`, and a record of all requests.

    Attributes:
        pushes: the names of each weight update, in their order.
        requests: the bodies of all requests for answers.
        script: token ids that answer every request, instead of sampled ones.
        model_config: the `model_config` in /server_info.
    """

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.pushes: list[list[str]] = []
        self.requests: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.script: list[int] | None = None
        config = self.model.config
        self.model_config = {"model": str(folder), "hf_text_config": f"{type(config)} {config!r}"}
        self.engine: dict[str, str] | None = {"backend": "nccl"}
        self._lock = threading.Lock()
        self._updating = False
        handler = type("Handler", (_Handler,), {"fake": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def get(self, path: str) -> Any:
        return {
            "/health": {},
            "/v1/models": {"data": [{"id": "tiny"}]},
            "/server_info": {
                "vllm_config": {
                    "weight_transfer_config": self.engine,
                    "model_config": self.model_config,
                }
            },
            "/get_world_size": {"world_size": 1},
        }[path]

    def post(self, path: str, body: Any) -> Any:
        with self._lock:
            if path == "/v1/completions":
                return self._complete(body)
            self.calls.append(path)
            if path == "/start_weight_update":
                self._updating = True
            elif path == "/update_weights":
                self._receive(body["update_info"])
            elif path == "/finish_weight_update":
                self._updating = False
            return {"success": True}

    @torch.no_grad()
    def _receive(self, info: dict[str, Any]) -> None:
        assert self._updating
        weights = dict(self.model.named_parameters())
        for name, dtype, shape in zip(
            info["names"], info["dtype_names"], info["shapes"], strict=True
        ):
            came = WIRE.get(timeout=600)
            assert str(came.dtype) == f"torch.{dtype}" and list(came.shape) == shape
            assert weights[name].shape == came.shape  # copy_ alone would broadcast
            weights[name].copy_(came)
        self.pushes.append(info["names"])

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> Any:
        assert not self._updating
        self.requests.append(body)
        assert body["return_token_ids"] and body["logprobs"] == 0 and body["n"] == 1
        (prompt,) = body["prompt"]
        draws = torch.Generator().manual_seed(body["seed"])
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < body["max_tokens"] and not (ids and ids[-1] in body["stop_token_ids"]):
            if self.script is not None and len(ids) == len(self.script):
                break
            logits = self.model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
            known = (logits / body["temperature"]).log_softmax(dim=0)
            drawn = int(torch.multinomial(known.exp(), 1, generator=draws))
            token = drawn if self.script is None else self.script[len(ids)]
            ids.append(token)
            logprobs.append(known[token].item())
        names = [f"token_id:{token}" for token in ids]
        said = {"tokens": names, "token_logprobs": logprobs, "top_logprobs": [None] * len(ids)}
        return {"choices": [{"prompt_token_ids": prompt, "token_ids": ids, "logprobs": said}]}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVLLM

    def do_GET(self) -> None:
        self._answer(lambda: self.fake.get(self.path.partition("?")[0]))

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self._answer(lambda: self.fake.post(self.path, body))

    def _answer(self, make: Any) -> None:
        try:
            status, found = 200, make()
        except Exception as error:  # as a real server would: a status and a message
            status, found = 400, {"error": f"{type(error).__name__}: {error}"}
        text = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving(folder: Path) -> Iterator[FakeVLLM]:
    """A server of the model in a folder, stopped at the end."""
    fake = FakeVLLM(folder)
    try:
        yield fake
    finally:
        fake.stop()
