"""A run's policy in forms that other programs read, each checked by the program that will run it."""
