"""MonoBeast: each actor process steps its environments and runs their policy on the CPU."""
