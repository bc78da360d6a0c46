"""What the processes of one run have to do with each other; a run of one process has none of it."""
