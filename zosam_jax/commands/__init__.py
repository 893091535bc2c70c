"""One file for each command `zosam X`: its options, a dataclass, and its work, `run`.

What options, files and data do wrong raises ValueError or OSError inside, with a sentence in which
the command then ends (`refusal`).
"""
