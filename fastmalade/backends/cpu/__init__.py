"""The native CPU backend: ``calls`` takes tensors, ``extension`` finds the compiled module."""
