"""A3C: each worker computes gradients from unrolls of its own, and the learner applies each as it comes."""
