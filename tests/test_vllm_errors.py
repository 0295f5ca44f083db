"""Errors about a vLLM server: each one says what is wrong and what to do."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from requests.adapters import HTTPAdapter

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.main import main
from lorarlhf.ppo import vllm
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.ppo.vllm import PACK_BYTES, VLLMSampler, bytes_to_send, merged_weights
from lorarlhf.ppo.vllm_server import host_of, is_local, start_command
from lorarlhf.runtime.errors import UserError
from tests.fake_vllm import FakeVLLM, install_fake_vllm
from tests.vllm_runs import PROMPTS, ask, config, length
from tests.vllm_runs import command as command  # a fixture
from tests.vllm_runs import server as server  # a fixture

# ---- errors for people


def test_nobody_answers(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_vllm(monkeypatch)
    args = config(tmp_path, generation="vllm", vllm_server="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"(?s)http://127.0.0.1:9.*vllm serve .* --port 9 ") as no:
        VLLMSampler(tiny, args)
    assert "--resume" not in str(no.value)  # nothing has begun


@pytest.mark.parametrize("by_name", [True, False])
def test_the_command_names_a_base_that_a_server_can_load(
    by_name: bool, command: list[str], tiny_base: Path, capsys: Any, monkeypatch: Any
) -> None:
    install_fake_vllm(monkeypatch)
    if by_name:  # a packaged base, which a server does not know by its name
        monkeypatch.setattr("lorarlhf.backbone.fetch._packaged_folder", lambda *_: tiny_base)
        command[command.index("--base") + 1] = "smollm2-135m"
    sets = ("generation=vllm", "vllm_server=http://localhost:9", "max_prompt_tokens=100")
    assert main([*command, *(part for text in sets for part in ("--set", text))]) == 2
    said = capsys.readouterr().err
    assert f"vllm serve {tiny_base} --host 127.0.0.1 --port 9 --max-model-len 164 " in said
    assert "No vLLM server answers at http://localhost:9. This starts it:" in said


@pytest.mark.parametrize("address", ["http://0.0.0.0:8000", "http://[::]:8000"])
def test_where_a_server_listens_is_no_address(
    address: str, command: list[str], capsys: Any
) -> None:
    assert main([*command, "--set", "generation=vllm", "--set", f"vllm_server={address}"]) == 2
    said = capsys.readouterr().err
    assert "use 127.0.0.1 or the server's own address" in said and address in said


def test_whose_address_it_is() -> None:
    for host in ("127.0.0.1", "localhost", "127.1.2.3", "[::1]"):
        assert is_local(host_of(f"http://{host}:8000"))
    assert not is_local(host_of("http://gpu.invalid:8000"))
    assert "--host gpu.invalid --port 80 " in start_command("http://gpu.invalid", "base", 10)
    for nobody in ("http://:8000", "http://127.0.0.1:port", "http://127.0.0.1:99999"):
        with pytest.raises(UserError, match="vllm_server"):
            host_of(nobody)


def test_no_proxy_gets_what_is_for_this_machine(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("NO_PROXY", "intranet.invalid")
    monkeypatch.setenv("no_proxy", "")
    args = config(tmp_path, server)
    for _ in range(2):
        sampler = VLLMSampler(tiny, args)
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intranet.invalid,127.0.0.1"
    monkeypatch.setenv("no_proxy", "")  # the session goes its own way
    monkeypatch.setenv("NO_PROXY", "")
    assert len(ask(sampler, tiny, args)) == len(PROMPTS)


def test_our_own_mistakes_are_not_the_servers(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = VLLMSampler(tiny, config(tmp_path, server))

    def mistaken(*_: Any, **__: Any) -> Any:
        raise ValueError("of our own")

    monkeypatch.setattr(vllm, "weight_specs", mistaken)
    with pytest.raises(ValueError, match="of our own"):
        ask(sampler, tiny, config(tmp_path, server))


# ---- room, and errors while the server waits


def test_how_much_room_sending_takes(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = list(merged_weights(tiny, everything=False))
    sizes = [4 * weight.numel() for _, weight in weights]
    merging = 10 * max(weight.numel() for _, weight in weights)
    # All in one pack: gathered, and copied into one.
    assert bytes_to_send(tiny, everything=False) == 2 * sum(sizes) + merging
    # The base's own weights are not copied to be gathered.
    rest = sum(4 * w.numel() for _, w in merged_weights(tiny, everything=True)) - sum(sizes)
    assert bytes_to_send(tiny, everything=True) == 2 * sum(sizes) + rest + merging
    # A pack for each weight: the one before is still under way.
    monkeypatch.setattr(vllm, "PACK_BYTES", 0)
    pairs = [before + 2 * now for before, now in zip([0, *sizes], sizes, strict=False)]
    assert bytes_to_send(tiny, everything=False) == max(pairs) + merging
    assert PACK_BYTES == 2**30


def test_without_room_nothing_is_sent(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = config(tmp_path, server)
    sampler = VLLMSampler(tiny, args)
    needed = bytes_to_send(tiny, everything=True)
    monkeypatch.setattr(vllm, "free_bytes", lambda device: needed - 1)
    with pytest.raises(UserError, match=r"GB on this card, and .* adapter_layers"):
        ask(sampler, tiny, args)
    assert "/start_weight_update" not in server.calls
    monkeypatch.setattr(vllm, "free_bytes", lambda device: needed)
    ask(sampler, tiny, args)
    assert len(server.pushes) == 1


BREAKS = """
import sys
from pathlib import Path
import pytest, torch
from peft.tuners.lora.layer import Linear
from lorarlhf.cli.main import main
from tests.fake_vllm import FakeVLLM, install_fake_vllm

