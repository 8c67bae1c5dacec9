"""Ten minutes that say everything about a machine with a GPU: `python -m benchmarks.gpu`; docs/gpu.md says how to read it.

`__main__` is the command, `parts` says what is measured, `part` runs one part in a process of its own, `conductor` gives each
its time and keeps its figures, `verdict` says what they mean. Only parts import torch or anything else that may be missing
or hang.
"""
