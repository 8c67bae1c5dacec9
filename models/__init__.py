"""One model per file; the file's name is its `--model` name. The contract is in `models/base.py`."""
