"""The settings of PPO: TRL's own configuration class with PPO's fields added."""

from dataclasses import dataclass, field, fields

from trl.trainer.base_config import _BaseConfig


def _field(default: float | int | bool | str | None, text: str):
    return field(default=default, metadata={"help": text})


# Fields of transformers' that a loop of updates has no use for. Whoever sets one is told.
UNUSED = (
    *("optim", "weight_decay", "lr_scheduler_type", "warmup_steps", "num_train_epochs"),
    *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
)


@dataclass
class PPOConfig(_BaseConfig):
    """Settings of `PPOTrainer`; everything else but `UNUSED` is TRL's and transformers' own.

    One update: `rollout_batch_size` prompts are answered once each; then `num_ppo_epochs` passes of
    `num_minibatches` optimizer steps each, `micro_batch_size` sequences in one forward.

    Raises:
        ValueError: sizes that do not divide, a number outside its range, or one of `UNUSED`.
    """

    updates: int = _field(40, "Number of updates (rollout and optimization)")
    rollout_batch_size: int = _field(16, "Prompts answered in one update")
    num_ppo_epochs: int = _field(4, "Passes over each rollout")
    num_minibatches: int = _field(1, "Optimizer steps in each pass")
    micro_batch_size: int = _field(8, "Sequences in one forward; memory only")
    max_prompt_tokens: int = _field(512, "Longer prompts are refused, not cut")
    max_new_tokens: int = _field(64, "Longest answer, in tokens")
    temperature: float = _field(1.0, "Of sampling, and of all log-probabilities")
    generation: str = _field("transformers", "Who samples: transformers, or a vllm server")
    vllm_server: str = _field("http://127.0.0.1:8000", "Address of that server")
    learning_rate: float = _field(3e-4, "Of the policy's adapter")
    value_learning_rate: float = _field(3e-4, "Of the value's adapter and head")
    kl_coef: float = _field(0.05, "Price of one nat of KL to the reference, a token")
    kl_target: float | None = _field(
        None, "Nats an answer that kl_coef is steered towards; None: kl_coef stays as it is"
    )
    kl_horizon: int = _field(
        32, "Episodes over which a KL far from kl_target changes kl_coef by a fifth"
    )
    kl_budget: float | None = _field(
        None, "Nats an answer on held-out prompts that end the training; the best inside is kept"
    )
    gamma: float = _field(1.0, "Discount of later rewards")
    gae_lambda: float = _field(0.95, "Bias against variance of the advantages")
    clip_range: float = _field(0.2, "How far the policy's ratio may leave 1")
    max_ratio: float | None = _field(10.0, "Mean ratio of a minibatch that is left out as a fluke")
    max_approx_kl: float | None = _field(
        None, "Nats a token that the policy may move in one update before its epochs end"
    )
    value_clip_range: float = _field(0.2, "How far values may move in one update")
    vf_coef: float = _field(0.1, "Weight of the value loss")
    value_adapter: bool = _field(True, "False: the value is only a head on the policy, for memory")
    policy_layers: int | None = _field(
        None, "Upper layers that the policy trains; None: two thirds of those with adapters"
    )
    value_layers: int | None = _field(
        None, "Upper layers that the value trains; None: a third of those with adapters"
    )
    critic_warmup: int = _field(2, "First updates in which only the value learns")
    missing_eos_penalty: float | None = _field(
        None, "Taken from the normalised score of an answer that does not end by itself"
    )
    score_clip: float | None = _field(None, "Largest normalised score, either way")
    normalize_scores: bool = _field(True, "Scores to mean 0, deviation 1 on reference answers")
    whiten_rewards: bool = _field(False, "Rewards of a rollout to deviation 1, their mean kept")
    linear_lr_decay: bool = _field(False, "Learning rates fall to 0 in a line")
    save_total_limit: int = _field(2, "Newest checkpoints that are kept")
    eval_steps: int = _field(10, "Updates between two measurements on held-out prompts")

    # Defaults of the base class that PPO wants otherwise.
    adam_epsilon: float = _field(1e-5, "Adam's epsilon (arXiv 2403.17031)")
    gradient_checkpointing: bool = _field(False, "Recompute activations: less memory, more time")
    logging_steps: float = _field(1, "Updates between two log lines")
    save_steps: float = _field(10, "Updates between two checkpoints")
    report_to: str = _field("none", "Where metrics go besides the log: none, wandb, ...")

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = False  # PPO computes in the backbone's dtype; TRL would refuse some CPUs
        defaults = {field.name: field.default for field in fields(self)}
        for name in UNUSED:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"PPO here does not use {name}: it has Adam at a constant learning_rate, and "
                    "updates, rollout_batch_size and micro_batch_size for the sizes"
                )
        super().__post_init__()
        self._check_ranges()
        self._check_sizes()

    def _check_ranges(self) -> None:
        for name in ("rollout_batch_size", "num_ppo_epochs", "num_minibatches", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, not {getattr(self, name)}")
        for name in ("policy_layers", "value_layers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, not {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature is above 0, not {self.temperature}: PPO must sample")
        if self.generation not in ("transformers", "vllm"):
            raise ValueError(f"generation is transformers or vllm, not {self.generation!r}")
        if self.max_ratio is not None and self.max_ratio <= 1:
            raise ValueError(f"max_ratio is above 1, not {self.max_ratio}")
        for name in ("kl_target", "kl_budget", "max_approx_kl"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is above 0 nats, not {getattr(self, name)}")
        if self.kl_target is not None and self.kl_coef <= 0:
            raise ValueError("kl_target multiplies kl_coef, so kl_coef must be above 0")
        if self.kl_target is not None and self.kl_horizon < self.rollout_batch_size:
            raise ValueError(
                f"kl_horizon ({self.kl_horizon}) must be at least rollout_batch_size "
                f"({self.rollout_batch_size}): raise kl_horizon"
            )

    def _check_sizes(self) -> None:
        if self.rollout_batch_size % self.num_minibatches:
            raise ValueError(
                f"rollout_batch_size ({self.rollout_batch_size}) must be a multiple of "
                f"num_minibatches ({self.num_minibatches})"
            )
        size = self.rollout_batch_size // self.num_minibatches
        self.micro_batch_size = min(self.micro_batch_size, size)
        if size % self.micro_batch_size:
            raise ValueError(
                f"a minibatch has {size} sequences, which micro_batch_size "
                f"({self.micro_batch_size}) must divide"
            )
