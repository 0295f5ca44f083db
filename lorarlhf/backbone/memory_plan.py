"""What a stage runs, as far as its memory depends on it: models, sequences, lengths, the device."""

from dataclasses import dataclass
from typing import Literal

# ---- what a stage needs


@dataclass(frozen=True)
class StageMemory:
    """How the memory of a stage is counted.

    Attributes:
        adapters: the roles that have one.
        optional: those of them that the plan can leave out.
        trained: the roles whose adapters train.
        frozen_heads, trained_heads: number of scalar heads.
        sequences: in each row of a micro-batch; 2 for pairs.
        logits: `none` for a scalar head; `chunked` for PPO, which holds `LOGIT_ROWS` rows at once;
            `fused` for TRL's fused LM head; `full` where all logits are held.
        rollouts: whether it is PPO's own loop: it samples, keeps the states below the layers that
            train, and trains only some of the layers with adapters. The others are TRL's trainers.
        generates: whether transformers samples all answers of an update at once (RLOO, GRPO).
    """

    adapters: tuple[str, ...]
    optional: tuple[str, ...] = ()
    trained: tuple[str, ...] = ("policy",)
    frozen_heads: int = 0
    trained_heads: int = 0
    sequences: int = 1
    logits: Literal["none", "chunked", "fused", "full"] = "fused"
    rollouts: bool = False
    generates: bool = False

    @property
    def samples(self) -> bool:
        """Whether answers are sampled to be learned from."""
        return self.rollouts or self.generates


STAGE_MEMORY = {
    "sft": StageMemory(adapters=("policy",)),
    "reward": StageMemory(
        adapters=("policy", "reward"),
        trained=("reward",),
        trained_heads=1,
        sequences=2,
        logits="none",
    ),
    "dpo": StageMemory(adapters=("policy", "reference"), sequences=2),
    # One sequence in the forward that trains. The KL completions of the default loss go through
    # forwards of their own, without gradients, which keep nothing (TRL 1.16).
    "kto": StageMemory(adapters=("policy", "reference")),
    "orpo": StageMemory(adapters=("policy",), sequences=2, logits="full"),
    # That of its rounds of DPO; sampling and the supervised part need less.
    "ditto": StageMemory(adapters=("policy", "reference"), sequences=2),
    "ppo": StageMemory(
        adapters=("policy", "reference", "reward", "value"),
        optional=("reference", "value"),
        trained=("policy", "value"),
        frozen_heads=1,
        trained_heads=1,
        logits="chunked",
        rollouts=True,
    ),
    # GRPO needs the same.
    "rloo": StageMemory(adapters=("policy", "reference", "reward"), frozen_heads=1, generates=True),
}
COUNTED = tuple(STAGE_MEMORY)
STAGES = tuple(name for name in COUNTED if name != "rloo")
"""Those that are commands; RLOO and GRPO are `ppo` with another algorithm."""


@dataclass(frozen=True)
class Machine:
    """What a device adds to the counts.

    Attributes:
        runtime: bytes of the process with its libraries, or of the card's context.
        heap: the memory that activations and weights for sampling take, holes included, divided by
            their own size.
        measured: whether these come from measurements.
    """

    runtime: int
    heap: float
    measured: bool


MACHINES = {
    "cpu": Machine(runtime=590_000_000, heap=1.65, measured=True),
    "cuda": Machine(runtime=600_000_000, heap=1.15, measured=False),
}


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        stage: a key of `STAGE_MEMORY`.
        adapter_layers: number of layers with adapters; None means the upper half.
        micro_batch_size: rows in one forward.
        prompt_tokens, answer_tokens: of the longest row.
        float_bytes: of the compute dtype.
        gradient_checkpointing: None means the stage's default, which is on for TRL's on a card,
            but for RLOO and GRPO.
        reference, value_adapter: whether PPO has an adapter for these roles.
        policy_layers, value_layers: as in `PPOConfig`.
    """

    stage: str
    bits: int = 4
    adapter_layers: int | None = None
    lora_rank: int = 16
    micro_batch_size: int = 4
    rollout_batch_size: int = 16
    prompt_tokens: int = 256
    answer_tokens: int = 256
    float_bytes: int = 2
    device: str = "cuda"
    gradient_checkpointing: bool | None = None
    reference: bool = True
    value_adapter: bool = True
    policy_layers: int | None = None
    value_layers: int | None = None

    @property
    def needs(self) -> StageMemory:
        """How the stage's memory is counted."""
        return STAGE_MEMORY[self.stage]

    @property
    def tokens(self) -> int:
        """Tokens in one forward, at most."""
        rows = self.micro_batch_size * self.needs.sequences
        return rows * (self.prompt_tokens + self.answer_tokens)

    @property
    def answered(self) -> int:
        """Answer tokens in one forward."""
        return self.tokens * self.answer_tokens // (self.prompt_tokens + self.answer_tokens)

    @property
    def checkpointed(self) -> bool:
        """Whether activations are recomputed."""
        if self.gradient_checkpointing is None:
            return not self.needs.samples and self.device == "cuda"
        return self.gradient_checkpointing

    def has(self, role: str) -> bool:
        """Whether a role has an adapter of its own."""
        left_out = {"reference": not self.reference, "value": not self.value_adapter}
        if role in self.needs.optional and left_out[role]:
            return False
        return role in self.needs.adapters
