"""``fastmalade info``: complete, in text and JSON, also when a setting cannot be met."""

from __future__ import annotations

import json
import platform

import numpy as np
import pytest
import torch

import fastmalade
from fastmalade import backends


def test_json(invoke):
    result = invoke("info", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["versions"] == {
        "fastmalade": fastmalade.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    assert facts["threads"] == torch.get_num_threads()
    assert set(facts["backends"]) == set(backends.BACKENDS)
    assert facts["backends"]["torch"] == {"usable": True, "reason": None}
    assert facts["backend_for_float32_on_cpu"] in backends.BACKENDS
    assert set(facts["models"]) == set(fastmalade.shipped_models())
    for name, model in facts["models"].items():
        assert model["bytes"] == fastmalade.shipped_models()[name].stat().st_size


def test_text(invoke):
    result = invoke("info")
    assert result.exit_code == 0, result.output
    assert f"fastmalade {fastmalade.__version__}" in result.stdout
    assert "backend torch: usable" in result.stdout
    assert f"threads: {torch.get_num_threads()}" in result.stdout
    for name in fastmalade.shipped_models():
        assert name in result.stdout


def test_native_part(invoke):
    if backends.available()["cpu"] is not None:
        pytest.skip(f"the native backend cannot be used here: {backends.available()['cpu']}")
    facts = json.loads(invoke("info", "--json").stdout)
    assert facts["backend_for_float32_on_cpu"] == "cpu"
    assert facts["cpu"]["isas_built"] == backends.cpu.calls.isas_built()
    assert facts["cpu"]["isa_in_use"] in facts["cpu"]["isas_supported"]
    assert facts["build"]["cpu"]["built"] is True


def test_says_why_a_backend_is_missing(invoke, monkeypatch):
    monkeypatch.setattr(backends.cpu.calls, "unavailable_reason", lambda: "taken away by a test")
    assert "backend cpu: not usable: taken away by a test" in invoke("info").stdout
    facts = json.loads(invoke("info", "--json").stdout)
    assert facts["backends"]["cpu"] == {"usable": False, "reason": "taken away by a test"}
    assert facts["backend_for_float32_on_cpu"] == "torch"
    assert "cpu" not in facts


@pytest.mark.parametrize("name", ["FASTMALADE_CPU_ISA", "FASTMALADE_BACKEND"])
def test_settings_that_cannot_be_met_are_shown_not_raised(invoke, monkeypatch, name):
    if name == "FASTMALADE_CPU_ISA" and backends.available()["cpu"] is not None:
        pytest.skip("instruction sets are the native backend's, which cannot be used here")
    monkeypatch.setenv(name, "sse9")
    result = invoke("info")
    assert result.exit_code == 0, result.output
    assert f"{name}=sse9" in result.stdout
    assert "error: " in result.stdout
    assert json.loads(invoke("info", "--json").stdout)["environment"][name] == "sse9"


def test_in_a_process_of_its_own(spawn):
    stdout, stderr = spawn("info", "--json").communicate(timeout=120)
    assert stderr == ""
    assert json.loads(stdout)["versions"]["torch"] == torch.__version__


def test_help_lists_every_command(invoke):
    result = invoke("--help")
    assert result.exit_code == 0
    for verb in ("purify", "info", "demo", "evaluate", "transfer", "certify", "attack", "train"):
        assert verb in result.stdout
        assert invoke(verb, "--help").exit_code == 0
