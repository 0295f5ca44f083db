"""What each importer makes of a small file in the real shape: rows in, votes out, and the rest.

    .venv/bin/python benchmarks/importers.py

The files in tests/data/imports were written for this project in the shapes that the programs
export. Each is imported into a new store, and once more, which has to add nothing.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from lorarlhf.data.file_formats import read_rows
from lorarlhf.preferences.exports import EXPORTS
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.merge import merge_votes
from lorarlhf.preferences.merge_candidates import merge_candidates
from lorarlhf.preferences.store import Store

FILES = Path(__file__).parents[1] / "tests/data/imports"
SHAPES = {
    "open_webui.json": "Open WebUI, feedback",
    "sillytavern.jsonl": "SillyTavern, chat",
    "text_generation_webui.json": "text-generation-webui, chat",
    "label_studio.json": "Label Studio, pairwise JSON",
    "openassistant_trees.jsonl": "OpenAssistant, trees",
    "openassistant_messages.jsonl": "OpenAssistant, messages",
    "ultrafeedback.jsonl": "UltraFeedback, with ratings",
    "ultrafeedback_binarized.jsonl": "UltraFeedback, binarised",
    "distilabel_ratings.jsonl": "distilabel, ratings",
    "lmsys_conversations.jsonl": "LMSYS, conversations",
    "arena_140k.jsonl": "LMArena, 140k",
    "arena_table.csv": "LMSYS, Kaggle's table",
    "argilla.jsonl": "Argilla 2",
}


def main() -> None:
    """Print a Markdown table."""
    names = ("shape", "rows", "votes", "to rate", "pairs", "KTO rows", "added again", "left out")
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for file, shape in SHAPES.items():
        print(f"| {shape} | {' | '.join(map(str, measure(FILES / file)))} |")


def measure(file: Path) -> tuple[int | str, ...]:
    """The other columns of the table."""
    rows = _rows(file)
    found = read_votes(file)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "votes.sqlite")
        added = merge_votes(store, found.votes).added
        to_rate = merge_candidates(store, found.candidates).added
        again = merge_votes(store, found.votes).added
        again += merge_candidates(store, found.candidates).added
        votes = store.votes()
        pairs, labels = (len(EXPORTS[form](votes).rows) for form in ("trl", "kto"))
        store.close()
    return rows, added, to_rate, pairs, labels, again, "; ".join(found.reasons()) or "nothing"


def _rows(file: Path) -> int:
    """Rows of the file; of a chat in one object, its turns."""
    rows = [row for _, row in read_rows(file)]
    return len(rows[0]["internal"]) if "internal" in rows[0] else len(rows)


if __name__ == "__main__":
    main()
