"""The parser of the command line: every command and its options. It imports nothing heavy."""

import argparse
from typing import Any, NoReturn

from lorarlhf import __version__
from lorarlhf.backbone.memory_plan import COUNTED
from lorarlhf.cli.compare_options import add_compare_options
from lorarlhf.cli.eval_options import add_eval_options
from lorarlhf.cli.export_options import add_export_options
from lorarlhf.cli.project_options import add_jobs_options, add_runs_options, add_votes_options
from lorarlhf.cli.request import NO_RUN
from lorarlhf.cli.round_options import add_queue_option, add_round_options
from lorarlhf.cli.serve import add_serve_options
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.stages.table import STAGES

BACKBONE_KEYS = (
    "base, seed, bits, adapter_layers, lora_rank, lora_alpha, lora_dropout, device, compute_dtype, "
    "chat_template, thinking"
)
# Settings of the commands that train nothing, for --help; a test compares them with settings.py.
COMMAND_KEYS = {
    "score": "plain",
    "chat": "max_prompt_tokens, plain",
    "eval": "max_prompt_tokens, plain",
    "export": "plain",
    "serve": "max_prompt_tokens, plain",
    "ui": "max_prompt_tokens, plain",
}
# What cli/report.py writes; a test compares it.
REPORTS = ("raters", "tastes", "reward", "ranking")
SUMMARIES = {
    "demo": "the complete loop on the small base, with a simulated rater",
    "new": "make a project: a folder with settings, prompts, votes and runs",
    **{stage.name: stage.summary for stage in STAGES.values()},
    "round": "votes in, a new policy out: trained, evaluated, with a card to keep or drop it",
    "chat": "talk to the base or to a trained policy",
    "score": "the reward role's scores of given answers",
    "eval": "compare runs and best of n with the base: did it get better, what was forgotten?",
    "compare-methods": "train several methods on the same votes for the same time, in one table",
    "export": "a policy for other programs: PEFT, merged, GGUF, Ollama; checked in that program",
    "votes": "a project's votes: counts, files in and out, a backup",
    "raters": "who votes in a project, and who can log in",
    "report": "what a project's votes look like and prefer, and how sure that is",
    "runs": "a project's runs: a table, what started from what, titles, dropping, deleting",
    "jobs": "what waits and runs as a job: list it, stop it, let it go on",
    "recipe": "short scripts for each stage, to read, copy and change",
    "estimate": "peak memory of every stage, before anything is loaded; of a project also the time",
    "doctor": "check machine and installation, and say how to fix problems",
    "serve": "an OpenAI-compatible endpoint: a project's runs answer in other programs",
    "ui": "the pages in the browser: rate answers, talk to models, compare them",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one paragraph, like the package's other errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}. See `{self.prog} --help`.")


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="lorarlhf",
        description="RLHF with LoRA on one 4-bit base model, one stage a command.",
        epilog="`lorarlhf COMMAND --help` explains a command. Start with `lorarlhf demo`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lorarlhf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    made = {name: _command(commands, name) for name in SUMMARIES}
    _demo(made["demo"])
    _new(made["new"])
    for stage in STAGES.values():
        _training(stage, made[stage.name])
    add_round_options(made["round"])
    _score(made["score"])
    _chat(made["chat"])
    add_eval_options(made["eval"])
    _set_option(made["eval"])
    add_compare_options(made["compare-methods"])
    add_export_options(made["export"])
    _set_option(made["export"])
    _estimate(made["estimate"])
    add_votes_options(made["votes"])
    _raters(made["raters"])
    _report(made["report"])
    add_runs_options(made["runs"])
    add_jobs_options(made["jobs"])
    _recipe(made["recipe"])
    add_serve_options(made["serve"])
    _set_option(made["serve"])
    _ui(made["ui"])
    return parser


def _command(commands: Any, name: str) -> Parser:
    keys = STAGES[name].keys if name in STAGES else COMMAND_KEYS.get(name)
    settings = f"Settings for --set: {keys}; of the base: {BACKBONE_KEYS}" if keys else None
    if settings and name in STAGES:
        settings += "; and every field of TRL's config as trl.FIELD"
    sub = commands.add_parser(
        name,
        help=SUMMARIES[name],
        description=f"{SUMMARIES[name][0].upper()}{SUMMARIES[name][1:]}.",
        epilog=f"{settings}." if settings else None,
        allow_abbrev=False,
    )
    sub.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    sub.add_argument(
        "--debug", action="store_true", help="tracebacks, and every warning of every library"
    )
    return sub


def _demo(sub: Parser) -> None:
    sub.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/demo)")
    sub.add_argument("--rater", help="who votes: cheerful, brief or plain")
    sub.add_argument("--noise", type=float, help="share of wrong votes (default: 0.1)")
    sub.add_argument("--pairs", type=int, help="votes, at most (default: 250)")
    sub.add_argument("--updates", type=int, help="updates of PPO (default: 16)")
    sub.add_argument("--seed", type=int, help="seed of all random numbers (default: 0)")
    sub.add_argument("--base", help="smollm2-135m, a folder, a GGUF file or a Hugging Face id")
    sub.add_argument("--chat-template", metavar="FILE", help="a Jinja file, if the base has none")
    sub.add_argument("--bits", type=int, help="4, 8 or 16 (default: 4)")
    sub.add_argument("--adapter-layers", help="upper-half, all or a number of layers")
    sub.add_argument("--quick", action="store_true", help="a minute: shows only that it works")
    sub.add_argument("--full", action="store_true", help="longer answers, 24 updates")
    sub.add_argument("--resume", action="store_true", help="continue after the last finished step")


