"""What TRL's trainers need on the shared backbone: arguments, checkpoints, even steps, retries."""
