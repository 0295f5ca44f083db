"""Model cards: every figure is in the run's files, no name of a rater and no path is."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lorarlhf.export.cards.base_facts import base_facts
from lorarlhf.export.cards.model_card import model_card, write_model_card
from lorarlhf.export.cards.run_facts import (
    RunFacts,
    data_in_words,
    hub_datasets,
    lineage_of,
    without_paths,
)
from lorarlhf.export.upload_check import check_upload
from lorarlhf.preferences.blind_comparisons import add_comparison
from lorarlhf.preferences.records import Verdict
from lorarlhf.project.project import Project, create
from lorarlhf.runtime.files import write_json
from tests.project_rounds import finished_round
from tests.run_folders import ppo_rows, write_run

OLD = Path(__file__).parent / "data/before-0.2"
RATER = "Zebedee"
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "peft": "0.21.2"}


def head_of(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found is not None, f"no section {heading}"
    return found[1].strip()


def result(name: str, wins: int, n: int, ci95: list[float]) -> dict[str, Any]:
    more = {"length_controlled": {"rate": 0.58, "ci95": [0.44, 0.7], "weight": 0.1}}
    return more | {"candidate": name, "n": n, "rate": wins / n, "ci95": ci95}


def task(name: str, kind: str, before: int, after: int, p: float) -> dict[str, Any]:
    counts = {"candidate": name, "kind": kind, "tasks": 100, "before": before, "after": after}
    return counts | {"low": -0.17, "high": -0.03, "p": p}


def write_eval(folder: Path, run: str, name: str) -> None:
    """Results of `eval`, as it writes them, with two judges."""
    judges = [
        {
            "judge": "reward of 0002-reward",
            "independent": False,
            "results": [result(name, 54, 60, [0.8, 0.96])],
        },
        {
            "judge": "model /home/somebody/models/judge-7b",
            "independent": True,
            "results": [result(name, 37, 60, [0.49, 0.73]), result("other", 1, 60, [0.0, 0.1])],
        },
    ]
    folder.mkdir(parents=True)
    skills = [task(name, "facts", 15, 13, 0.6), task(name, "all", 70, 60, 0.002)]
    candidates = [{"name": "base", "run": "", "kl": 0.0}, {"name": name, "run": run, "kl": 3.25}]
    data = {"prompts": 60, "candidates": candidates, "judges": judges, "skills": skills}
    write_json(folder / "eval.json", data)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with three runs, votes, a blind comparison and an evaluation."""
    made = create(tmp_path / "mine")
    sft = {"rows": 70, "steps": 18, "loss_first": 2.5, "loss_last": 1.25}
    write_run(made, "0001-sft", summary=sft, config={"data": "/home/somebody/answers.jsonl"})
    write_run(
        made,
        "0002-reward",
        role="reward",
        summary={"pairs": 240, "heldout_accuracy": 0.71, "n": 60},
        config={"init": "0001-sft", "data": f"{tmp_path}/mine/runs/0002-reward.votes.jsonl"},
    )
    alarm = {"step": 12, "alarm": "kl_runaway", "value": 30.0, "words": "The KL is 30. Lower it."}
    write_run(
        made,
        "0003-ppo",
        rows=[*ppo_rows(3), alarm],
        summary={"updates": 24, "kl_per_sequence": 2.5, "alarms": []},
        config={
            "init": "0001-sft",
            "reward": "0002-reward",
            "data": f"{tmp_path}/mine/prompts.jsonl",
            "reward_function": [f"{tmp_path}/rewards.py:short"],
            "algorithm": "ppo",
            "kl_coef": 0.05,
            "max_new_tokens": 128,
            "vllm_server": "http://127.0.0.1:8000",
        },
        bits=4,
        device="cuda:0",
        compute_dtype="bfloat16",
        versions=VERSIONS,
    )
    config = {"r": 16, "lora_alpha": 32, "target_modules": ["model.layers.0.self_attn.q_proj"]}
    adapter = made.folder / "runs/0003-ppo/adapters/policy"
    write_json(adapter / "adapter_config.json", config)
    store = made.store()
    for number in range(4):
        item = store.add_item(f"{number}?", [("a", "base"), ("b", "base")])
        shown = store.present(item, RATER)
        store.judge(shown.token, Verdict("ranked", [[0], [1]], note="my secret note"))
    test = add_comparison(store, "base", "runs/0003-ppo", 10)
    for number in range(10):
        answers = [("a", "base"), ("b", "runs/0003-ppo")]
        item = store.add_item(f"c{number}?", answers, purpose="compare", comparison=test.id)
        verdict = Verdict("ranked", [[1], [0]]) if number < 7 else Verdict("tie")
        store.judge(store.present(item, RATER).token, verdict)
    store.close()
    write_eval(made.folder / "eval", "mine/runs/0003-ppo", "0003-ppo")
    return made


