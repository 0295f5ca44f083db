"""Sources of scores: Python functions, simulated raters, classifiers, and the reward role."""
