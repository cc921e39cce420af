"""Tables, notes, plot and README block from results made by hand."""

from __future__ import annotations

import json

import pytest
from repository import ROOT, load_script
from rich.console import Console

from fastmalade.bench.report import Grid, grids, notes, rows, tables


@pytest.fixture(scope="module")
def make_tables():
    return load_script("benchmarks/make_tables.py")


def cell(contender, batch, median, **more):
    times = {"median": median, "low": median * 0.9, "high": median * 1.1, "fastest": median * 0.9}
    times |= {"repetitions": 9, "rounds": 3}
    base = {"contender": contender, "shape": "1x28x28", "steps": 10, "batch": batch, "flops_per_image": 20_000_000}
    return base | ({} if median is None else {"us_per_image": times}) | more


@pytest.fixture
def result():
    def contender(label, peer=True, rewritten=False, reason=None):
        return {"label": label, "peer": peer, "rewritten": rewritten, "reason": reason, "threads": 1}

    return {
        "complete": True,
        "settings": {"gradient": False, "threads": 1},
        "machine": {"processor": "Testprocessor", "pinned_to": [3]},
        "versions": {"fastmalade": "1.2"},
        "commit": {"id": "0123456789abcdef", "dirty": False},
        "warnings": [],
        "ceilings": {"copy_bytes_per_second": 12.3e9},
        "contenders": {
            "native": contender("native", peer=False),
            "eager": contender("PyTorch eager"),
            "onnxruntime": contender("ONNX Runtime"),
            "jax-rewritten": contender("JAX, rewritten", rewritten=True),
            "openvino": contender("OpenVINO", reason="needs openvino, not installed here"),
        },
        "cells": [
            cell("native", 1, 400.0, isa="avx2", fma_ceiling_flops_per_second=100e9),
            cell("native", 16, 250.0, isa="avx2", fma_ceiling_flops_per_second=80e9),
            cell("eager", 1, 4000.0),
            cell("eager", 16, 1000.0),
            cell("onnxruntime", 1, 1200.0),
            {k: v for k, v in cell("onnxruntime", 16, 1.0).items() if k != "us_per_image"}
            | {"failed_forms": {"noise given": "VerificationError: noise: expected mean 0"}},
            cell("jax-rewritten", 16, 500.0),
        ],
    }


def test_rows_have_medians_ratios_and_fractions(result):
    (grid,) = grids(result)
    assert grid.batches == [1, 16]
    assert rows(grid) == [
        ["native", "400", "250"],
        ["PyTorch eager", "4000", "1000"],
        ["ONNX Runtime", "1200", "failed"],
        ["JAX, rewritten", "-", "500"],
        ["native vs best peer", "3.0x", "4.0x"],
        ["native vs best rewritten peer", "-", "2.0x"],
        ["native, part of the FMA ceiling", "50%", "100%"],
    ]
    assert grid.best_peer(1, rewritten=False) == ("onnxruntime", 1200.0)
    assert grid.fraction("native", 1) == pytest.approx(0.5)


def test_without_peers_there_are_no_ratios(result):
    result["cells"] = [part for part in result["cells"] if part["contender"] == "native"]
    assert [row[0] for row in rows(Grid(result, "1x28x28", 10))] == ["native", "native, part of the FMA ceiling"]


def test_what_was_not_measured_says_so(result):
    for part in result["cells"]:
        part.pop("fma_ceiling_flops_per_second", None)
    assert rows(Grid(result, "1x28x28", 10))[-1][1:] == ["not measured", "not measured"]
    assert any("FMA ceiling not measured" in line for line in notes(result))
    result["settings"]["gradient"] = True
    assert not any("FMA" in row[0] for row in rows(Grid(result, "1x28x28", 10)))


def test_the_ceiling_of_two_threads_is_twice_that_of_one(result):
    result["settings"]["threads"] = result["contenders"]["native"]["threads"] = 2
    assert Grid(result, "1x28x28", 10).fraction("native", 1) == pytest.approx(0.25)


def test_one_thread_beside_two_is_compared_with_them_and_not_with_peers(result):
    for contender in result["contenders"].values():
        contender["threads"] = 2
    result["settings"]["threads"] = 2
    single = {"label": "native[1 thread]", "threads": 1}
    result["contenders"]["native[1 thread]"] = result["contenders"]["native"] | single
    result["cells"].append(cell("native[1 thread]", 16, 460.0, isa="avx2", fma_ceiling_flops_per_second=80e9))
    table = {row[0]: row[1:] for row in rows(Grid(result, "1x28x28", 10))}
    assert table["native vs native[1 thread]"] == ["-", "1.84x"]
    assert table["native[1 thread]"] == ["-", "460"]
    assert [name for name in table if name.startswith("native[1 thread]")] == ["native[1 thread]"]
    assert table["native vs best peer"] == ["3.0x", "4.0x"]


