"""Reading demonstrations, prompts and preferences from files."""

from lorarlhf.data.readers import (
    as_conversation,
    as_text,
    bundled,
    read_demonstrations,
    read_labelled,
    read_preferences,
    read_prompts,
    read_rows,
    split_by_prompt,
)
from lorarlhf.runtime.files import append_jsonl, write_jsonl

__all__ = [
    "append_jsonl",
    "as_conversation",
    "as_text",
    "bundled",
    "read_demonstrations",
    "read_labelled",
    "read_preferences",
    "read_prompts",
    "read_rows",
    "split_by_prompt",
    "write_jsonl",
]
