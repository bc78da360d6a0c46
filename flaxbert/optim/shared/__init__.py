"""What optimizers and the step share: weight decay by name, the norm of gradients and clipping."""
