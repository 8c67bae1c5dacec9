"""Processes, the memory that they share, and the machine they run on; nothing of reinforcement learning."""
