"""Train transformer text classifiers, from labelled files to a measured, usable model, by one run file."""

__version__ = "0.1.0"