def test_notes_name_what_is_missing_wrong_or_doubtful(result):
    text = "\n".join(notes(result))
    assert "openvino: not timed: needs openvino" in text
    assert "onnxruntime (noise given), 1x28x28, N=10, batch 16: FAILED and not timed: Verif" in text
    assert "processors 3; Testprocessor; commit 0123456789ab" in text
    assert "avx2 80.0 to 100.0 GFLOP/s on one core" in text
    assert "warning" not in text
    result["complete"] = False
    result["cells"][2]["us_per_image"]["high"] *= 2
    result["warnings"] = ["the load average was 9.0"]
    result["commit"]["dirty"] = True
    text = "\n".join(notes(result))
    assert "warning: the run was not finished" in text
    assert "warning: the load average was 9.0" in text
    assert "1 of 6 cells were unsteady: the 90% quantile of eager at batch 1 is 2.4 times" in text
    assert "0123456789ab + changes" in text


def test_tables_print(result):
    (table,) = tables(result)
    console = Console(width=120, record=True)
    console.print(table)
    assert "native vs best peer" in console.export_text()


def test_names_with_an_instruction_set_are_not_markup(result):
    contenders = {"native[avx2]": result["contenders"].pop("native") | {"label": "native[avx2]"}}
    result["contenders"] = contenders | result["contenders"]
    for part in result["cells"]:
        part["contender"] = part["contender"].replace("native", "native[avx2]")
    console = Console(width=120, record=True)
    console.print(*tables(result))
    assert {line.split("│")[1].strip() for line in console.export_text().splitlines() if "[avx2]" in line} == {
        "native[avx2]",
        "native[avx2] vs best peer",
        "native[avx2] vs best rewritten peer",
        "native[avx2], part of the FMA ceiling",
    }


def test_plot(result, tmp_path):
    pytest.importorskip("matplotlib")
    from fastmalade.bench.plot import draw

    draw(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]
    result["cells"] = []
    with pytest.raises(ValueError, match="plot: expected at least one timed cell"):
        draw(result, tmp_path / "none.png")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot_on_a_full_disk(result, tmp_path, no_file_over, suffix):
    pytest.importorskip("matplotlib")
    from fastmalade.bench.plot import draw

    with no_file_over(900), pytest.raises(OSError, match=f"plot{suffix}"):
        draw(result, tmp_path / f"plot{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_blocks_are_replaced_and_nothing_else(make_tables, result, tmp_path):
    (tmp_path / "docs").mkdir()
    readme, performance, source = (tmp_path / name for name in ("README.md", "docs/performance.md", "bench.json"))
    begin, end = make_tables.marks(result)
    assert begin == "<!-- bench:begin -->"
    assert make_tables.marks({"settings": {"gradient": True}})[0] == "<!-- gradient:begin -->"
    performance.write_text(f"# Title\n\n{begin}\nold\n{end}\n\ntail\n")
    readme.write_text("# Title\n\n<!-- speed:begin -->\nold\n<!-- speed:end -->\n\ntail\n")
    source.write_text(json.dumps(result))
    arguments = [str(source), "--root", str(tmp_path)]
    assert make_tables.main([*arguments, "--check"]) == 1
    assert make_tables.main(arguments) == 0
    text = performance.read_text()
    assert text.startswith(f"# Title\n\n{begin}\n\n| 1x28x28, N=10, batch | 1 | 16 |\n| --- | ---: | ---: |\n")
    assert text.endswith(f"\n\n{end}\n\ntail\n")
    assert "| ONNX Runtime | 1200 | failed |" in text
    assert "ceiling" in text
    assert "old" not in text
    assert make_tables.sources_of(text) == ["bench.json"]
    brief = readme.read_text()
    assert brief.startswith(
        "# Title\n\n<!-- speed:begin -->\n\n| 1x28x28, N=10, batch | 1 | 16 |\n| --- | ---: | ---: |\n"
    )
    assert brief.endswith("from `bench.json`.\n\n<!-- speed:end -->\n\ntail\n")
    assert not {"ceiling", "warning", "old"} & set(brief.split())
    assert make_tables.main([*arguments, "--check"]) == 0
    result["cells"][0]["us_per_image"]["median"] = 401.0
    source.write_text(json.dumps(result))
    assert make_tables.main([*arguments, "--check"]) == 1
    with pytest.raises(ValueError, match="expected the lines"):
        make_tables.replaced("no marks", "block", begin, end)


def test_the_committed_tables_are_those_that_the_command_makes(make_tables):
    sources = make_tables.sources_of((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    assert len(sources) == 2
    for source in sources:
        result = json.loads((ROOT / source).read_text(encoding="utf-8"))
        for page, text in make_tables.pages_with(result, source).items():
            assert page.read_text(encoding="utf-8") == text
