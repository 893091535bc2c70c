"""One file for each command `zosam X`: its options, a dataclass, and its work, `run`."""
