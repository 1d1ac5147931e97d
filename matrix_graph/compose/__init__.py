"""Where a rehearsal meets other software."""
