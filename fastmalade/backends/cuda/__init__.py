"""The CUDA backend: ``calls`` takes tensors, ``extension`` loads the compiled module."""
