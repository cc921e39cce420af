"""The table of registers and instructions of the CUDA kernels, and the prediction made from it."""

from __future__ import annotations

import json

import gpu_prediction
import gpu_resources
import pytest

HOT_KERNELS = 14  # 10 in float32, two precisions on tensor cores with weights resident or streamed

KERNEL = "void fastmalade::cuda::chain_kernel<fastmalade::cuda::Digits<8> >(fastmalade::cuda::ChainParameters)"
REPORT = f"""ptxas info    : Compiling entry function '{KERNEL}' for 'sm_90'
ptxas info    : Function properties for x
    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 220 registers, used 1 barriers
"""


def test_reports_are_read_and_spills_found() -> None:
    rows = gpu_resources.parse_report(REPORT, "sm_90")
    expected = {"kernel": "chain digits x8, weights resident", "arch": "sm_90", "registers": 220}
    assert rows == [expected | {"stack_bytes": 0, "spill_stores": 8, "spill_loads": 12}]
    assert gpu_resources.spills(rows) == ["chain digits x8, weights resident on sm_90: 8 bytes stored, 12 loaded"]
    with pytest.raises(ValueError, match="registers"):
        gpu_resources.parse_report(REPORT.splitlines()[0], "sm_90")


def test_instructions_are_counted() -> None:
    sass = ("Function : void fastmalade::cuda::noise_kernel(fastmalade::cuda::NoiseParameters)\n"
            " /*0000*/  FFMA R1, R2 ;\n /*0010*/  @!P0 HMMA.16816.F32 R1 ;\n /*0020*/ STL [R1], R2 ;\n")  # fmt: skip
    counts = gpu_resources.count_instructions(sass)["noise"]
    assert counts == {"ffma": 1, "lds": 0, "ldg": 0, "local": 1, "tensor": 1, "instructions": 3}


def test_the_committed_table_is_of_todays_sources_and_shows_no_spills() -> None:
    table = json.loads(gpu_resources.RESULTS.read_text(encoding="utf-8"))
    assert table["source_hash"] == gpu_resources.source_hash(), "run: python tools/gpu_resources.py"
    assert {row["arch"] for row in table["rows"]} == set(gpu_resources.ARCHITECTURES)
    hot = [row for row in table["rows"] if row["kernel"].startswith(gpu_resources.HOT)]
    assert len(hot) == HOT_KERNELS * len(gpu_resources.ARCHITECTURES)
    on_tensor_cores = [row for row in hot if "tensor" in row["kernel"]]
    assert len(on_tensor_cores) == 4 * len(gpu_resources.ARCHITECTURES)
    assert all((row["tensor"] > 0) == (row in on_tensor_cores) for row in hot)
    assert gpu_resources.spills(table["rows"]) == []


def test_the_prediction_counts_the_products_of_the_kernels() -> None:
    # By the numbers of one image: valid taps along a side are 32 of conv2 and 29 of deconv1 (both of 7 positions).
    conv2, deconv1 = gpu_prediction.products("tf32")
    assert conv2.all() == 2 * (32 * 32 + 7 * 49)
    assert deconv1.all() == 3 * (3 * 29 * 29 + 4 * 49)
    assert [layer.all() for layer in gpu_prediction.products("tf32x3")] == [conv2.all(), deconv1.all()]
    # What stands in the loops of the machine code is what one row of taps takes there.
    for precision, parts in (("tf32", 1), ("tf32x3", 3)):
        loops = [loop for loop in loops_of(precision) if loop["tensor"]]
        whole = sum(loop["tensor"] for loop in loops[2::2])
        assert (loops[0]["tensor"], whole) == (parts * 2 * 19, parts * 3 * 29)
        cycles = [sum(gpu_prediction.tensor_cycles(loops_of(precision), precision, rate).values())
                  for rate in (1024, 512)]  # fmt: skip
        assert cycles[0] < cycles[1] < 2 * cycles[0]


def loops_of(precision: str) -> list[dict[str, int]]:
    return gpu_prediction.read_loops(f"chain tensor {precision}, weights resident")


@pytest.mark.complete
@pytest.mark.parametrize("architecture", gpu_resources.ARCHITECTURES)
def test_compiled_now_nothing_spills(architecture: str, tmp_path) -> None:
    if gpu_resources.load_setup().find_nvcc() is None:
        pytest.skip("nvcc is not on this machine")
    rows = gpu_resources.compile_rows(architecture, tmp_path)
    assert len([row for row in rows if row["kernel"].startswith(gpu_resources.HOT)]) == HOT_KERNELS
    assert gpu_resources.spills(rows) == []
