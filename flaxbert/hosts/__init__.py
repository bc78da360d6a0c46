"""Several processes of one run: discovery, heartbeats, agreement; a single process needs none."""