def test_the_card_of_a_projects_run(project: Project, tmp_path: Path) -> None:
    text = model_card(project.folder / "runs/0003-ppo", "adapter")
    head = head_of(text)
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head["base_model_relation"] == "adapter" and head["license"] == "apache-2.0"
    assert head["library_name"] == "peft" and head["pipeline_tag"] == "text-generation"
    assert {"lora", "ppo", "sft", "reward"} <= set(head["tags"]) and "datasets" not in head
    assert "\n# PPO of smollm2-135m (0003-ppo)\n" in text

    made = section(text, "How it was made").split("\n")
    assert made[0].startswith("1. **Supervised tuning** (`0001-sft`), from the base.")
    assert "70 demonstrations (answers.jsonl)" in made[0] and "from 2.50 to 1.25" in made[0]
    assert "240 preference pairs (the project's votes)" in made[1]
    assert "orders 71% of 60 held-out pairs" in made[1]
    assert made[2].startswith("3. **PPO** (`0003-ppo`), from the policy of 0001-sft and the reward")
    assert (
        "scored by `rewards.py:short`" in made[2] and "cuda in bfloat16, the base in 4" in made[2]
    )
    assert "rank 16 and alpha 32; modules: `q_proj`" in made[-1]

    wins = section(text, "Did it get better?")
    # 7 wins and 3 ties of 10; Wilson's interval of 0.85 by hand: 0.541 to 0.965
    assert "| people | the base | 85% (54 to 96%) | 10 | - | yes |" in wins
    assert "| model judge-7b | the base | 62% (49 to 73%) | 60 | 58% (44 to 70%) | yes |" in wins
    assert "| reward of 0002-reward | the base | 90% (80 to 96%) | 60 |" in wins
    assert "3.25 nats an answer from the base" in wins and "can learn to exploit it" in wins
    assert "| all | 100 | 70 | 60 | -17 to -3 points |" in section(text, "What was forgotten")
    assert "It has forgotten something" in section(text, "What was forgotten")
    assert "| `0003-ppo` | kl runaway | 12 | no | The KL is 30. Lower it. |" in section(
        text, "Alarms"
    )
    assert "4 votes for training on 4 prompts" in section(text, "Votes and raters")
    assert "Raters: 1 rater on the rating pages." in section(text, "Votes and raters")
    limits = section(text, "Limits")
    assert "answers of up to 128 tokens" in limits and "orders 71% of 60" in limits
    assert "kl_coef: 0.05" in section(text, "Settings")
    assert "vllm_server" not in text and "not recorded" in section(text, "Libraries")
    for private in (RATER, "my secret note", str(tmp_path), "somebody", "/home"):
        assert private not in text, private


def test_a_card_can_be_read_by_the_hubs_library_and_uploaded(
    project: Project, tmp_path: Path
) -> None:
    out = tmp_path / "export"
    out.mkdir()
    checks = ["64 of 64 tokens are the same as the original's."]
    file = write_model_card(project.folder / "runs/0003-ppo", out, "merged", checks=checks)
    card = ModelCard.load(file)
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert "64 of 64 tokens" in section(file.read_text(), "The export")
    assert [str(one) for one in check_upload(out)] == ["README.md"]


def test_a_round_is_named_with_its_decision(tmp_path: Path) -> None:
    project = create(tmp_path / "mine")
    finished_round(project, 1, verdict="kept")
    text = model_card(project.folder / "runs/0002-ppo", "adapter")
    assert "Round 1 of the project trained it, from 20 votes" in text and "it is kept" in text


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """Runs whose records name relative folders that are not here any more."""
    return shutil.copytree(OLD / "project", tmp_path / "moved") / "runs"


def test_runs_of_an_earlier_version_that_were_moved(moved: Path) -> None:
    run = moved / "0003-ppo"
    assert [facts.name for facts in lineage_of(run)] == ["0001-sft", "0002-reward", "0003-ppo"]
    text = model_card(run, "adapter")
    assert "27 preference pairs (the project's votes)" in text
    assert "| `0003-ppo` | useless value |" in section(text, "Alarms")
    assert "look at the base's page" in section(text, "The base")
    assert "lorarlhf-before" not in text and str(moved) not in text and str(OLD) not in text
    assert "base_model" not in head_of(text)
    assert "No comparison with the base is on record" in section(text, "Did it get better?")
    assert "Not measured" in section(text, "What was forgotten")


