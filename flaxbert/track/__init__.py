"""What a run tells while it trains: metrics.jsonl, TensorBoard, the terminal."""
