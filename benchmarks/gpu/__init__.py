"""`python -m benchmarks gpu`: checks and measurements for the first minutes on a GPU, the most important first."""
