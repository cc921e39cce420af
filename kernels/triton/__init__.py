"""Triton kernels of the chain and of its gradient, one file per stage; the launches are in fastmalade/backends/triton.

The stages are cut where another thread block has to read a value: conv1, conv2, deconv1 (each an instance of
convolution.py) and the tail (deconv2, conv3, residual, update, noise and clamp). A Triton program cannot address shared
memory, so each cut costs an activation one trip through the L2 cache; the CUDA C++ kernels keep everything on chip.

Layouts, all float32: images, noise and cotangents (B, C, H, W); everything between the stages channels last, (B, rows,
columns, channels), with a frame of zeros as wide as the reader's window needs. The frame makes masks on rows and
columns unnecessary, and one row of a window one contiguous run of taps x channels numbers.
"""