def _new(sub: Parser) -> None:
    sub.add_argument("folder", metavar="FOLDER", help="the project's folder, made here")
    text = "smollm2-135m, a folder, a GGUF file or an id"
    sub.add_argument("--base", default="smollm2-135m", help=text)
    sub.add_argument("--bits", type=int, choices=(4, 8, 16), default=4, help="4, 8 or 16")
    sub.add_argument("--adapter-layers", default="upper-half", help="upper-half, all or a number")
    sub.add_argument("--prompts", metavar="FILE", help="prompts to begin with")
    sub.add_argument("--chat-template", metavar="FILE", help="a Jinja file, if the base has none")


def _training(stage: Stage, sub: Parser) -> None:
    text = "a project's folder; provides the options that are left out"
    sub.add_argument("project", metavar="PROJECT", nargs="?", help=text)
    if stage.rewarded:
        sub.add_argument(stage.data_option, dest="data", metavar="FILE", help=stage.rows)
        sub.add_argument("--reward", metavar="RUN", help="a run with a reward role")
        sub.add_argument(
            "--reward-function",
            metavar="FILE.py:NAME",
            action="append",
            default=[],
            help="a Python function; may be repeated, the scores are added",
        )
        sub.add_argument(
            "--reward-model",
            metavar="NAME[#LABEL]",
            action="append",
            default=[],
            help="a sequence classification model (folder or Hugging Face id); may be repeated",
        )
        sub.add_argument("--eval", metavar="FILE", help="held-out prompts to measure on")
        sub.add_argument(
            "--judge-function",
            metavar="FILE.py:NAME",
            action="append",
            default=[],
            help="judges the held-out answers, without being a reward; may be repeated",
        )
    else:
        text = f"{stage.rows}: .jsonl, .json, .csv or .parquet"
        sub.add_argument(stage.data_option, metavar="FILE", help=text)
    if stage.rounds:
        text = "prompts that rounds of new answers (--set rounds=N) are for"
        sub.add_argument("--prompts", metavar="FILE", help=text)
        text = "a run with the reward role that labels these answers"
        sub.add_argument("--reward", metavar="RUN", help=text)
    if stage.hold_out and not stage.rewarded:
        what = "pairs to measure the accuracy on" if stage.name == "reward" else "held-out rows"
        sub.add_argument("--eval", metavar="FILE", help=what)
    trains_policy = stage.trains == "policy"
    init = "start from its policy" if trains_policy else "base and adapter shape of that run"
    init += f"; {NO_RUN}: from none, though the project has one" if stage.starts_from_sft else ""
    sub.add_argument("--init", metavar="RUN", help=f"an earlier run: {init}")
    sub.add_argument("--out", metavar="DIR", help=f"folder of the run (default: runs/{stage.name})")
    sub.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    sub.add_argument("--base", help="smollm2-135m (the default), a folder, a GGUF file or an id")
    sub.add_argument("--seed", type=int, help="seed of all random numbers (default: 0)")
    sub.add_argument("--config", metavar="FILE.yaml", help="settings, one `key: value` a line")
    text = "train at most so long; what is trained by then is kept"
    sub.add_argument("--minutes", type=float, metavar="M", help=text)
    text = "start even if the memory seems too small"
    sub.add_argument("--no-memory-check", action="store_true", help=text)
    add_queue_option(sub)
    _set_option(sub)


