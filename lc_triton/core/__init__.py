"""What the other packages share: sizes, activations, backends, parameters, files."""
