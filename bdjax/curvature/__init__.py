"""Curvature of the loss: Fisher information, Hessian, and the surface that both describe."""
