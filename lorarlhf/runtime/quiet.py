"""Switch telemetry off, and hide messages of libraries that nobody can act on.

Each hidden message is listed with the reason; all others are shown. Set `LORARLHF_DEBUG=1` (or
`--debug` on the command line) to see them all.
"""

import logging
import os
import sys
import warnings

# (logger name, part of the message, why nobody can act on it)
_LOG_LINES = [
    (
        "bitsandbytes.backends.cpu.ops",
        "Failed to load CPU gemm_4bit_forward",
        "an optional kernel from a model hub; the built-in one is used and is correct",
    ),
    (
        "bitsandbytes.autograd._functions",
        "MatMul8bitLt: inputs will be cast",
        "how 8-bit products work; the user chose 8 bit",
    ),
    (
        "transformers.trainer",
        "The tokenizer has new PAD/BOS/EOS tokens",
        "TRL aligns the model's configs with the tokenizer, as intended",
    ),
    (
        "transformers.trainer_utils",
        "do not match the ones in the `trainer_state.json`",
        "a resumed run reports changed settings itself",
    ),
    (
        "accelerate.utils.other",
        "Detected kernel version",
        "a hint about old Linux kernels and many processes; one process is used",
    ),
    (
        "trl.experimental.orpo.orpo_trainer",
        "When using DPODataCollatorWithPadding",
        "TRL says that it sets a field of its own config",
    ),
]

# (category, start of the message as a regular expression, why nobody can act on it)
_WARNINGS: list[tuple[type[Warning], str, str]] = [
    (
        UserWarning,
        r"You are trying to modify a model with PEFT for a second time",
        "sharing one base between several adapters is what this package does",
    ),
    (
        UserWarning,
        r"'pin_memory' argument is set as true but no accelerator is found",
        "the trainers' default; harmless without a GPU",
    ),
    (
        UserWarning,
        r"SSR mode is not supported with multi-page apps",
        "Gradio says this about several mounted pages even if it is switched off",
    ),
    (
        FutureWarning,
        r"`(is_)?gradient_checkpointing(_kwargs|_enable|_disable)?` is deprecated",
        "TRL 1.16's own configs still use transformers' old name",
    ),
]


def private_by_default() -> None:
    """Switch telemetry off, and set how libraries use memory and threads, unless the user has.

    Must run before the libraries are imported.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # transformers, datasets, TRL
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("WANDB_CONSOLE", "off")  # it would send what is printed: answers, too
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # ORPOTrainer's notice at import
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no fork warnings
    # On the CPU, oneDNN caches compiled products for the last 1024 shapes, which take half a
    # gigabyte with chat answers of all lengths. A smaller cache costs no measurable time.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    # Threads that wait spin before they sleep. Beside another process that computes, the usual
    # 300,000 rounds take the core from threads that have work: an update takes three times as long
    # and not twice (benchmarks/busy_machine.py). Alone a thousand is as fast.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # On a card, packed batches have other sizes each time, and fixed pieces of memory would not be
    # used again.
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if sys.platform == "linux" and not any(name in os.environ for name in names):
        os.environ[names[0]] = "expandable_segments:True"
    hub = sys.modules.get("huggingface_hub.constants")  # imported earlier, with the old value
    if hub is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1":
        hub.__dict__["HF_HUB_DISABLE_TELEMETRY"] = True


class _DropLines(logging.Filter):
    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def filter(self, record: logging.LogRecord) -> bool:
        return self.part not in record.getMessage()


def silence_known_messages() -> None:
    """Hide the messages listed above. Must run before the libraries are imported."""
    if os.environ.get("LORARLHF_DEBUG") == "1":
        return
    for name, part, _reason in _LOG_LINES:
        logging.getLogger(name).addFilter(_DropLines(part))
    for category, message, _reason in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


def hide_library_bars() -> None:
    """Switch off the libraries' progress bars, because the stages show their own."""
    if os.environ.get("LORARLHF_DEBUG") == "1":
        return
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()  # "Loading weights"
    datasets.disable_progress_bars()  # "Tokenizing"
