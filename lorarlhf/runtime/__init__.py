"""What all other folders use: errors, files, run folders, checkpoints, distributed, the machine."""
