"""Memory of this machine: total, free, and the peak of this process."""

import sys
from pathlib import Path


def peak_rss_mb() -> float:
    """Peak memory of this process so far, in MB (10^6 bytes)."""
    if sys.platform == "win32":
        import psutil

        return round(psutil.Process().memory_info().peak_wset / 1e6, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def peak_card_mb() -> dict[str, float]:
    """`{"peak_card_mb": ...}`, the peak memory on cards so far, in MB; empty without one."""
    torch = sys.modules.get("torch")  # a process that has not imported it has nothing on a card
    for cards in (torch.cuda, torch.xpu) if torch else ():
        if cards.is_initialized():
            peaks = map(cards.max_memory_reserved, range(cards.device_count()))
            return {"peak_card_mb": round(sum(peaks) / 1e6, 1)}
    return {}


CGROUP = Path("/sys/fs/cgroup")


def container_limit() -> tuple[int, int] | None:
    """(limit, used) in bytes of this process's control group; None if it has no limit."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (CGROUP / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    cache = int(stat[stat.index("inactive_file") + 1]) if "inactive_file" in stat else 0
    return (int(limit), max(0, used - cache)) if limit.isdecimal() else None


def main_memory() -> tuple[int, int]:
    """(free, total) bytes of this machine, or of the container in which this process runs."""
    import psutil

    here = psutil.virtual_memory()
    if (limit := container_limit()) is None:
        return here.available, here.total
    return min(here.available, limit[0] - limit[1]), min(here.total, limit[0])