def test_a_run_that_is_not_finished(moved: Path) -> None:
    text = model_card(moved / "0004-ppo", "adapter")
    assert "its status is stopped" in section(text, "Limits")


def test_a_run_outside_of_a_project(tmp_path: Path) -> None:
    run = tmp_path / "runs/dpo"
    run.mkdir(parents=True)
    config = {"algorithm": "dpo", "beta": 0.1, "data": "pairs.jsonl", "init": "runs/gone"}
    summary = {"rows": 12, "steps": 3, "loss_first": 0.7, "loss_last": 0.5, "accuracy_last": 0.75}
    about = {"stage": "dpo", "status": "done", "config": config, "summary": summary}
    base = {"base": "org/base-1b", "base_path": "org/base-1b", "bits": 4}
    write_json(run / "run.json", about | base)
    write_eval(tmp_path / "runs/eval", str(run), "dpo")
    text = model_card(run, "merged")
    assert head_of(text)["base_model"] == "org/base-1b" and "license" not in head_of(text)
    page = "https://huggingface.co/org/base-1b"
    assert f"Licence: not known: look at the base's page, {page}." in text
    assert (
        "Its folder is not there any more" in text and "12 preference pairs (pairs.jsonl)" in text
    )
    assert "| model judge-7b | the base | 62%" in section(text, "Did it get better?")
    assert "## Votes and raters" not in text


def test_a_demo(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    wins = {"n": 120, "wins": 80, "ties": 10, "losses": 30, "rate": 0.708, "ci95": [0.63, 0.78]}
    summary = {
        "pairs": 170,
        "reward_model": {"heldout_accuracy": 0.74, "n": 50},
        "ppo": {"updates": 16, "kl_per_sequence": 1.5, "alarms": ["collapsed_answers"]},
        "win_rate": wins,
        "win_rate_at_like_length": wins | {"rate": 0.66, "ci95": [0.55, 0.76]},
        "settings": {"kl_coef": 0.1, "max_new_tokens": 48},
    }
    config = {"out": str(run), "rater": "cheerful", "noise": 0.1, "base": "smollm2-135m"}
    about = {"stage": "demo", "status": "done", "config": config, "base": "smollm2-135m"}
    run.mkdir()
    write_json(run / "run.json", about | {"bits": 4, "seconds": 600.0})
    write_json(run / "summary.json", summary)
    text = model_card(run, "ollama", files=["policy-Q8_0.gguf", "Modelfile"])
    assert "170 votes came from the simulated rater `cheerful`, a rule and no person" in text
    assert "10% of them were wrong on purpose" in text
    rule = "the rule of the simulated rater cheerful, without noise"
    assert f"| {rule} | the base | 71% (63 to 78%) | 120 | 66% (55 to 76%) | no |" in text
    assert "| `demo` | collapsed answers | - | yes |" in section(text, "Alarms")
    assert "a rule, and no person's" in section(text, "Limits")
    assert "answers of up to 48 tokens" in text and "kl_coef: 0.1" in text
    assert "ollama create" in section(text, "Load it") and "ollama" in head_of(text)["tags"]
    assert str(tmp_path) not in text


def test_a_plain_adapter_without_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"r": 8, "lora_alpha": 16, "base_model_name_or_path": "org/base"}
    write_json(folder / "adapter_config.json", config)
    text = model_card(folder, "gguf", files=["model.gguf"], repo="ann/x")
    assert head_of(text)["base_model"] == "org/base"
    assert "how it was trained is not known here" in text
    assert section(text, "How it was made") == "The adapter has rank 8 and alpha 16."
    assert "llama-cli -m model.gguf" in text and "llama-cli -hf ann/x" in text
    assert "## Did it get better?" not in text and "No record of its training" in text


def test_damaged_files_are_no_obstacle(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"stage": 3, "config": [], "summary": "x"}))
    (run / "metrics.jsonl").write_text('{"alarm": "x"\n{"alarm": "y"}\nnull\n')
    (run / "eval/eval.json").write_text('{"candidates": 3, "judges": [{"results": 1}]}')
    assert "| `run` | y | - | no | - |" in model_card(run, "adapter")


