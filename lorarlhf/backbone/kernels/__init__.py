"""Faster versions of what a family's own layers compute, with the same results."""
