"""Text -> token rows: read, check, tokenize once, pack, and slice into updates."""
