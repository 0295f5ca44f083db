"""Rollouts by a vLLM server: TRL's real client against a fake server (see tests/fake_vllm.py).

vLLM, NCCL and the CUDA card are replaced; the HTTP requests, the weights and the answers are real.
A real vLLM server was never tried.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from requests.adapters import HTTPAdapter

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import encode_prompts
from lorarlhf.backbone.sampler import row_seeds
from lorarlhf.cli.main import main
from lorarlhf.ppo import vllm
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import collect
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.ppo.vllm import PACK, PLAIN, VLLMSampler, merged_weights, room_to_send
from lorarlhf.ppo.vllm_server import host_of, is_here, start_command
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl
from tests.fake_vllm import FakeVLLM, install_fake_vllm, serving

PROMPTS = ["Hi", "Why is the sky blue?", "Name a fish.", "And now?", "Tea or milk?"]
Make = Callable[..., Any]


@pytest.fixture
def server(make_base: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVLLM]:
    """It begins with other weights than the tiny base's: right answers must come from ours."""
    install_fake_vllm(monkeypatch)
    with serving(make_base(seed=7)) as fake:
        yield fake


def config(folder: Path, server: FakeVLLM | None = None, **settings: Any) -> PPOConfig:
    if server is not None:
        settings |= {"generation": "vllm", "vllm_server": server.address}
    defaults = {"updates": 3, "rollout_batch_size": 4, "micro_batch_size": 2, "max_new_tokens": 6}
    defaults |= {"num_ppo_epochs": 1, "critic_warmup": 1, "learning_rate": 1e-2, "save_steps": 1}
    return PPOConfig(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, **(defaults | settings)
    )


@pytest.fixture
def command(tiny_base: Path, tmp_path: Path) -> list[str]:
    """Words of `lorarlhf ppo`, without its settings."""
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    (tmp_path / "rewards.py").write_text(
        "def one(completions, **_):\n    return [float(len(str(c))) for c in completions]\n"
    )
    words = ["ppo", "--prompts", str(tmp_path / "prompts.jsonl"), "--base", str(tiny_base)]
    words += ["--reward-function", f"{tmp_path / 'rewards.py'}:one", "--out", str(tmp_path / "run")]
    return words


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits.float().log_softmax(dim=-1)


def ask(sampler: VLLMSampler, backbone: Backbone, args: PPOConfig, seed: int = 0) -> Any:
    encoded = encode_prompts(backbone, PROMPTS, args.max_prompt_tokens)
    return sampler(backbone, encoded, args, row_seeds(seed, range(len(encoded))))


# ---- the whole loop


def test_ppo_takes_its_answers_from_the_server_and_keeps_it_in_step(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path
) -> None:
    rows = [{"prompt": text} for text in PROMPTS]
    args = config(tmp_path, server, updates=4, eval_steps=2)
    trainer = PPOTrainer(tiny, args, rows, length, eval_dataset=rows[:3])
    trainer.train()
    updates = [row for row in trainer.state.log_history if "kl" in row]
    assert len(updates) == 4
    for row in updates:  # what answered is what is trained, in each update
        assert row["vllm_kl"] < 1e-6 and row["vllm_gap"] < 1e-4
    assert updates[-1]["kl"] != 0  # and it has moved
    # Four rollouts, and three prompts before the first, after the second and after the last.
    assert len(server.requests) == 4 * 4 + 3 * 3
    whole = {name for name, _ in tiny.causal.named_parameters() if "lora_" not in name}
    assert set(server.pushes[0]) == {name.replace(".base_layer", "") for name in whole}
    # The critic's warm-up moves no policy: nothing is sent twice.
    assert len(server.pushes) == 1 + 3
    for names in server.pushes[1:]:
        assert names == [n for n in server.pushes[0] if n.endswith("proj.weight") and n[13] in "23"]
    assert server.calls.count("/reset_prefix_cache") == len(server.pushes)


def test_a_server_that_is_not_in_step_is_seen(
    tiny: Backbone, server: FakeVLLM, randomise: Make, tmp_path: Path
) -> None:
    args = config(tmp_path, server)
    trainer = PPOTrainer(tiny, args, [{"prompt": text} for text in PROMPTS], length)
    randomise(tiny, "policy")
    first = trainer.update()
    with torch.no_grad():
        for weight in server.model.parameters():
            weight.mul_(1.1)
    second = trainer.update()  # again the critic's warm-up, so no weights are sent
    assert first["vllm_kl"] < 1e-6
    assert second["vllm_kl"] > 1e-3 and second["vllm_gap"] > 1e-2


