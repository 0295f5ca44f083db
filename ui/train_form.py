"""The form of the Train page: the stages, their three settings that matter, and the rest folded.

The stages come from the stage table, which the command hands over: the pages stand beside it.
"""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorarlhf.evaluation.report_headline import stage_label
from lorarlhf.project.jobs import job_title
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError

MOST_IMPORTANT = (
    *("updates", "epochs", "steps", "kl_coef", "learning_rate", "beta", "holdout", "batch_size"),
)
"""In this order; the first three that a stage has stand on top."""
SHOWN = 3
HINTS = {
    "updates": "rounds of answering and learning; more of them take longer",
    "epochs": "how often all rows are learned from; 0 trains no adapter, where that is possible",
    "steps": "optimizer steps in each of its rounds",
    "kl_coef": "the price of moving away from the first policy; a higher one keeps it closer",
    "learning_rate": "how large a step is; halve it if the run becomes unstable",
    "beta": "how closely the policy keeps to where it started; a higher one keeps it closer",
    "beta of orpo": "how much the votes count beside the likelihood of the chosen answers",
    "holdout": "the share of the prompts that is kept apart to measure on",
    "batch_size": "rows in one step",
}
ALGORITHMS = {
    "rloo": "tune the policy against rewards, without a critic",
    "grpo": "tune the policy against rewards, by comparing the answers to one prompt",
}
"""Other algorithms of a stage that takes rewards, where the stage has a configuration for them."""
NEED_HELD_OUT = {"kl_budget", "eval_steps", "eval_kl_steps", "keep_best_by"}
"""PPO's settings that count only with held-out prompts (`--eval FILE`), which no page gives."""
LONGEST_VALUE = 200


@dataclass(frozen=True)
class Kind:
    """What can be started.

    Attributes:
        name: of the choice; stage: the command.
        summary: what it does.
        sets: settings that make it what it is.
        keys: the names of the settings that can be changed.
    """

    name: str
    stage: str
    summary: str
    sets: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its name for readers."""
        return stage_label(self.name)

    @property
    def on_top(self) -> list[str]:
        """The settings that matter most."""
        return [key for key in MOST_IMPORTANT if key in self.keys][:SHOWN]

    def words(self, settings: Mapping[str, Any]) -> list[str]:
        """The options of a command for what was typed into the form.

        Raises:
            UserError: there is no such setting, or its value is no single line.
        """
        words = [part for text in self.sets for part in ("--set", text)]
        for key, value in settings.items():
            text = str(value).strip()
            if key not in self.keys:
                raise UserError(f"{self.label} has no setting {key}. Reload the page.")
            if len(text) > LONGEST_VALUE or len(text.splitlines()) > 1:
                raise UserError(f"{key} is one line with up to {LONGEST_VALUE} characters.")
            if text:
                words += ["--set", f"{key}={text}"]
        return words

    def title(self, settings: Mapping[str, Any]) -> str:
        """A few words for lists: what it is, and what was changed."""
        changed = [f"{key}={str(value).strip()}" for key, value in settings.items()]
        changed = [text for text in changed if not text.endswith("=")]
        return job_title(self.label, changed)


def kinds_of(stages: Iterable[Stage]) -> dict[str, Kind]:
    """What can be started, by name: each stage, and the algorithms that it has besides its own."""
    found = {}
    for stage in stages:
        found[stage.name] = Kind(stage.name, stage.name, stage.summary, (), _keys(stage))
        for name, summary in ALGORITHMS.items():
            if name in stage.configs:
                sets = (f"algorithm={name}",)
                found[name] = Kind(name, stage.name, summary, sets, _keys(stage, name))
    return found


def _keys(stage: Stage, algorithm: str = "") -> tuple[str, ...]:
    return tuple(key for key in stage.keys_for(algorithm) if key not in NEED_HELD_OUT)


def form_html(kinds: Mapping[str, Kind]) -> str:
    """The choice of what to start, and a group of fields for each."""
    options = "".join(
        f'<option value="{name}">{html.escape(f"{kind.label}: {kind.summary}")}</option>'
        for name, kind in kinds.items()
    )
    groups = "".join(_group(kind, first=not n) for n, kind in enumerate(kinds.values()))
    return (
        '<div class="field"><label for="train-kind">What to train</label>'
        f'<select id="train-kind">{options}</select></div>{groups}'
    )


def _group(kind: Kind, first: bool) -> str:
    top, fixed = kind.on_top, {text.partition("=")[0] for text in kind.sets}
    rest = [key for key in kind.keys if key not in top and key not in fixed]
    return (
        f'<fieldset data-kind="{kind.name}"{"" if first else " hidden"}>'
        f"<legend>Settings of {html.escape(kind.label)}</legend>"
        f'<div class="top">{"".join(_field(kind, key) for key in top)}</div>'
        f"<details><summary>More settings ({len(rest)})</summary>"
        f'<div class="rest">{"".join(_field(kind, key) for key in rest)}</div></details></fieldset>'
    )


def _field(kind: Kind, key: str) -> str:
    place, hint = f"train-{kind.name}-{key}", HINTS.get(f"{key} of {kind.name}", HINTS.get(key, ""))
    said = f'<span class="faint" id="{place}-hint">{html.escape(hint)}</span>' if hint else ""
    described = f' aria-describedby="{place}-hint"' if hint else ""
    return (
        f'<div class="field"><label for="{place}">{key}</label><input id="{place}" name="{key}" '
        f'autocomplete="off" spellcheck="false" maxlength="{LONGEST_VALUE}"{described}>{said}</div>'
    )
