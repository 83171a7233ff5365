"""`python -m benchmarks gpu`: everything that is to be learnt in the first minutes on a GPU, in order of worth."""
