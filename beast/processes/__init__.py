"""Processes, the memory that they share, and the machine that they run on; nothing of reinforcement learning."""
