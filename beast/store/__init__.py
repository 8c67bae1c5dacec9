"""The shared memory of a run: unrolls on their way to the learner, weights on their way back, and who holds which part."""
