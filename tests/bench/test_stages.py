"""The stage table, on an extension made for it and on the installed one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.console import Console

from fastmalade.backends import BackendUnavailableError
from fastmalade.bench.ceilings import copy_bandwidth, fma_ceiling, native_module
from fastmalade.bench.flops import stage_flops
from fastmalade.bench.stages import stage_table, stage_times


def test_stages_are_asked_for_by_address_and_shown_with_rate_and_share(task):
    asked = []

    def measure(isa, form, shape, addresses, repeats):
        asked.append((isa, form, shape, addresses, repeats))
        return [("conv1", 2e-6), ("conv3, update and noise", 6e-6), ("noise", 2e-6)]

    stages = stage_times(task, "avx2", "latency", repeats=7, module=SimpleNamespace(stage_times=measure))
    ((isa, form, shape, addresses, repeats),) = asked
    assert (isa, form, shape, repeats) == ("avx2", "latency", [1, 8, 12, 10, 25], 7)
    assert addresses == [weight.data_ptr() for weight in task.weights]
    flops = stage_flops(1, 8, 12, 10, 25)
    assert [(s.name, s.microseconds) for s in stages] == [
        ("conv1", 2.0),
        ("conv3, update and noise", 6.0),
        ("noise", 2.0),
    ]
    assert [s.flops for s in stages] == [flops["conv1"], flops["conv3"], 0]
    console = Console(width=100, record=True)
    console.print(stage_table(stages, "title"))
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert ["conv1", "2.000", f"{flops['conv1'] / 2e3:.1f}", "20.0%"] in lines
    assert ["noise", "2.000", "-", "20.0%"] in lines
    assert ["sum", "10.000", f"{(flops['conv1'] + flops['conv3']) / 1e4:.1f}", "100.0%"] in lines


def test_an_extension_that_cannot_time_its_stages_says_so(task):
    with pytest.raises(BackendUnavailableError, match="cannot time its stages"):
        stage_times(task, "avx2", "latency", module=SimpleNamespace())
    with pytest.raises(ValueError, match="form: expected one of throughput, quad, latency, got 'fast'"):
        stage_times(task, "avx2", "fast", module=SimpleNamespace())


def test_ceilings(monkeypatch):
    monkeypatch.setattr("fastmalade.bench.ceilings.COPY_BYTES", 1 << 16)
    assert copy_bandwidth(2) > 1e6
    monkeypatch.setattr("fastmalade.bench.ceilings.native_module", lambda: SimpleNamespace())
    assert fma_ceiling("avx2") is None
    asked = []
    fake = SimpleNamespace(fma_ceiling=lambda isa, seconds: asked.append((isa, seconds)) or 5)
    monkeypatch.setattr("fastmalade.bench.ceilings.native_module", lambda: fake)
    assert fma_ceiling("avx2", 0.5) == 5.0
    assert asked == [("avx2", 0.5)]


@pytest.mark.skipif(
    not hasattr(native_module(), "stage_times"), reason="this build of the extension cannot time its stages"
)
@pytest.mark.parametrize("form", ["throughput", "quad", "latency"])
def test_the_installed_extension(task, form):
    from fastmalade.backends.cpu import calls as cpu

    stages = stage_times(task, cpu.isa_in_use(), form, repeats=2)
    assert all(stage.microseconds > 0 for stage in stages)
    assert all(stage.flops > 0 for stage in stages)
    assert len({stage.name for stage in stages}) == len(stages)


@pytest.mark.skipif(
    not hasattr(native_module(), "fma_ceiling"), reason="this build of the extension cannot measure its ceiling"
)
def test_the_installed_ceiling():
    from fastmalade.backends.cpu import calls as cpu

    assert fma_ceiling(cpu.isa_in_use(), 0.01) > 1e8
