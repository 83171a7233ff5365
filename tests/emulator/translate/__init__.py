"""PTX instructions as lines of Python over numpy arrays: one number a thread, or one for all threads."""
