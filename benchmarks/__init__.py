"""Speed and learning, measured. Results lie in `benchmarks/results/`, each with its machine, commit and command."""
