"""One file per algorithm: its `Config`, and `loss(outputs, batch, distribution, config) -> (loss, metrics)`."""
