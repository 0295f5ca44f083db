"""A run's figures as short texts, the same in the terminal and on the pages."""

from lorarlhf.project.run_list import RUNNING, RunInfo, Source


def results_in_words(run: RunInfo) -> list[str]:
    """How a run went, its most telling figure first; of one that has not ended how far it is."""
    figures, found = run.results, list[str]()
    if "step" in figures:
        found.append(f"step {figures['step']:.0f}{_of(run)}")
    if "heldout_accuracy" in figures:
        of = f" of {figures['n']:,.0f}" if "n" in figures else ""
        found.append(f"{figures['heldout_accuracy']:.0%}{of} held-out pairs right")
    if "eval_score" in figures:
        found.append(f"held-out score {figures['eval_score']:.3g}")
    elif "score" in figures:
        found.append(f"score {figures['score']:.3g}")
    if "kl_per_sequence" in figures:
        found.append(f"KL {figures['kl_per_sequence']:.2f}")
    if "accuracy_last" in figures:
        found.append(f"{figures['accuracy_last']:.0%} of the last pairs right")
    if "margin_last" in figures:
        found.append(f"margin {figures['margin_last']:.3g}")
    if "loss_last" in figures:
        found.append(f"loss {figures['loss_last']:.3g}")
    return found


def _of(run: RunInfo) -> str:
    """How many updates there will be, of a run that is still going."""
    updates = run.config.get("updates")
    return f" of {updates}" if run.state == RUNNING and isinstance(updates, int) else ""


def source_in_words(source: Source) -> str:
    """For example `policy of 0001-sft`; of a run outside the project the path."""
    return f"{'policy' if source.option == 'init' else 'reward'} of {source.name}"


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min` or `2 h 5 min`; "" if it is not known."""
    if seconds is None:
        return ""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def size(count: float) -> str:
    """A number of bytes, for example `12 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
