"""The Triton backend: ``calls`` takes tensors, the other modules choose and launch kernels."""
