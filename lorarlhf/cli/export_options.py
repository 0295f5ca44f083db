"""The options of the command `export`. It imports nothing heavy."""

from argparse import ArgumentParser

from lorarlhf.cli.push_options import add_push_options

# What lorarlhf/export/exporting.py makes; a test compares them.
FORMS = ("adapter", "merged", "gguf", "ollama")
QUANTS = ("f16", "q8_0", "q4_k_m")


def add_export_options(sub: ArgumentParser) -> None:
    """Add what `export` makes, and what it checks it with."""
    text = "a run with a policy, or a project: its newest policy"
    sub.add_argument("run", metavar="RUN", help=text)
    sub.add_argument("--to", metavar="FOLDER", required=True, help="the new folder")
    text = (
        "adapter: a PEFT folder; merged: one model in 16 bit; gguf: a file for llama.cpp; ollama: "
        "that file with a Modelfile"
    )
    sub.add_argument("--as", dest="form", choices=FORMS, required=True, help=text)
    text = "of a GGUF file: f16 (16 bit), q8_0 (8 bit, the default) or q4_k_m (4 bit)"
    sub.add_argument("--quant", choices=QUANTS, help=text)
    text = "ollama: a system prompt for every conversation"
    sub.add_argument("--system", metavar="TEXT", default="", help=text)
    text = (
        "held-out prompts to check it with (default: 12 of the project's, or of the bundled ones)"
    )
    sub.add_argument("--prompts", metavar="FILE", help=text)
    text = "whose reward role scores the answers (default: that of RUN or of its project)"
    sub.add_argument("--reward", metavar="RUN", help=text)
    text = "keep what the check refuses, in FOLDER-refused"
    sub.add_argument("--keep-refused", action="store_true", help=text)
    add_push_options(sub)
    sub.add_argument("--base", help="load this base instead of the one that the run names")
