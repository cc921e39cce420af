"""The CUDA backend: ``calls`` takes tensors, ``extension`` finds the compiled module."""
