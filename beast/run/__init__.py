"""The life of a run: its parts, its loop, its checkpoints and its folder."""
