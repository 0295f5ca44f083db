"""The tiny random base of the tests: small, and with all that a real one has."""

from pathlib import Path
from typing import Any

SPECIALS = ["<pad>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 384  # 256 bytes, the special tokens, and the most frequent pairs

# ChatML without a system prompt of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Small enough for a test, and with all that a real base has: grouped heads, special tokens.
TINY_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    # Larger than usual, so that the answers of random weights differ from uniform noise.
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}


def tiny_tokenizer(vocabulary: int = VOCABULARY, eos: str = "<|im_end|>") -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from lorarlhf.data.readers import bundled

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIALS + [eos] * (eos not in SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(bundled("prompts.jsonl"))], trainer)
    pad, *others = SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        additional_special_tokens=[token for token in others if token != eos],
        chat_template=CHAT_TEMPLATE,
    )


def write_base(
    folder: Path,
    seed: int = 0,
    family: str = "llama",
    vocabulary: int = VOCABULARY,
    eos: str = "<|im_end|>",
    **changes: Any,
) -> Path:
    """Write a random base with its tokenizer; the same weights come from the same seed.

    Args:
        family: a model type of transformers.
        vocabulary: size of the tokenizer; with a few thousand its answers are whole words, some of
            which the simulated raters like.
        eos: the tokenizer's end-of-text token; the chat template ends turns with <|im_end|>.
        changes: fields of its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizer(vocabulary, eos)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **(TINY_SIZES | changes),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
