"""PolyBeast: environment workers only step; one place batches their forwards dynamically."""
