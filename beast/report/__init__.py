"""What a run reports: log files, TensorBoard events, the console and a timeline; and how files are written atomically."""
