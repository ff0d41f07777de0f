"""What is kept of a step's activations, and what is made again: applied to a model from outside."""
