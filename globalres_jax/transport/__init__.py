"""The optimal transport problem of one position, its dual and its solvers."""
