"""Whether it got better: win rates, reports on a reward role, learning curves."""
