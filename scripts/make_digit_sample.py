"""Write the digits that ship with the package: the first 100 of each class in the MNIST test set.

python scripts/make_digit_sample.py [DATA_DIR]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from fastmalade.data import find_data_dir, load_mnist
from fastmalade.files import replacing

PER_CLASS = 100
TARGET = Path(__file__).parent.parent / "fastmalade" / "data" / "mnist_test_sample.npz"


def main() -> None:
    images, labels = load_mnist("test", find_data_dir(sys.argv[1] if len(sys.argv) > 1 else None))
    indices = np.sort(np.concatenate([np.flatnonzero(labels.numpy() == k)[:PER_CLASS] for k in range(10)]))
    pixels = (images[indices, 0] * 255).round().to(torch.uint8).numpy()
    with replacing(TARGET) as partial:
        np.savez_compressed(partial, images=pixels, labels=labels[indices].numpy(), indices=indices)
    print(f"{TARGET}: {len(indices)} digits, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
