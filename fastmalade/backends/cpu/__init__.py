"""The native CPU backend: ``calls`` and ``noise`` take tensors, ``extension`` finds the compiled module."""
