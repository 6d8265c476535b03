"""The optimal transport problem of one position, its dual and its solvers.

`solve_transport` minimises one convex function of V weights by a projected Newton
method whose Hessian is diagonal plus a low rank, the nodes of a one-dimensional
quadrature. It certifies itself: `acceptance_rate <= optimum <= upper_bound`, and
`converged` says whether the two are within the solver's tolerance. Nothing is
enumerated and nothing truncated. For i.i.d. drafts the optimal weight of a token
depends on its p/q alone, so from 320 tokens on the method finds that one increasing
curve on 160 pools of similar tokens, reads every weight off it in one pass, and repeats
with a correction until the certificate, which is taken over all tokens, is content.
Laws with one random draft (`TopPlusSample`) or none (`Deterministic`) have a closed
form.
"""
