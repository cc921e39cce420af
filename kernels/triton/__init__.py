"""Triton kernels of the chain and of its gradient, one file per stage; the launches are in fastmalade/backends.

The stages are cut where a value must be read by another thread block: conv1, conv2, deconv1 (each an instance of
convolution.py) and the tail (deconv2, conv3, residual, update, noise and clamp). Triton has no shared memory that a
program could address, so a cut costs one trip of an activation through the L2 cache; the kernel that keeps everything
on chip is the one in CUDA C++.

Layouts, all float32: images, noise and cotangents (B, C, H, W); everything between the stages channels last, (B, rows,
columns, channels), with a frame of zeros as wide as the reader's window needs. The frame replaces all masks on rows and
columns, and makes one row of a window one contiguous run of taps x channels numbers.
"""