install_fake_vllm(pytest.MonkeyPatch())
server = FakeVLLM(Path(sys.argv[1]))
merge, calls = Linear.get_delta_weight, []
def breaks(layer, adapter):
    calls.append(adapter)
    if len(calls) == 5:
        raise torch.OutOfMemoryError("no room for 5 GiB")
    return merge(layer, adapter)
Linear.get_delta_weight = breaks
sets = ["generation=vllm", f"vllm_server={server.address}", "bits=16", "max_new_tokens=4"]
main([*sys.argv[2:], *(part for text in sets for part in ("--set", text))])
"""


def test_an_error_while_the_server_waits_ends_the_run(
    command: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    script = tmp_path / "breaks.py"
    script.write_text(BREAKS)
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    words = [sys.executable, str(script), str(tiny_base), *command]
    # The fake server waits for ten minutes, a real one for ever.
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "OutOfMemoryError: no room for 5 GiB. Use fewer adapter_layers" in done.stderr
    assert "restart it as well" in done.stderr


def test_a_server_that_dies_on_the_way(tiny: Backbone, server: FakeVLLM, tmp_path: Path) -> None:
    trainer = PPOTrainer(
        tiny, config(tmp_path, server), [{"prompt": text} for text in PROMPTS], length
    )
    trainer.update()
    server.stop()
    client = trainer.sampler.client  # type: ignore[attr-defined]
    client.session.mount("http://", HTTPAdapter())  # TRL's own tries again for a minute
    with pytest.raises(UserError, match=r"No vLLM server answers at .* --resume"):
        trainer.update()


def test_without_vllm_the_command_says_what_to_install(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trl.generation.vllm_client.is_vllm_available", lambda *_: False)
    assert main([*command, "--set", "generation=vllm"]) == 2
    said = capsys.readouterr().err
    assert 'pip install "trl[vllm]"' in said and "Linux" in said
    assert not (tmp_path / "run").exists()


def test_another_base_is_named(tiny: Backbone, server: FakeVLLM, tmp_path: Path) -> None:
    server.model_config = {"model": "other/model", "hf_text_config": 'X {"vocab_size": 32000}'}
    with pytest.raises(UserError, match=r"(?s)other/model.*vocab_size is 32000, not .*vllm serve"):
        VLLMSampler(tiny, config(tmp_path, server))


def test_what_the_server_lacks_is_named(tiny: Backbone, server: FakeVLLM, tmp_path: Path) -> None:
    server.model_config["logprobs_mode"] = "raw_logprobs"
    with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
        VLLMSampler(tiny, config(tmp_path, server, temperature=0.5))
    VLLMSampler(tiny, config(tmp_path, server))  # at temperature 1 both are the same
    server.model_config["quantization"] = "bitsandbytes"
    with pytest.raises(UserError, match="16-bit original"):
        VLLMSampler(tiny, config(tmp_path, server))
    del server.model_config["quantization"]
    server.engine = None
    with pytest.raises(UserError, match="--weight-transfer-config"):
        VLLMSampler(tiny, config(tmp_path, server))


def test_what_the_server_says_against_a_request_is_told(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path
) -> None:
    args = config(tmp_path, server)
    sampler = VLLMSampler(tiny, args)
    server.script = []
    with pytest.raises(UserError, match="without a token"):
        ask(sampler, tiny, args)
    server.script, server.model = None, None
    with pytest.raises(UserError, match=r"can't be used: Request failed: 400.*NoneType"):
        ask(sampler, tiny, args)


def test_another_machine_is_told(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VLLMSampler(tiny, config(tmp_path, server))
    assert capsys.readouterr().err == ""
    args = config(tmp_path, generation="vllm", vllm_server="http://gpu.invalid:8000")
    with pytest.raises(UserError, match="gpu.invalid"):
        VLLMSampler(tiny, args)
    assert "is not this machine" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["sglang", "VLLM"])
def test_only_two_ways_of_sampling(value: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="transformers or vllm"):
        config(tmp_path, generation=value)
