"""Finished scenes on disk, and what is made of them; nothing here imports the scene."""
