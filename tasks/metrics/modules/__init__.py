"""The shipped metrics as Hugging Face `evaluate` modules.

Where Weighbridge is installed, `evaluate.load("tasks/metrics/modules/exact_match.py")` works as
well as an import. Every module returns its figure under its own name and the scores of the rows
under `per_example`.
"""
