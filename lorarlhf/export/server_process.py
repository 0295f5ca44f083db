"""A GGUF file in llama.cpp's server: `python -m ... JOB RESULT` (see engines.py).

The server is the one in the wheel of xllamacpp. It renders conversations by the chat template in
the file, as for a person who chats with it, and answers on this machine alone, to this process
alone.
"""

import json
import secrets
import urllib.request
from typing import Any

from lorarlhf.export.engines import job_and_result, tell
from lorarlhf.export.llama_process import threads

Row = dict[str, Any]
GREEDY: Row = {"temperature": 0, "cache_prompt": False, "verbose": True, "return_tokens": True}


class Server:
    """A running server with one model."""

    def __init__(self, model: str, context: int) -> None:
        import xllamacpp

        how = xllamacpp.CommonParams()
        how.model.path, how.n_ctx, how.n_parallel = model, context, 1
        how.hostnames, how.port, how.offline, how.ui = ["127.0.0.1"], 0, True, False
        self.key = secrets.token_hex(16)
        how.api_keys = [self.key]
        how.n_gpu_layers, how.fit_params, how.warmup, how.verbosity = 0, False, False, 1
        how.cpuparams.n_threads = how.cpuparams_batch.n_threads = threads()
        self.server = xllamacpp.Server(how)

    def ask(self, path: str, body: Row) -> Row:
        """The reply to a request. Raises `OSError` if the server refuses it."""
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        # Not through a proxy that the environment may name: it is this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as reply:
            return json.load(reply)

    def answer(self, prompt: Row, count: int) -> Row:
        """The likeliest answer to a prompt, and the tokens that the prompt was read as."""
        if "text" in prompt:
            told = self.ask("/completion", {"prompt": prompt["text"], "n_predict": count} | GREEDY)
        else:
            body: Row = {"messages": prompt["messages"], "max_tokens": count} | GREEDY
            if prompt["template"]:
                body["chat_template_kwargs"] = prompt["template"]
            told = self.ask("/v1/chat/completions", body)["__verbose"]
        # What was read, written as text with all its special tokens, BOS included.
        body = {"content": told["prompt"], "add_special": False, "parse_special": True}
        ids = self.ask("/tokenize", body)["tokens"]
        return {"text": told["content"], "ended": told["stop_type"] == "eos", "prompt": ids}


def main() -> None:
    """Start the server and let it answer."""
    job, told = job_and_result()
    server = Server(job["model"], job["context"] + 8)
    answers = []
    for prompt in job["prompts"]:
        answers.append(server.answer(prompt, job["max_new_tokens"]))
        tell(len(answers))
    told.write_text(json.dumps({"answers": answers}), encoding="utf-8")


if __name__ == "__main__":
    main()
