"""The settings of a run: their flags, their help, and presets of them."""
