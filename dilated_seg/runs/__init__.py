"""Runs, their checkpoints and their evaluations: the only code that knows the names of files in a run."""
