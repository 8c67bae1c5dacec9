"""The built-in models, one in each file, whose name is its `--model` name. The contract is in `models/base.py`."""
