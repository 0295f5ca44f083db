"""A run's policy in forms that other programs read, each checked in such a program."""