def test_runs_that_name_one_another_in_a_circle(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        about = {"stage": "dpo", "config": {"init": str(tmp_path / other)}}
        write_json(tmp_path / name / "run.json", about)
    assert [facts.name for facts in lineage_of(tmp_path / "a")] == ["b", "a"]


def test_texts_of_people_can_not_change_the_layout(project: Project) -> None:
    title = "<script>alert(1)</script> | *x* [a](b)"
    (project.folder / "runs/0003-ppo/label.json").write_text(json.dumps({"title": title}))
    text = model_card(project.folder / "runs/0003-ppo", "adapter")
    assert "<script>" not in text and "\\<script\\>" in text


# ---- the base


def test_the_licence_is_read_from_the_bases_readme(tmp_path: Path) -> None:
    head = "---\nlicense: other\nlicense_name: special\nlicense_link: LICENSE\n---\nhello"
    (tmp_path / "README.md").write_text(head)
    found = base_facts("my-base", str(tmp_path))
    assert found.licence == "special" and found.hub_id == "" and found.name == "my-base"
    assert found.licence_head == {
        "license": "other",
        "license_name": "special",
        "license_link": "LICENSE",
    }
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    (tmp_path / "LICENSE").write_text("\n  Apache License\nVersion 2.0")
    found = base_facts("", str(tmp_path))
    assert found.licence == "" and found.licence_source == "LICENSE: Apache License"


def test_a_copy_in_the_hubs_cache_is_known_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--org--base-1b/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    found = base_facts(str(snapshot), str(snapshot))
    assert (found.hub_id, found.licence) == ("org/base-1b", "mit")
    # A base that is named by its id alone is looked for in the cache, not on the network.
    (tmp_path / "models--org--base-1b/refs").mkdir()
    (tmp_path / "models--org--base-1b/refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = base_facts("org/base-1b", "org/base-1b")
    assert (found.name, found.licence) == ("org/base-1b", "mit")


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("model /home/ann b/base", "model base"),
        (r"model C:\models\base", "model base"),
        ("reward of 0002-reward", "reward of 0002-reward"),
        ("function rewards.py:short", "function rewards.py:short"),
        ("model org/base", "model org/base"),
    ],
)
def test_names_lose_their_paths(text: str, without: str) -> None:
    assert without_paths(text) == without


# ---- how to load it


def code_of(text: str) -> str:
    found = re.search(r"^```python\n(.*?)^```$", section(text, "Load it"), re.M | re.S)
    assert found is not None
    return found[1]


def test_the_code_for_an_adapter_runs(
    tiny_base: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorarlhf.backbone.storage import save_role

    folder = tmp_path / "adapter"
    save_role(tiny, "policy", folder)
    tiny.tokenizer.save_pretrained(folder)
    tiny.causal.generation_config.save_pretrained(folder)
    code = code_of(model_card(folder, "adapter"))
    base = tmp_path / "base"  # without a chat template: the export has the one of the training
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").unlink()
    code = code.replace("FOLDER_OF_THE_BASE", str(base))
    code = code.replace("FOLDER_OR_REPOSITORY", str(folder)).replace("=256", "=4")
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out


def test_the_code_for_a_merged_model_runs(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = code_of(model_card(tmp_path, "merged"))
    code = code.replace("FOLDER_OR_REPOSITORY", str(tiny_base)).replace("=256", "=4")
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("/home/ann/mine/runs/0002-dpo.votes-2.jsonl", "12 preference pairs (the project's votes)"),
        ("mine/rounds/0001/votes-trl.jsonl", "12 preference pairs (the project's votes)"),
        (r"C:\Users\ann\pairs.csv", "12 preference pairs (pairs.csv)"),
        (
            "/home/ann/.cache/huggingface/hub/datasets--org--pairs/snapshots/abc/train.parquet",
            "12 preference pairs (the data set org/pairs)",
        ),
        (None, "12 preference pairs"),
    ],
)
def test_where_the_rows_are_from(data: str | None, said: str) -> None:
    facts = RunFacts(Path("run"), {"stage": "dpo", "config": {"data": data}}, {"rows": 12})
    assert data_in_words(facts) == said
    assert hub_datasets([facts]) == (["org/pairs"] if "org/pairs" in said else [])


@pytest.mark.parametrize("bits", [4, 8])
def test_the_code_names_the_quantisation(tmp_path: Path, bits: int) -> None:
    run = tmp_path / "run"
    run.mkdir()
    about = {"stage": "sft", "bits": bits, "base": "smollm2-135m", "compute_dtype": "float32"}
    write_json(run / "run.json", about)
    code = code_of(model_card(run, "adapter"))
    compile(code, "card", "exec")
    assert f"load_in_{bits}bit=True" in code and 'find_base("smollm2-135m")' in code
    assert 'dtype="float32",' in code and ("llm_int8_skip_modules" in code) == (bits == 4)
