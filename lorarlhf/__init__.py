"""lorarlhf: RLHF with LoRA on one 4-bit base model, on one consumer GPU or none.

The names below are loaded when first used, so that `import lorarlhf` stays instant and needs no
torch.
"""

from importlib import import_module
from typing import Any

from lorarlhf.runtime import quiet as _quiet

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "lorarlhf.backbone.base",
    "PPOConfig": "lorarlhf.ppo.config",
    "PPOTrainer": "lorarlhf.ppo.trainer",
    "UserError": "lorarlhf.runtime.errors",
    "generate": "lorarlhf.backbone.generation",
    "train_direct": "lorarlhf.stages.dpo_orpo",
    "train_ditto": "lorarlhf.stages.ditto",
    "train_iterated_dpo": "lorarlhf.stages.iterated_dpo",
    "train_kto": "lorarlhf.stages.kto",
    "train_ppo": "lorarlhf.stages.ppo",
    "train_reward_model": "lorarlhf.stages.reward_model",
    "train_sft": "lorarlhf.stages.sft",
}
__all__ = sorted(_HOMES)

_quiet.private_by_default()
_quiet.silence_known_messages()


def __getattr__(name: str) -> Any:
    """Load one of the public names from its module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lorarlhf' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
