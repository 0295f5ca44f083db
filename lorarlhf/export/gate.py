"""The gate: does the export, in the program that will run it, say what the policy says?

Three mistakes break most exports without an error, and each has its own words here: a prompt that
is rendered otherwise (`wrong chat template`), a prompt with two beginning tokens (`doubled BOS`),
and an answer that nothing ends (`lost stop token`). What is left is how far the numbers are apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.export.difference import Difference
from lorarlhf.export.go_template import first_difference
from lorarlhf.export.original import Original
from lorarlhf.rewards.role import score_answers

Row = dict[str, Any]


@dataclass(frozen=True)
class Limit:
    """What an export keeps to: the KL at most, in nats a token, and the agreement at least."""

    kl: float
    agreement: float


LIMITS = {
    "adapter": Limit(0.02, 0.9),
    "merged": Limit(0.02, 0.9),
    "f16": Limit(0.02, 0.9),
    "q8_0": Limit(0.03, 0.9),
    "q4_k_m": Limit(0.25, 0.7),
}
"""By the form, and for GGUF files by the quantisation. docs/export.md says why."""


@dataclass
class Checked:
    """What the gate found.

    Attributes:
        engine: the program that ran the export.
        problems: a sentence each; none if the export holds.
        difference: from the original; None where the prompts are already others.
        answers: the export's own answers; ended: whether each ended by itself.
        scores: the reward role's mean score of the original's answers and of the export's; None
            without a reward role.
    """

    engine: str
    problems: list[str] = field(default_factory=list)
    difference: Difference | None = None
    answers: list[str] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    scores: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether the export may be used."""
        return not self.problems

    def as_json(self) -> Row:
        """For a file and for --json."""
        found: Row = {"engine": self.engine, "holds": self.holds, "problems": self.problems}
        if self.difference is not None:
            found["difference"] = self.difference.as_json()
        if self.scores is not None:
            found["reward"] = {"original": self.scores[0], "export": self.scores[1]}
        return found

    def in_words(self) -> str:
        """Sentences for a person."""
        lines = [f"Not as trained: {problem}." for problem in self.problems]
        if self.difference is not None:
            lines.append(f"In {self.engine}: {self.difference.in_words()}.")
        if self.scores is not None:
            lines.append(
                f"The reward role gives its answers {self.scores[1]:.3f} on average, and the "
                f"original's {self.scores[0]:.3f}."
            )
        return "\n".join(lines)


def check_prompts(
    backbone: Backbone, wanted: Sequence[list[int]], found: Sequence[list[int]], engine: str
) -> list[str]:
    """How the prompts that the engine reads differ from the training's; at most a sentence."""
    different = [(a, b) for a, b in zip(wanted, found, strict=True) if a != b]
    if not different:
        return []
    tokenizer, (ours, theirs) = backbone.tokenizer, different[0]
    bos, count = tokenizer.bos_token_id, f"{len(different)} of {len(wanted)} prompts"
    if bos is not None and theirs[:2] == [bos, bos] and ours[:2] != [bos, bos]:
        return [f"doubled BOS: {count} begin with two {tokenizer.bos_token} in {engine}"]
    if bos is not None and theirs == [bos, *ours]:
        return [
            f"added BOS: {count} begin with {tokenizer.bos_token} in {engine}, and did not here"
        ]
    if [bos, *theirs] == ours:
        return [f"lost BOS: {count} began with {tokenizer.bos_token} here, and do not in {engine}"]
    texts = tokenizer.decode(ours), tokenizer.decode(theirs)
    if texts[0] == texts[1]:
        return [f"other tokens: {count} are the same text in {engine}, split otherwise"]
    return [
        f"wrong chat template: {count} are rendered otherwise in {engine}: "
        f"{first_difference(*texts)}"
    ]


def check_stops(backbone: Backbone, ending: Sequence[int], engine: str) -> list[str]:
    """Which tokens end an answer here and not in the engine; at most a sentence.

    Args:
        ending: the tokens that end an answer there.
    """
    lost = [token for token in backbone.stop_ids if token not in ending]
    if not lost:
        return []
    words = ", ".join(backbone.tokenizer.convert_ids_to_tokens(lost))
    return [f"lost stop token: {engine} does not end an answer at {words}"]


def check_ends(original: Original, ended: Sequence[bool]) -> list[str]:
    """Whether answers end there at all, if they do here; at most a sentence."""
    here = sum(answer.ended for answer in original.answers)
    if here * 2 < len(ended) or any(ended):
        return []
    return [f"lost stop token: {here} of {len(ended)} answers end here, and none there"]


def check_difference(form: str, found: Difference) -> list[str]:
    """What is over the limits of a form; a sentence each."""
    limit, problems = LIMITS[form], []
    if not found.kl <= limit.kl:  # not a number is no success
        problems.append(f"the KL is {found.kl:.4f} nats a token, and the limit {limit.kl}")
    if not found.agreement >= limit.agreement:
        problems.append(
            f"the likeliest token is the same at {found.agreement:.1%} of the places, and at "
            f"{limit.agreement:.0%} it has to be"
        )
    return problems


def score(
    backbone: Backbone, original: Original, answers: Sequence[str]
) -> tuple[float, float] | None:
    """The reward role's mean scores of the original's answers and of the export's."""
    if original.scores is None:
        return None
    found = score_answers(backbone, original.prompts, answers)
    return sum(original.scores) / len(found), sum(found) / len(found)