def test_transformers_is_the_default_and_logs_no_mismatch(tiny: Backbone, tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in PROMPTS]
    trainer = PPOTrainer(tiny, config(tmp_path), rows, length)
    assert "vllm_kl" not in trainer.update()


TOGETHER = """
import json, os, sys, time
from pathlib import Path
import pytest, torch
from lorarlhf.backbone.base import Backbone
from lorarlhf import processes
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.trainer import PPOTrainer
from tests.fake_vllm import FakeVLLM, install_fake_vllm

base, other, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
rank = int(os.environ.get("RANK", "0"))
install_fake_vllm(pytest.MonkeyPatch())
server = FakeVLLM(other) if rank == 0 else None
if server is not None:
    (folder / "address.tmp").write_text(server.address)
    (folder / "address.tmp").rename(folder / "address")
while not (folder / "address").exists():
    time.sleep(0.05)
args = PPOConfig(
    output_dir=str(folder), use_cpu=True, disable_tqdm=True, updates=3, rollout_batch_size=5,
    micro_batch_size=1, max_new_tokens=6, critic_warmup=1, learning_rate=1e-3,
    value_learning_rate=1e-3, adam_epsilon=1e-3, num_ppo_epochs=2,
    generation="vllm", vllm_server=(folder / "address").read_text(),
)
backbone = Backbone.load(base, bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4)
rows = [{"prompt": f"What is {n}?"} for n in range(7)]
def length(completions, **_):
    return [float(len(text)) for text in completions]
trainer = PPOTrainer(backbone, args, rows, length)
trainer.train()
log = [row for row in trainer.state.log_history if "kl" in row]
result = {"processes": distributed.world_size(), "log": log,
          "requests": len(server.requests) if server else 0,
          "pushes": len(server.pushes) if server else 0,
          "weights": torch.cat([p.flatten() for p in backbone.parameters_of("policy")]).tolist()}
(folder / f"result-{rank}.json").write_text(json.dumps(result))
distributed.barrier()
"""


def together(folder: Path, bases: tuple[Path, Path], processes: int) -> list[Any]:
    """Train in so many processes; the first one also holds the server."""
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(TOGETHER)
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        words += ["--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [*words, str(script), *map(str, bases), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_ask_one_server_and_the_first_keeps_it_in_step(
    make_base: Make, tiny_base: Path, tmp_path: Path
) -> None:
    bases = (tiny_base, make_base(seed=7))
    (one,) = together(tmp_path / "one", bases, 1)
    both = together(tmp_path / "two", bases, 2)
    assert [result["processes"] for result in both] == [2, 2]
    assert both[0]["weights"] == both[1]["weights"]
    assert both[0]["weights"] == pytest.approx(one["weights"], rel=0, abs=1e-4)
    for result in (one, both[0]):
        assert result["requests"] == 3 * 5 and result["pushes"] == 1 + 1
    for mine, other in zip(both[0]["log"], one["log"], strict=True):
        assert mine["vllm_kl"] < 1e-6
        assert mine["score"] == pytest.approx(other["score"])


# ---- what is sent


