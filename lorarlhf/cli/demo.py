"""The complete loop on the small base: sample, rate, reward role, PPO, blind comparison, report.

Each step saves its result in the run's folder, and `--resume` continues at the first step without
one. A simulated rater replaces the person, so the loop can be measured.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import encode_prompts, generate_encoded
from lorarlhf.cli.demo_options import DemoOptions, prepare_folder, resume_command
from lorarlhf.cli.demo_size import (
    BATCH_SIZE,
    BEST_OF,
    DEFAULT,
    FULL,
    QUICK,
    SAMPLES,
    Size,
    read_size,
    seconds_per_step,
    time_notice,
    write_size,
)
from lorarlhf.data.readers import bundled, read_prompts, read_rows
from lorarlhf.evaluation.comparison import as_text, judge, judge_best_of
from lorarlhf.evaluation.report import write_report
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.rewards.best_of import best_places, kl_bound
from lorarlhf.rewards.raters import Answer, Rater, vote_pairs
from lorarlhf.rewards.role import score_answers
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_json, write_jsonl
from lorarlhf.runtime.interrupt import stopping_what_follows
from lorarlhf.runtime.lock import hold
from lorarlhf.runtime.machine import peak_rss_mb
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import drop_later_rows, keep_rows
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf.stages.conversations import prompt_conversations
from lorarlhf.stages.ppo import train_ppo
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from lorarlhf.stages.trl.arguments import Placement, trl_arguments

Row = dict[str, Any]


# Settings of the demo's PPO; measured by benchmarks/demo_seeds.py.
PPO_SETTINGS: Row = {
    "learning_rate": 5e-4,
    "value_learning_rate": 5e-4,
    "kl_coef": 0.1,
    "temperature": 0.7,
    "critic_warmup": 2,
    "rollout_batch_size": 16,
    "micro_batch_size": 8,
    "save_steps": 1,
    "gradient_checkpointing": False,
}
# Lists and endings come late in an answer; friendly words are there from the start.
MAX_NEW_TOKENS = {"cheerful": 48, "brief": 64, "plain": 64}
QUICK_SETTINGS: Row = {"max_new_tokens": 12, "rollout_batch_size": 4}
IN_USE = "Wait until that demo ends, or name another folder with --out."


def run_demo(options: DemoOptions, log: Callable[[str], None] = log_to_stderr) -> Row:
    """Run the loop; returns what it wrote to `summary.json`.

    Raises:
        UserError: the rater is unknown, the folder holds something else, or the options changed on
            resume.
        KeyboardInterrupt: after noting in `run.json` that the run was stopped.
    """
    Rater.named(options.rater)  # an unknown one is refused before there is a folder
    with hold(Path(options.out), IN_USE):
        options = prepare_folder(options, log)
        rater = Rater.named(options.rater, noise=options.noise, seed=options.seed)
        demo = _Demo(options, rater, log)
        try:
            return demo.run_all()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            demo.run.finish("stopped" if stopped else "failed")
            if stopped:
                log(f"Stopped. To resume where it ended:\n  {resume_command(options)}")
            raise


def _chat(row: Row) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}]


def _advance(bar: tqdm, before: int, done: int) -> None:
    bar.update(before + done - bar.n)


class _Demo:
    """One run of the loop: the folder, the rater and the backbone that its steps share."""

    def __init__(self, options: DemoOptions, rater: Rater, log: Callable[[str], None]) -> None:
        self.options, self.rater, self.log = options, rater, log
        self.out = Path(options.out)
        spent = read_json(self.out / "spent.json")  # by earlier processes of this run
        self.seconds: dict[str, float] = spent.get("seconds", {})
        self.peak_rss_mb: float = spent.get("peak_rss_mb", 0.0)
        settings = {name: value for name, value in asdict(options).items() if name != "resume"}
        self.run = Run(self.out, "demo", settings)
        self.prompts = read_prompts(bundled("prompts"))
        heldout = read_prompts(bundled("prompts_heldout"))
        self.heldout = heldout[:6] if options.quick else heldout
        self.pairs = min(options.pairs, 16) if options.quick else options.pairs
        self.ppo = PPO_SETTINGS | {"max_new_tokens": MAX_NEW_TOKENS[rater.name]}
        self.ppo |= QUICK_SETTINGS if options.quick else {}

    def run_all(self) -> Row:
        """The steps, in order."""
        with self._timed("load"):
            self.backbone = self._load()
            size = self._size()
        self.prompts = self.prompts[: size.prompts]
        self.ppo |= {"updates": size.updates, "num_minibatches": size.minibatches}
        self.ppo["max_new_tokens"] = size.tokens(self.ppo["max_new_tokens"])
        with self._timed("sample"):
            answers = self._sample()
        with self._timed("rate"):
            votes = self._rate(answers)
        with self._timed("reward"):
            reward = self._reward(votes)
        with self._timed("ppo"):
            ppo = self._ppo()
        with self._timed("judge"):
            verdict = self._judge()
        return self._finish(votes, reward, ppo, verdict)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = self.seconds.get(step, 0.0) + time.perf_counter() - started
            self.seconds[step] = round(spent, 1)
            self.peak_rss_mb = max(self.peak_rss_mb, peak_rss_mb())
            spent_so_far = {"seconds": self.seconds, "peak_rss_mb": self.peak_rss_mb}
            write_json(self.out / "spent.json", spent_so_far)

    # ---- steps

    def _load(self) -> Backbone:
        options = self.options
        backbone = Backbone.load(
            options.base,
            bits=options.bits,
            adapter_layers=options.adapter_layers,
            chat_template=options.chat_template,
            seed=options.seed,
            log=self.log,
        )
        self.run.base(backbone)
        self.log(
            f"Base: {options.base} in {options.bits} bit, "
            f"{backbone.footprint.bytes() / 1e6:.0f} MB, held in "
            f"memory once; adapters on its upper {backbone.adapter_layers} layers make it policy, "
            "reference, reward and value."
        )
        return backbone

    def _size(self) -> Size:
        """The size of a resumed run as it was; of a new one by the options, after a measurement."""
        options, size = self.options, read_size(self.out)
        if options.quick:
            size = replace(QUICK, updates=min(options.updates or QUICK.updates, QUICK.updates))
        if size is None:
            size = FULL if options.full else DEFAULT
            size = replace(size, updates=options.updates or size.updates)
            chats = [_chat(row) for row in self.prompts[:BATCH_SIZE]]
            step = seconds_per_step(self.backbone, encode_prompts(self.backbone, chats, 1024))
            longest = self.ppo["max_new_tokens"]
            self.log(time_notice(size, step, longest, len(self.heldout)))
        write_size(self.out, size)
        return size

    def _answers(
        self, name: str, rows: list[Row], role: str, seed: int, samples: int = SAMPLES
    ) -> list[list[Answer]]:
        """Answers of a role, some to each prompt, kept in NAME.jsonl: made once, then read."""
        path = self.out / f"{name}.jsonl"
        if not path.exists():
            made: list[Row] = [{"prompt": row["prompt"], "answers": []} for row in rows]
            bar = tqdm(total=samples * len(rows), desc=name.replace("_", " "))
            encoded = encode_prompts(self.backbone, [_chat(row) for row in rows], 1024)
            for sample in range(samples):
                with self.backbone.role(role):
                    completions = generate_encoded(
                        self.backbone,
                        encoded,
                        max_new_tokens=self.ppo["max_new_tokens"],
                        temperature=self.ppo["temperature"],
                        batch_size=BATCH_SIZE,
                        seed=seed + sample,
                        progress=partial(_advance, bar, sample * len(rows)),
                    )
                for row, c in zip(made, completions, strict=True):
                    row["answers"].append(vars(Answer.of(c)))
            bar.close()
            write_jsonl(path, made)
        return [[Answer(**a) for a in row["answers"]] for _, row in read_rows(path)]

    def _sample(self) -> list[list[Answer]]:
        self.log(f"1. The base answers {len(self.prompts)} everyday prompts, {SAMPLES} times each.")
        answers = self._answers("answers", self.prompts, "base", 1000 * self.options.seed)
        self._heldout_base()
        return answers

    def _heldout_base(self) -> list[list[Answer]]:
        return self._answers("heldout_base", self.heldout, "base", 1000 * self.options.seed + 500)

    def _rate(self, answers: list[list[Answer]]) -> list[Row]:
        self.log(
            f"2. A simulated rater compares the two answers. It is `{self.rater.name}`: "
            f"{self.rater.sentence} {self.options.noise:.0%} of its votes are wrong on purpose."
        )
        votes = self._pairs(self.prompts, answers, noise=True)
        ties = len(answers) - len(votes)
        votes = votes[: self.pairs]
        if not votes:
            raise UserError(
                f"The rater {self.rater.name} could not tell any of {len(answers)} pairs apart: "
                "the answers are too short or too alike for its rule. Take another --rater."
            )
        write_jsonl(self.out / "preferences.jsonl", votes)
        self.log(f"   {len(votes)} votes kept ({ties} of {len(answers)} pairs were ties).")
        return votes

    def _pairs(self, rows: list[Row], answers: list[list[Answer]], noise: bool) -> list[Row]:
        """The rater's votes, each with its name; ties are left out."""
        prompts = [row["prompt"] for row in rows]
        first, second = zip(*answers, strict=True)
        votes = vote_pairs(self.rater, prompts, first, second, noise=noise)
        return [vote | {"rater": self.rater.name} for vote in votes]

    def _reward(self, votes: list[Row]) -> Row:
        done = read_json(self.out / "reward.json")
        if done:
            self.backbone.load_role("reward", self.out / "adapters" / "reward")
            return done
        self.log(
            "3. The reward role learns from the votes: a linear fit on the base's hidden states."
        )
        # A killed run may have left some.
        keep_rows(self.out / "metrics.jsonl", lambda row: row.get("stage") == "ppo")
        # In none of three seeds did training on top of the fit help on votes that it had not seen.
        settings = RewardSettings(epochs=0.0)
        heldout = self._pairs(self.heldout, self._heldout_base(), noise=False)
        summary = train_reward_model(self.backbone, votes, self.run, settings, eval_rows=heldout)
        write_json(self.out / "reward.json", summary)
        self.log(
            f"   It agrees with the rule on {summary['heldout_accuracy']:.0%} of "
            f"{summary['n']} pairs of prompts it has never seen (chance: 50%)."
        )
        return summary

    def _ppo(self) -> Row:
        done = read_json(self.out / "ppo.json")
        if done:
            self.backbone.load_role("policy", self.out / "adapters" / "policy")
            return done
        self.log(
            f"4. PPO: in each of {self.ppo['updates']} updates the policy answers "
            f"{self.ppo['rollout_batch_size']} prompts, the reward role scores them, and the "
            "policy moves towards what scored well, while staying near the base (KL)."
        )
        if self.options.resume:
            drop_later_rows(self.out)
        args = trl_arguments(PPOConfig, Placement.of(self.backbone, self.run), self.ppo, {})
        rows = prompt_conversations(self.prompts, plain=False)
        with stopping_what_follows():
            summary = train_ppo(
                self.backbone, rows, self.run, args, resume=self.options.resume, samples=False
            )
            write_json(self.out / "ppo.json", summary)
        return summary

    def _judge(self) -> Row:
        self.log(
            f"5. Blind comparison: tuned against base on {len(self.heldout)} prompts that neither "
            "has seen, judged by the rule without noise, sides shuffled; and the best of "
            f"{BEST_OF} of the base's answers against base."
        )
        seed = 1000 * self.options.seed + 700
        tuned = self._answers("heldout_tuned", self.heldout, "policy", seed)
        before = [answer for row in self._heldout_base() for answer in row]
        after = [answer for row in tuned for answer in row]
        prompts = [row["prompt"] for row in self.heldout for _ in range(SAMPLES)]
        found, rows = judge(self.rater, prompts, before, after, self.options.seed)
        write_jsonl(self.out / "samples.jsonl", rows[::SAMPLES])  # the first of each prompt
        picked = [answer for answer in self._best_of() for _ in range(SAMPLES)]
        best = judge_best_of(self.rater, prompts, before, picked, self.options.seed)
        return found | {"best_of_n": {"n": BEST_OF, "kl_bound": kl_bound(BEST_OF)} | best}

    def _best_of(self) -> list[Answer]:
        """For each held-out prompt the one of the base's answers that the reward role picks.

        These answers are not among those that they are compared with.
        """
        seed = 1000 * self.options.seed + 900
        candidates = self._answers("heldout_best_of", self.heldout, "base", seed, BEST_OF)
        chats = [_chat(row) for row in self.heldout for _ in range(BEST_OF)]
        with self.backbone.dequantised():
            texts = [answer.text for row in candidates for answer in row]
            scores = score_answers(self.backbone, chats, texts)
        best = best_places(scores, BEST_OF)
        return [row[place] for row, place in zip(candidates, best, strict=True)]

    # ---- the end

    def _finish(self, votes: list[Row], reward: Row, ppo: Row, verdict: Row) -> Row:
        lengths = {key: verdict.pop(key) for key in ("mean_length_before", "mean_length_after")}
        base = self.backbone.footprint
        asked = ("base", "bits", "rater", "noise", "seed")
        summary = {name: getattr(self.options, name) for name in asked} | {
            "adapter_layers": self.backbone.adapter_layers,
            "pairs": len(votes),
            "reward_model": reward,
            "ppo": ppo | lengths,
            **verdict,
            "backbone": {"copies": base.copies(), "bytes": base.bytes()},
            "seconds": self.seconds | {"total": round(sum(self.seconds.values()), 1)},
            "settings": self.ppo,
        }
        summary["peak_rss_mb"] = max(self.peak_rss_mb, peak_rss_mb())
        self.run.finish("done", summary)
        write_json(self.out / "summary.json", summary)
        write_report(self.out)
        samples = [row for _, row in read_rows(self.out / "samples.jsonl")]
        self.log(as_text(summary, samples, str(self.out / "report.html")))
        return summary
