"""Sets of images on disk: made by any number of processes, resumable, read a batch at a time."""
