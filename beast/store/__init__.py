"""Shared memory of a run, and who holds what: unrolls on their way to the learner, weights on their way back."""
