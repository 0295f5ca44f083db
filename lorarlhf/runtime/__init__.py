"""What everything stands on: errors, files, run folders, checkpoints, processes, the machine."""
