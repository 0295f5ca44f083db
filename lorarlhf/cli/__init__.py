"""The command line: every command, its options, and the checks before a training starts."""