def test_what_is_sent_is_pefts_own_merge(
    tiny: Backbone, server: FakeVLLM, randomise: Make, tmp_path: Path
) -> None:
    args = config(tmp_path, server)
    sampler = VLLMSampler(tiny, args)
    for seed in (0, 1):  # all weights, then those with adapters
        randomise(tiny, "policy", seed=seed)
        ask(sampler, tiny, args)
        merged = copy.deepcopy(tiny.model).merge_and_unload(adapter_names=["default"])
        theirs = dict(server.model.named_parameters())
        assert theirs.keys() == dict(merged.named_parameters()).keys()
        for name, weight in merged.named_parameters():
            assert torch.equal(theirs[name], weight), name
    assert len(server.pushes) == 2 and len(server.pushes[1]) < len(server.pushes[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_sent_as_the_weights_that_it_computes_with(
    bits: int, tiny_base: Path, server: FakeVLLM, randomise: Make, tmp_path: Path
) -> None:
    backbone = Backbone.load(
        str(tiny_base), bits=bits, compute_dtype="float32", adapter_layers=2, lora_rank=4
    )
    randomise(backbone, "policy")
    args = config(tmp_path, server)
    ask(VLLMSampler(backbone, args), backbone, args)
    ids = torch.arange(3, 40)[None]
    with backbone.role("policy"):
        ours = logits(backbone.causal, ids)
    # bitsandbytes rounds the activations of 8-bit layers, too; the weights are the same.
    assert (logits(server.model, ids) - ours).abs().max() < (1e-4 if bits == 4 else 0.15)
    with backbone.role("base"):
        assert (logits(server.model, ids) - logits(backbone.causal, ids)).abs().max() > 1


def test_in_bfloat16_each_weight_is_rounded_once(tiny_base: Path, randomise: Make) -> None:
    backbone = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="bfloat16", adapter_layers=1, lora_rank=4
    )
    randomise(backbone, "policy")
    sent = dict(merged_weights(backbone, whole=False))
    layer = backbone.causal.get_submodule("model.layers.3.mlp.up_proj")
    delta = layer.get_delta_weight("default").detach()
    wanted = (layer.get_base_layer().weight.detach().float() + delta).bfloat16()
    assert torch.equal(sent["model.layers.3.mlp.up_proj.weight"], wanted)
    assert {weight.dtype for weight in sent.values()} == {torch.bfloat16}


def test_biases_go_with_their_layers(make_base: Make, randomise: Make) -> None:
    """A server loads a layer as a whole: half of one would leave the rest undefined."""
    folder = make_base(family="qwen2")
    backbone = Backbone.load(str(folder), bits=16, compute_dtype="float32", adapter_layers=1)
    names = [name for name, _ in merged_weights(backbone, whole=False)]
    assert "model.layers.3.self_attn.q_proj.bias" in names
    assert not any("layers.2" in name or "norm" in name for name in names)


# ---- what comes back


def test_each_request_asks_for_the_distribution_that_is_trained(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path
) -> None:
    args = config(tmp_path, server, temperature=0.7)
    answers = ask(VLLMSampler(tiny, args), tiny, args)
    encoded = encode_prompts(tiny, PROMPTS, 100)
    asked = {tuple(body["prompt"][0]): body for body in server.requests}
    assert len(asked) == len(PROMPTS)
    for ids, seed in zip(encoded, row_seeds(0, range(len(PROMPTS))), strict=True):
        body = asked[tuple(ids)]
        assert {name: body[name] for name in PLAIN} == PLAIN
        assert body["temperature"] == 0.7 and body["max_tokens"] == 6
        assert body["seed"] == seed and body["stop_token_ids"] == tiny.stop_ids
    again = ask(VLLMSampler(tiny, args), tiny, args)
    assert [a.ids for a in again] == [a.ids for a in answers]
    other = ask(VLLMSampler(tiny, args), tiny, args, seed=1)
    assert [a.ids for a in other] != [a.ids for a in answers]


def test_ids_texts_and_endings(tiny: Backbone, server: FakeVLLM, tmp_path: Path) -> None:
    args = config(tmp_path, server)
    sampler = VLLMSampler(tiny, args)
    stop = tiny.stop_ids[0]
    words = tiny.tokenizer("tea is")["input_ids"][:4]
    for script, ids, ended in (
        ([*words, stop], [*words, stop], True),
        ([stop], [stop], True),
        (words, words, False),
    ):
        server.script = script
        for answer in ask(sampler, tiny, args):
            assert (answer.ids, answer.ended) == (ids, ended)
            kept = ids[:-1] if ended else ids
            assert answer.text == tiny.tokenizer.decode(kept).strip()
            assert len(answer.sampled_logprobs or []) == len(ids)


def test_an_answer_is_cut_behind_a_stop_token_that_the_server_did_not_know(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = config(tmp_path, server)
    sampler = VLLMSampler(tiny, args)
    stop = tiny.stop_ids[0]
    generate = sampler.client.generate

    def without_stops(*words: Any, **named: Any) -> Any:
        return generate(
            *words, **(named | {"generation_kwargs": {"seed": 1, "stop_token_ids": []}})
        )

    monkeypatch.setattr(sampler.client, "generate", without_stops)
    server.script = [5, 6, stop, 7, 8]
    for answer in ask(sampler, tiny, args):
        assert answer.ids == [5, 6, stop] and answer.ended
        assert len(answer.sampled_logprobs or []) == 3


def test_the_log_probabilities_are_our_own(
    tiny: Backbone, server: FakeVLLM, randomise: Make, tmp_path: Path
) -> None:
    """Those of the server are compared and not used: the ratio has to start at 1."""
    args = config(tmp_path, server)
    rows = [{"prompt": text} for text in PROMPTS[:4]]
    randomise(tiny, "policy")
    tiny.add_role("value")
    theirs = collect(tiny, rows, args, 0, VLLMSampler(tiny, args))
    same = [c.ids for c in theirs.completions]

    def repeated(*_: Any) -> Any:
        return [copy.copy(c) for c in theirs.completions]

    ours = collect(tiny, rows, args, 0, repeated)
    assert [c.ids for c in ours.completions] == same
    assert torch.equal(ours.logprobs, theirs.logprobs)


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
    assert "name 127.0.0.1, or the server's own address" in said and address in said


def test_whose_address_it_is() -> None:
    for host in ("127.0.0.1", "localhost", "127.1.2.3", "[::1]"):
        assert is_here(host_of(f"http://{host}:8000"))
    assert not is_here(host_of("http://gpu.invalid:8000"))
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

    monkeypatch.setattr(vllm, "announced", mistaken)
    with pytest.raises(ValueError, match="of our own"):
        ask(sampler, tiny, config(tmp_path, server))


# ---- room, and errors while the server waits


def test_how_much_room_sending_takes(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = list(merged_weights(tiny, whole=False))
    sizes = [4 * weight.numel() for _, weight in weights]
    merging = 10 * max(weight.numel() for _, weight in weights)
    # All in one pack: gathered, and copied into one.
    assert room_to_send(tiny, whole=False) == 2 * sum(sizes) + merging
    # The base's own weights are not copied to be gathered.
    rest = sum(4 * w.numel() for _, w in merged_weights(tiny, whole=True)) - sum(sizes)
    assert room_to_send(tiny, whole=True) == 2 * sum(sizes) + rest + merging
    # A pack for each weight: the one before is still under way.
    monkeypatch.setattr(vllm, "PACK", 0)
    pairs = [before + 2 * now for before, now in zip([0, *sizes], sizes, strict=False)]
    assert room_to_send(tiny, whole=False) == max(pairs) + merging
    assert PACK == 2**30


def test_without_room_nothing_is_sent(
    tiny: Backbone, server: FakeVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = config(tmp_path, server)
    sampler = VLLMSampler(tiny, args)
    needed = room_to_send(tiny, whole=True)
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
    # The fake server waits for a minute, a real one for ever.
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "OutOfMemoryError: no room for 5 GiB. Take fewer adapter_layers" in done.stderr
    assert "start it anew" in done.stderr


def test_a_server_that_dies_on_the_way(tiny: Backbone, server: FakeVLLM, tmp_path: Path) -> None:
    trainer = PPOTrainer(
        tiny, config(tmp_path, server), [{"prompt": text} for text in PROMPTS], length
    )
    trainer.update()
    server.stop()
    client = trainer.sampling.client  # type: ignore[attr-defined]
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
    server.told = {"model": "other/model", "hf_text_config": 'X {"vocab_size": 32000}'}
    with pytest.raises(UserError, match=r"(?s)other/model.*vocab_size is 32000, not .*vllm serve"):
        VLLMSampler(tiny, config(tmp_path, server))


def test_what_the_server_lacks_is_named(tiny: Backbone, server: FakeVLLM, tmp_path: Path) -> None:
    server.told["logprobs_mode"] = "raw_logprobs"
    with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
        VLLMSampler(tiny, config(tmp_path, server, temperature=0.5))
    VLLMSampler(tiny, config(tmp_path, server))  # at temperature 1 both are the same
    server.told["quantization"] = "bitsandbytes"
    with pytest.raises(UserError, match="16-bit original"):
        VLLMSampler(tiny, config(tmp_path, server))
    del server.told["quantization"]
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
