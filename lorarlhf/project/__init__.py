"""A project: its folder, its settings, and which run started from which."""
