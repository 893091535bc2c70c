"""The command line's work: one sparse training run, or several side by side."""
