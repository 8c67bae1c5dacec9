"""One run's life: its parts, its loop, its checkpoints and its folder."""
