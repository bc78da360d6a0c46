"""Files <-> parameters: one name table for both directions, a reader and a writer per format."""
