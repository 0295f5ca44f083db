"""Where a score comes from: Python functions, simulated raters, the trained reward role."""
