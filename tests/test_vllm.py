"""Rollouts by a vLLM server: TRL's real client against a fake server (see tests/fake_vllm.py).

vLLM, NCCL and the CUDA card are replaced; the HTTP requests, the weights and the answers are real.
A real vLLM server was never tried.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import encode_prompts
from lorarlhf.backbone.sampler import row_seeds
from lorarlhf.ppo.rollout import collect
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.ppo.vllm import PLAIN, VLLMSampler, merged_weights
from tests.fake_vllm import FakeVLLM
from tests.forked import run_group, run_script
from tests.vllm_runs import PROMPTS, Make, ask, config, length
from tests.vllm_runs import command as command  # a fixture
from tests.vllm_runs import server as server  # a fixture


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits.float().log_softmax(dim=-1)


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
from lorarlhf.runtime import distributed
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
    words = [*map(str, bases), str(folder)]
    done = run_group(run_script, script, words, processes=processes, folder=folder)
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
    sent = dict(merged_weights(backbone, everything=False))
    layer = backbone.causal.get_submodule("model.layers.3.mlp.up_proj")
    delta = layer.get_delta_weight("default").detach()
    wanted = (layer.get_base_layer().weight.detach().float() + delta).bfloat16()
    assert torch.equal(sent["model.layers.3.mlp.up_proj.weight"], wanted)
    assert {weight.dtype for weight in sent.values()} == {torch.bfloat16}


def test_biases_go_with_their_layers(make_base: Make, randomise: Make) -> None:
    """A server loads a layer as a whole: half of one would leave the rest undefined."""
    folder = make_base(family="qwen2")
    backbone = Backbone.load(str(folder), bits=16, compute_dtype="float32", adapter_layers=1)
    names = [name for name, _ in merged_weights(backbone, everything=False)]
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
