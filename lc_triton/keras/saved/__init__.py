"""Models that Keras saved, read without TensorFlow as torch modules; and their weights written back."""
