"""What lies on disk: the workdir, its lock, checkpoints with manifests, and the embedded wheels."""
