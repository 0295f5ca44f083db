"""The training stages that TRL's own trainers run, each on the shared backbone."""
