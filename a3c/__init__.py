"""A3C: each worker process computes gradients from its own unrolls, and the learner applies each one as it comes."""
