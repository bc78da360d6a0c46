"""What `python -m flaxbert.doctor` looks at: one file per subject, nothing is ever changed."""
