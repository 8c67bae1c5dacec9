"""What both beasts share: the store, the learner, the loop, and the words they speak (`data.py`)."""
