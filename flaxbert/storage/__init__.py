"""Where a run's files are, on disk or in a bucket: workdir, lock, checkpoints; and the hub."""
