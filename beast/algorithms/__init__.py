"""One file per algorithm: its `Config`, and `loss(outputs, batch, distribution, config) -> (loss, metrics)`.

A `Config` whose settings change in a run has a method `at(steps) -> Config`, which gives those for the next update.
"""
