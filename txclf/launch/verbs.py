"""Commands that run as jobs on a cluster. Imports nothing, because `txclf --help` shows them."""

VERBS = ("train", "distill", "tune", "prepare", "evaluate", "predict", "check")
RUN_FILE_AT = {"train": 0, "distill": 1, "tune": 0, "prepare": 0, "check": 0}
"""Position of the run file among the words after a verb; the other verbs read none."""
RUN_FILE_FOLDER = "submitted"
"""Folder of the run file in the uploaded folder."""
