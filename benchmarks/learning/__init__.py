"""What is learned, beside published scores: rows of tasks, run one by one, and a page of their curves."""
