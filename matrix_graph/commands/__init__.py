"""The commands of the command line, a module each; those of a run are in `batch/command.py`."""
