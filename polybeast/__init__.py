"""PolyBeast: environment workers only step; one inference process batches their forwards dynamically."""
