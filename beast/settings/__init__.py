"""A run's settings, its presets, and the flags that are made of them."""
