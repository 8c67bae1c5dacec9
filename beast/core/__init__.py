"""Words and maths: torch, NumPy and Gymnasium's spaces alone; no file, no process, no shared memory."""
