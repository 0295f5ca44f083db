"""Preferences on disk: the store of votes (SQLite), without torch."""
