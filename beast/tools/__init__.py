"""Commands beside training: evaluation, videos, profiles, the search for fast settings."""
