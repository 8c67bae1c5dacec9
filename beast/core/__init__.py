"""Terms and maths: only torch, NumPy and Gymnasium's spaces; no file, no process, no shared memory."""