def _set_option(sub: Parser) -> None:
    text = "one setting; may be repeated; overrides --config"
    sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=text)


def _score(sub: Parser) -> None:
    sub.add_argument("run", metavar="RUN", help="a run with a reward role, or a project")
    sub.add_argument("--prompt", metavar="TEXT", help="the prompt that was answered")
    text = "the answer to score; may be repeated"
    sub.add_argument("--answer", metavar="TEXT", action="append", default=[], help=text)
    sub.add_argument("--file", metavar="FILE", help="rows of prompt and completion instead")
    text = "also what each word adds to the score"
    sub.add_argument("--words", action="store_true", help=text)
    sub.add_argument("--base", help="load this base instead of the one that the run names")
    _set_option(sub)


def _chat(sub: Parser) -> None:
    text = "a run with a policy, for example runs/demo, or a project; optional with --base"
    sub.add_argument("run", metavar="RUN", nargs="?", help=text)
    sub.add_argument("--prompt", metavar="TEXT", help="answer this one prompt and exit")
    sub.add_argument("--system", metavar="TEXT", help="instructions before the conversation")
    sub.add_argument("--role", choices=("base", "policy", "reference"), help="who answers")
    sub.add_argument("--base", help="load this base instead of the one that the run names")
    text = "answer N times; a reward role picks the best"
    sub.add_argument("--best-of", type=int, metavar="N", default=1, help=text)
    text = "whose reward role picks (default: that of RUN or of the project)"
    sub.add_argument("--reward", metavar="RUN", help=text)
    sub.add_argument("--seed", type=int, help="makes answers repeatable")
    sub.add_argument(
        "--temperature", type=float, default=0.7, help="0: always the likeliest word (default: 0.7)"
    )
    sub.add_argument(
        "--max-new-tokens", type=int, default=256, help="longest answer (default: 256)"
    )
    _set_option(sub)


def _estimate(sub: Parser) -> None:
    sub.add_argument("--base", default="smollm2-135m", help="a base, or a config.json")
    sub.add_argument("--stage", choices=COUNTED, help="only this stage; rloo is also grpo")
    text = "memory and time of --stage on this project's own rows, as the command would start it"
    sub.add_argument("--project", metavar="PROJECT", help=text)
    text = "with --project: one setting of the stage; may be repeated"
    sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=text)
    sub.add_argument(
        "--card", type=float, metavar="GB", help="show what fits on a card of this size"
    )
    sub.add_argument("--device", choices=("cuda", "cpu"), help="(default: cuda)")
    sub.add_argument("--bits", type=int, choices=(4, 8, 16), help="(default: 4)")
    sub.add_argument(
        "--compute-dtype", choices=("bfloat16", "float16", "float32"), help="(default: bfloat16)"
    )
    sub.add_argument("--adapter-layers", default="upper-half", help="upper-half, all or a number")
    sub.add_argument("--lora-rank", type=int, help="(default: 16)")
    sub.add_argument("--micro-batch-size", type=int, help="rows in a forward (default: 4)")
    sub.add_argument("--rollout-batch-size", type=int, help="prompts an update (default: 16)")
    sub.add_argument("--prompt-tokens", type=int, help="of the longest prompt (default: 256)")
    sub.add_argument("--answer-tokens", type=int, help="of the longest answer (default: 256)")
    sub.add_argument("--policy-layers", type=int, help="of PPO (default: two thirds of the layers)")
    sub.add_argument("--value-layers", type=int, help="of PPO (default: one third of the layers)")
    for name, text in (
        ("--gradient-checkpointing", "recompute activations: less memory, more time"),
        ("--value-adapter", "in PPO the value has its own adapter (default: yes)"),
        ("--reference", "the reference has its own adapter, as after SFT (default: yes)"),
    ):
        sub.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)


