"""One base model in memory, and the four LoRA roles that share it."""
