"""What Keras's arguments mean: names and configurations as initializers, regularizers, constraints and activations."""