def _raters(sub: Parser) -> None:
    sub.add_argument("project", metavar="PROJECT", help="the project's folder")
    one = sub.add_mutually_exclusive_group()
    one.add_argument("--add", metavar="NAME", help="a rater who can log in, or a new password")
    one.add_argument("--change", metavar="NAME", help="gives a rater another --role")
    one.add_argument("--remove", metavar="NAME", help="ends the logins; the votes stay")
    text = "an owner may change settings, start comparisons and import votes (default: rater)"
    sub.add_argument("--role", choices=("owner", "rater"), help=text)
    text = "--add takes the password from a line of standard input"
    sub.add_argument("--password-stdin", action="store_true", help=text)


def _report(sub: Parser) -> None:
    text = (
        "raters: what each rater's votes look like; tastes: what the votes prefer, and how surely; "
        "reward: how well the reward model predicts votes, and whether more of them would help; "
        "ranking: the models that were compared, the best first"
    )
    sub.add_argument("kind", choices=REPORTS, help=text)
    text = "the project's folder; for tastes and reward also a run with a reward role"
    sub.add_argument("project", metavar="PROJECT", help=text)
    sub.add_argument("--rater", metavar="NAME", help="raters: only this rater's votes")
    text = "raters: votes for training, of blind comparisons, or all (default: train)"
    sub.add_argument("--purpose", choices=("train", "compare", "all"), help=text)
    text = "tastes: two texts of your own that differ in what you care about"
    sub.add_argument("--axis", nargs=2, metavar=("TEXT", "TEXT"), help=text)
    text = "reward: also what a change of the look adds to a score; this loads the base"
    sub.add_argument("--cosmetic", action="store_const", const=True, help=text)
    text = "reward: also how it orders the preference pairs of this file (several times: of each)"
    sub.add_argument("--pairs", metavar="FILE", action="append", help=text)


def _recipe(sub: Parser) -> None:
    text = "list: their names and what they do; copy: one of them into a file of yours"
    sub.add_argument("action", choices=("list", "copy"), help=text)
    sub.add_argument("name", metavar="NAME", nargs="?", help="copy: which one, for example 3_dpo")
    text = "copy: the new file, or a folder (default: recipes/NAME.py)"
    sub.add_argument("to", metavar="TO", nargs="?", help=text)


def _ui(sub: Parser) -> None:
    text = "the project's folder (default: the one here)"
    sub.add_argument("project", metavar="PROJECT", nargs="?", help=text)
    sub.add_argument("--port", type=int, default=7860, help="0: any free one (default: 7860)")
    sub.add_argument("--no-browser", action="store_true", help="do not open a browser")
    sub.add_argument("--no-model", action="store_true", help="only rate answers that exist already")
    sub.add_argument("--rater", metavar="NAME", default="me", help="who votes (default: me)")
    text = "allow others on this network; raters then log in (see `lorarlhf raters`)"
    sub.add_argument("--lan", action="store_true", help=text)
    text = "a name under which a proxy or a tailnet serves the pages; raters then log in"
    sub.add_argument("--allowed-host", metavar="NAME", action="append", default=[], help=text)
    text = "the path under which a proxy serves the pages; raters then log in"
    sub.add_argument("--root-path", metavar="/PATH", default="", help=text)
    sub.add_argument("--base", help="the base of a new project")
    _set_option(sub)
