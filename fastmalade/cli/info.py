"""``fastmalade info``: what is installed, what can run here and why the rest cannot, which models ship."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib import resources
from typing import Annotated, Any

import typer

from fastmalade.cli.errors import exit_codes

_VARIABLES = ("FASTMALADE_BACKEND", "FASTMALADE_CPU_ISA", "FASTMALADE_DATA", "FASTMALADE_TRITON_CONFIG")


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Print versions, backends and why some cannot be used, instruction sets, threads, and shipped models."""
    with exit_codes():
        facts = collect()
        typer.echo(json.dumps(facts, indent=2) if as_json else as_text(facts))


def collect() -> dict[str, Any]:
    """Everything that ``fastmalade info`` prints, as JSON values.

    A setting that cannot be met, such as FASTMALADE_CPU_ISA naming an instruction set that this processor
    lacks, is reported under "error" in its place: an installation must be easy to look at above all when something
    is wrong with it.
    """
    import numpy as np
    import torch

    import fastmalade
    from fastmalade import backends

    reasons = backends.available()
    automatic = _or_error(lambda: backends.resolve(None, device=torch.device("cpu"), dtype=torch.float32))
    facts: dict[str, Any] = {
        "versions": {
            "fastmalade": fastmalade.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "platform": platform.platform(),
        "backends": {name: {"usable": reason is None, "reason": reason} for name, reason in reasons.items()},
        "backend_for_float32_on_cpu": automatic,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "build": _build_info(),
        "models": _models(),
    }
    if reasons.get("cpu", "") is None:
        facts["cpu"] = {
            "isas_built": backends.cpu.calls.isas_built(),
            "isas_supported": backends.cpu.calls.isas_supported(),
            "isa_in_use": _or_error(backends.cpu.calls.isa_in_use),
        }
    return facts


def as_text(facts: dict[str, Any]) -> str:
    """The facts of :func:`collect` as lines for people."""
    lines = [
        " ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        facts["platform"],
        "",
    ]
    for name, backend in facts["backends"].items():
        lines.append(f"backend {name}: {'usable' if backend['usable'] else 'not usable: ' + backend['reason']}")
    lines.append(f"float32 images on the CPU run on: {_value(facts['backend_for_float32_on_cpu'])}")
    if "cpu" in facts:
        cpu = facts["cpu"]
        lines.append(f"instruction sets built: {', '.join(cpu['isas_built'])}")
        lines.append(f"of these, this processor can run: {', '.join(cpu['isas_supported'])}")
        lines.append(f"instruction set in use: {_value(cpu['isa_in_use'])}")
    lines.append(f"threads: {facts['threads']}")
    lines += [f"{name}={value}" for name, value in facts["environment"].items()]
    build = facts["build"]
    if build is None:
        lines.append("build: no record of one (run from a source tree that was never built)")
    else:
        lines += [f"build of {name}: {_build_line(record)}" for name, record in build.items()]
    lines += ["", "shipped models:" if facts["models"] else "shipped models: none"]
    for name, model in facts["models"].items():
        settings = model.get("chain") or model.get("classifier") or {}
        text = ", ".join(f"{key} {_plain(value)}" for key, value in settings.items())
        lines.append(f"  {name} ({model['kind']}, {model['bytes'] / 1e3:.0f} kB): {text}")
    return "\n".join(lines)


def _models() -> dict[str, dict[str, Any]]:
    from fastmalade.pretrained import read_header, shipped_models

    models: dict[str, dict[str, Any]] = {}
    for name, path in shipped_models().items():
        header = read_header(path)
        models[name] = {"path": str(path), "bytes": path.stat().st_size, "kind": header["kind"]}
        models[name] |= {part: header[part] for part in ("chain", "classifier", "value_range") if part in header}
    return models


def _build_info() -> dict[str, Any] | None:
    record = resources.files("fastmalade").joinpath("_build_info.json")
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


def _or_error(ask: Callable[[], str]) -> str | dict[str, str]:
    from fastmalade.backends import BackendUnavailableError

    try:
        return ask()
    except (BackendUnavailableError, ValueError) as error:
        return {"error": str(error)}


def _value(answer: str | dict[str, str]) -> str:
    return answer if isinstance(answer, str) else f"error: {answer['error']}"


def _build_line(record: dict[str, Any]) -> str:
    if not record["built"]:
        return f"none ({record['reason']})"
    return f"{', '.join(record['isas'])}, compiled by {record['compiler']}"


def _plain(value: Any) -> str:
    return " ".join(str(item) for item in value) if isinstance(value, list) else str(value)
