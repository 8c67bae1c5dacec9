"""The commands beside training: evaluation, videos, profiles, the search for fast settings, curves."""
