"""Short files that change one thing each; `tests/test_examples.py` trains with every one of them."""
