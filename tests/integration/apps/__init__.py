"""Small apps as people outside of this project write them, with the documented API of its and other packages alone."""
