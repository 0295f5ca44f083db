"""The TRL side of `ppo_vs_trl.py`: TRL 1.12.0 from a separate folder, with the same figures.

In TRL, policy, value and reward are three models, each with its own base in 4 bit. The reference is
the policy with its adapter switched off. The phases of an update are separated by two functions
that TRL calls: `batch_generation` once per update, and `masked_whiten` at the end of the scoring.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from _memory import has_card, held_mb, interpreter_mb, peak_mb
from transformers import TrainerCallback

ASKED = json.loads(sys.argv[1])
sys.path.insert(0, ASKED["trl"])
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


class Clock(TrainerCallback):
    """Measures the seconds of each phase of each update."""

    def __init__(self, module: Any) -> None:
        self.rows: list[dict[str, float]] = []
        generation, whiten = module.batch_generation, module.masked_whiten

        def generate(*words: Any, **named: Any) -> Any:
            self.rows.append({"begun": time.perf_counter()})
            result = generation(*words, **named)
            self.rows[-1]["generated"] = time.perf_counter()
            return result

        def whitened(*words: Any, **named: Any) -> Any:
            result = whiten(*words, **named)
            self.rows[-1]["scored"] = time.perf_counter()
            return result

        module.batch_generation, module.masked_whiten = generate, whitened

    def on_step_end(self, *words: Any, **named: Any) -> None:
        """Note the end of an update."""
        self.rows[-1]["ended"] = time.perf_counter()

    def medians(self) -> dict[str, float]:
        """Medians by phase, without the first update."""
        spans = {
            "seconds": ("begun", "ended"),
            "generate": ("begun", "generated"),
            "score": ("generated", "scored"),
            "update": ("scored", "ended"),
        }
        rows = self.rows[1:]
        return {k: median(row[b] - row[a] for row in rows) for k, (a, b) in spans.items()}


def load_models(tokenizer: Any) -> tuple[Any, Any, Any]:
    """Policy, value and reward, each with its own base."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        BitsAndBytesConfig,
    )

    from lorarlhf.backbone.devices import best_device, compute_dtype_for

    work = Path(ASKED["work"])
    base = (work / "base.txt").read_text(encoding="utf-8")
    # Emulated bfloat16 takes many times as long as float32, for TRL too.
    dtype = compute_dtype_for(best_device(4))
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    options: dict[str, Any] = {"quantization_config": four_bit, "dtype": dtype}

    def scorer() -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **options)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    policy = AutoModelForCausalLM.from_pretrained(base, **options)
    value = get_peft_model(scorer(), LoraConfig(task_type="SEQ_CLS", **LORA))
    reward = PeftModel.from_pretrained(scorer(), work / "reward-all").eval()
    return policy, value, reward


def settings(folder: str) -> Any:
    """The same work as on the lorarlhf side."""
    import torch
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        output_dir=folder,
        seed=ASKED["seed"],
        total_episodes=ASKED["batch"] * (ASKED["updates"] + 1),
        per_device_train_batch_size=ASKED["micro"],
        gradient_accumulation_steps=ASKED["batch"] // ASKED["micro"],
        num_mini_batches=1,
        num_ppo_epochs=4,
        local_rollout_forward_batch_size=ASKED["batch"],
        response_length=ASKED["max_new_tokens"],
        temperature=1.0,
        stop_token="eos",
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        kl_coef=0.05,
        num_sample_generations=0,
        bf16=False,  # bf16 would cast the norms, and sampling runs outside of autocast
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def prompts(tokenizer: Any) -> Any:
    """The bundled prompts as a data set of token ids."""
    from datasets import Dataset

    from lorarlhf.data.readers import as_conversation, bundled, read_prompts

    conversations = [as_conversation(row["prompt"]) for row in read_prompts(bundled("prompts"))]
    options = {"add_generation_prompt": True, "return_dict": False}
    ids = [tokenizer.apply_chat_template(c, **options) for c in conversations]
    return Dataset.from_list([{"input_ids": row} for row in ids])


def main() -> None:
    """Train, measure and save the policy."""
    import bitsandbytes  # noqa: F401
    import torch
    import trl
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.experimental.ppo import PPOTrainer, ppo_trainer

    assert trl.__version__ == "1.12.0", trl.__version__
    interpreter = interpreter_mb()
    context = interpreter if has_card() else 0.0  # `held_mb` does not include it
    work = Path(ASKED["work"])
    tokenizer = AutoTokenizer.from_pretrained(
        (work / "base.txt").read_text(encoding="utf-8"), padding_side="left"
    )
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = "<|endoftext|>"
    torch.manual_seed(ASKED["seed"])
    policy, value, reward = load_models(tokenizer)
    loaded = context + held_mb()
    clock = Clock(ppo_trainer)
    with TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=settings(folder),
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=reward,
            value_model=value,
            train_dataset=prompts(tokenizer),
            callbacks=[clock],
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        )
        trainer.train()
        trainer.policy_model.save_pretrained(work / "policy-trl")
    figures = clock.medians()
    figures |= {"interpreter_mb": interpreter, "loaded_mb": loaded, "peak_mb": context + peak_mb()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
