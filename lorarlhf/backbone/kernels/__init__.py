"""Faster ways to compute what a family's own layers compute, with the same results."""
