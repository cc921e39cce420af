"""Every Triton kernel compiled for three GPUs, without one: it must assemble, and hot ones must not spill.

One variant of each kernel is compiled here; ``python tools/gpu_resources_triton.py`` compiles all of them.
"""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton", reason="the package triton is not installed")

import gpu_resources_triton as resources

pytestmark = pytest.mark.slow

KERNELS = {
    "convolution_kernel", "even_cotangent_kernel", "langevin_update_kernel", "langevin_update_vjp_kernel",
    "pack_kernel", "philox_words_kernel", "standard_normal_kernel", "start_kernel", "tail_cotangent_kernel",
    "tail_kernel",
}  # fmt: skip


@pytest.fixture(scope="module")
def launches() -> list[resources.Launch]:
    return resources.recorded_launches()


def test_the_recorder_meets_every_kernel(launches) -> None:
    assert {launch.kernel.__name__ for launch in launches} == KERNELS
    assert {launch.kernel.__name__ for launch in resources.one_of_each(launches)} == KERNELS
    assert {dict(launch.constants).get("PRECISION") for launch in launches} == {"ieee", "tf32", None}


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_every_kernel_compiles_and_no_hot_one_spills(launches, architecture: int) -> None:
    rows = [resources.compile_launch(launch, architecture) for launch in resources.one_of_each(launches)]
    assert all(0 < row.registers <= 255 for row in rows)
    # The smallest of these GPUs, as far as shared memory goes, has 99 KB per block.
    assert all(row.shared_bytes <= 99 * 1024 for row in rows)
    spilling = [row for row in rows if row.hot and row.spill_store_bytes + row.spill_load_bytes + row.stack_bytes]
    assert not spilling, resources.as_markdown(spilling)
    products = [row for row in rows if row.kernel.startswith("convolution_kernel")]
    assert products
    assert all(row.multiply_adds > 100 and row.tensor_core_instructions == 0 for row in products)


def test_reduced_precision_uses_tensor_cores(launches) -> None:
    reduced = [launch for launch in launches if dict(launch.constants).get("PRECISION") == "tf32"]
    row = resources.compile_launch(reduced[-1], 90)
    assert row.tensor_core_instructions > 0, row


def test_a_spill_is_seen(launches) -> None:
    # Twice as many results per thread as the defaults have do not fit the registers: the reading must say so.
    widest = next(n for n in resources.one_of_each(launches) if n.kernel.__name__ == "convolution_kernel")
    constants = {**dict(widest.constants), "BLOCK_M": 128}
    taller = dataclasses.replace(widest, constants=tuple(constants.items()), num_warps=4)
    assert resources.compile_launch(taller, 90).spill_store_bytes > 0
