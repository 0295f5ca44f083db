"""A run exported as merged and as GGUF files: how near each is, and whether it still wins.

    python benchmarks/export_gates.py runs/demo --out runs/export_gates.json
    python benchmarks/export_gates.py runs/demo --quick     # few prompts, short answers

Each form is made as by `lorarlhf export`, except that the gate refuses nothing here. KL (nats a
token) and agreement are along the run's own likeliest answers. The win rate is that of the form's
answers against the base's, both the likeliest ones, by the rater's rule without noise (that of the
demo by default) and by the run's reward role, beside the win rate of the run itself.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.data.readers import as_conversation, bundled, read_prompts
from lorarlhf.evaluation.win_rate import judge_pairs, win_rate
from lorarlhf.export import gate
from lorarlhf.export.exporting import Wish, export
from lorarlhf.export.gate import Limit
from lorarlhf.export.original import read_original
from lorarlhf.project.lineage import read_source_run
from lorarlhf.rewards.raters import RATERS, Answer, Rater
from lorarlhf.rewards.role import score_answers
from lorarlhf.runtime.files import read_json, write_json

FORMS = (("merged", "f16"), ("gguf", "f16"), ("gguf", "q8_0"), ("gguf", "q4_k_m"))
PROMPTS, TOKENS = 60, 48
QUICK = (6, 16)


def main() -> None:
    """Measure every form; print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run with a policy")
    parser.add_argument("--rater", choices=RATERS, help="(default: the run's own, or cheerful)")
    parser.add_argument("--quick", action="store_true", help="six prompts, answers of 16 tokens")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    count, tokens = QUICK if args.quick else (PROMPTS, TOKENS)
    backbone = load(args.run)
    rows = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))][:count]
    prompts = [as_conversation(row) for row in rows]
    original = read_original(backbone, prompts, tokens)
    base = generate(backbone, prompts, role="base", max_new_tokens=tokens, temperature=0)
    judged = Judged(backbone, prompts, [*map(Answer.of, base)], Rater(rater_of(args), noise=0))
    told: dict[str, Any] = {
        "run": str(args.run),
        "prompts": count,
        "tokens": tokens,
        "places": original.from_base.places,
        "the base": figures(original.from_base),
        "the run": {"win_rate": judged.wins([*map(Answer.of, original.answers)])},
    }
    unlimited = Limit(float("inf"), 0.0)
    gate.LIMITS.update(dict.fromkeys(gate.LIMITS, unlimited))
    with tempfile.TemporaryDirectory() as scratch:
        for form, quant in FORMS:
            name = form if form == "merged" else f"{form} {quant}"
            found = export(backbone, original, Wish(form, Path(scratch) / name, quant))
            assert found.checked.difference is not None
            size = sum(file.stat().st_size for file in (Path(scratch) / name).glob("*"))
            told[name] = figures(found.checked.difference) | {
                "megabytes": round(size / 1e6),
                "problems": found.checked.problems,
                "win_rate": judged.wins([*map(Answer, found.checked.answers, found.checked.ended)]),
                "before": found.record["merge"]["before"],
            }
            print(json.dumps({name: told[name]}), flush=True)
    print(json.dumps(told, indent=2))
    if args.out is not None:
        write_json(args.out, told)


def load(run: Path) -> Backbone:
    """The run's base with its policy, and with its reward role if it has one."""
    source = read_source_run(run, "policy", "RUN")
    layers = source.settings.get("adapter_layers", "upper-half")
    backbone = Backbone.load(source.loads, adapter_layers=layers)
    backbone.load_role("policy", source.adapter)
    if (run / "adapters" / "reward" / "adapter_config.json").is_file():
        backbone.load_role("reward", run / "adapters" / "reward")
    return backbone


def rater_of(args: argparse.Namespace) -> str:
    """The rater that is named, or who voted in the demo."""
    config = read_json(args.run / "run.json").get("config") or {}
    return args.rater or config.get("rater") or "cheerful"


def figures(found: Any) -> dict[str, Any]:
    """The figures of a difference, rounded."""
    return {
        "kl": round(found.kl, 5),
        "agreement": round(found.agreement, 4),
        "logprobs": round(found.logprobs, 5),
        "same_answers": found.same_answers,
    }


class Judged:
    """Answers against the base's to the same prompts."""

    def __init__(
        self, backbone: Backbone, prompts: list[Any], base: list[Answer], rater: Rater
    ) -> None:
        self.backbone, self.prompts, self.base, self.rater = backbone, prompts, base, rater

    def wins(self, answers: list[Answer]) -> dict[str, Any]:
        """Win rates by the rater's rule and by the reward role."""
        outcomes = {self.rater.name: judge_pairs(self.rater, answers, self.base, seed=0)}
        if self.backbone.has("reward"):
            texts = [[one.text for one in side] for side in (answers, self.base)]
            scores = [score_answers(self.backbone, self.prompts, some) for some in texts]
            outcomes["reward"] = [(a > b) - (a < b) for a, b in zip(*scores, strict=True)]
        found = {name: win_rate(some) for name, some in outcomes.items()}
        return {name: {"rate": one.rate, "ci95": one.ci95} for name, one in found.items()}


if __name__ == "__main__":
    main()
