"""What the rooms above share: sizes, activations, backends, parameters, files."""
