"""What a run would take on devices that need not be here, from the programs that it would run."""
