"""Proximal Policy Optimization from human feedback, on the shared backbone."""
