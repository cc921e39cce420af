"""Arguments, instruction-set choice, threads and processes of the native backend."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading

import pytest
import reference64
import torch

from fastmalade import backends
from fastmalade.backends import BackendUnavailableError, extensions
from fastmalade.backends.arguments import PLAIN_TYPES
from fastmalade.backends.cpu import calls as cpu
from fastmalade.backends.cpu import extension as cpu_extension
from fastmalade.backends.values import NoiseSource, Steps

WEIGHTS = reference64.random_weights(1, 3, 4)
CPU = torch.device("cpu")


def chain(x: torch.Tensor, **changed) -> torch.Tensor:
    arguments = {
        "weights": WEIGHTS, "step_sizes": [0.2, 0.1], "noise_scales": [0.1, 0.1], "lows": [0.0, 0.0],
        "highs": [1.0, 1.0], "seed": 5, "sample_ids": torch.arange(x.shape[0]),
    }  # fmt: skip
    form = changed.pop("form", "auto")
    noise = changed.pop("noise", None)
    arguments.update(changed)
    steps = Steps(*(arguments[name] for name in Steps._fields))
    source = NoiseSource(arguments["seed"], arguments["sample_ids"], noise)
    return cpu.langevin_chain(x, arguments["weights"], steps, source, form=form)


@pytest.mark.parametrize(
    ("x_shape", "changed", "message"),
    [
        ((2, 1, 6, 8), {}, "height: expected a multiple of 4, got 6"),
        ((2, 1, 8, 7), {}, "width: expected a multiple of 4, got 7"),
        ((2, 2, 8, 8), {}, r"conv1\.weight: expected .*\(3, 2, 5, 5\), got .*\(3, 1, 5, 5\)"),
        ((2, 8, 8), {}, r"x: expected .*\(any, any, any, any\), got .*\(2, 8, 8\)"),
        ((2, 1, 8, 8), {"noise_scales": [0.1]}, "noise_scales: expected 2 values, one per step, got 1"),
        ((2, 1, 8, 8), {"lows": [2.0, 0.0]}, "clamp bounds: expected low <= high, got 2.0.* and 1.0"),
        ((2, 1, 8, 8), {"highs": [float("nan"), 1.0]}, "clamp bounds: expected low <= high"),
        (
            (2, 1, 8, 8),
            {"step_sizes": [float("nan"), 0.1]},
            "step_sizes: expected finite float32 values, got .*nan",
        ),
        (
            (2, 1, 8, 8),
            {"noise_scales": [1e300, 0.1]},
            "noise_scales: expected finite float32 values, got inf",
        ),
        ((2, 1, 8, 8), {"seed": -1}, r"seed: expected 0 to 2\*\*64 - 1, got -1"),
        ((2, 1, 8, 8), {"seed": 2**64}, r"seed: expected 0 to 2\*\*64 - 1"),
        ((2, 1, 8, 8), {"sample_ids": torch.arange(3)}, r"sample_ids: expected .*\(2\), got .*\(3,\)"),
        ((2, 1, 8, 8), {"sample_ids": torch.zeros(2)}, "sample_ids: expected torch.int64"),
        ((2, 1, 8, 8), {"noise": torch.zeros(2, 2, 1, 8, 4)}, "noise: expected"),
        ((2, 1, 8, 8), {"weights": WEIGHTS[:9]}, "weights: expected 10 tensors"),
        ((2, 1, 8, 8), {"form": "fast"}, "form: expected auto, throughput, quad or latency, got fast"),
    ],
)
def test_arguments_that_do_not_fit(native, x_shape, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chain(torch.rand(x_shape), **changed)


def test_wrong_dtypes(native) -> None:
    with pytest.raises(ValueError, match=r"x: expected torch\.float32 .* got torch\.float64"):
        chain(torch.rand(2, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"deconv1\.bias: expected torch\.float32 .* got torch\.float16"):
        chain(torch.rand(2, 1, 8, 8), weights=[w.half() if n == 5 else w for n, w in enumerate(WEIGHTS)])
    with pytest.raises(ValueError, match="step: expected 0 to 4294967295, got -1"):
        cpu.standard_normal(0, torch.arange(2), -1, 4)
    with pytest.raises(ValueError, match="n_elements: expected at least 0, got -4"):
        cpu.philox_words(0, torch.arange(2), 0, -4)


@pytest.mark.parametrize("odd", [None, "strides", "negated", "view"])
def test_tensors_are_read_alike_with_and_without_the_dlpack_table(native, monkeypatch, odd: str | None) -> None:
    # None is the form that the table reads; the others, and a torch without the table, go through attributes.
    x, weights = torch.rand(5, 1, 8, 12), [w.clone() for w in WEIGHTS]
    expected = chain(x, weights=weights)
    if odd == "strides":
        weights[2] = weights[2].contiguous(memory_format=torch.channels_last)
        x = torch.empty(5, 1, 12, 8).copy_(x.transpose(2, 3)).transpose(2, 3)
    elif odd == "negated":
        weights[2], x = torch._neg_view(-weights[2]), torch._neg_view(-x)
    elif odd == "view":
        weights[2] = torch.cat([torch.zeros(1), weights[2].flatten()])[1:].view(weights[2].shape)
        x = torch.cat([torch.full_like(x, 9.0), x])[5:]
    assert torch.equal(chain(x, weights=weights), expected)
    recorded = [w.requires_grad_() for w in weights]
    assert torch.equal(chain(x, weights=recorded), expected)
    monkeypatch.setattr(cpu, "DLPACK_TABLE", None)
    assert torch.equal(chain(x, weights=weights), expected)


def test_what_the_dlpack_table_refuses(native) -> None:
    if cpu.DLPACK_TABLE is None:
        pytest.skip("this version of torch has no table")
    extension = importlib.import_module("fastmalade._cpu")
    x = torch.rand(2, 1, 8, 12)

    def read(x=x, weights=WEIGHTS, types=PLAIN_TYPES):
        return extension.read_model(cpu.DLPACK_TABLE, types, x, tuple(weights))

    assert isinstance(read(), extension.Model)
    assert read(types=(torch.nn.Parameter,)) is None
    for other in (
        torch._neg_view(-x),
        x.double(),
        x[0],
        x[:0],
        x.transpose(2, 3),
        x.to("meta"),
        torch.rand(2, 2, 8, 12),
    ):
        assert read(x=other) is None
    for n, w in enumerate(WEIGHTS):
        for other in (w.double(), w[:0], w[None], w.half(), torch._neg_view(-w)):
            assert read(weights=[*WEIGHTS[:n], other, *WEIGHTS[n + 1 :]]) is None
        if n not in (1, 3, 5):
            assert read(weights=[*WEIGHTS[:n], torch.cat([w, w]), *WEIGHTS[n + 1 :]]) is None
    assert read(weights=WEIGHTS[:9]) is None
    with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
        extension.read_model(importlib.import_module("datetime").datetime_CAPI, PLAIN_TYPES, x, tuple(WEIGHTS))


def test_extension_checks_addresses_itself(native) -> None:
    extension = importlib.import_module("fastmalade._cpu")
    model = {"batch": 1, "sizes": [1, 8, 8, 3, 4], "weights": [64] * 10, "x": 64}

    def made(**changed):
        return extension.Model(**{**model, **changed})

    with pytest.raises(ValueError, match="weights: expected 10 addresses, got 9"):
        made(weights=[64] * 9)
    with pytest.raises(ValueError, match="weights: expected an address, got 0"):
        made(weights=[0] * 10)
    with pytest.raises(ValueError, match="x: expected an address that is a multiple of 4, got 66"):
        made(x=66)
    with pytest.raises(ValueError, match="batch: expected at least 0, got -1"):
        made(batch=-1)
    with pytest.raises(ValueError, match=r"shape: expected 5 sizes .*, got 4"):
        made(sizes=[1, 8, 8, 3])
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        extension.autoencoder_forward(made(), "baseline", "auto", 64, 0)
    with pytest.raises(ValueError, match="out: expected an address, got 0"):
        extension.autoencoder_forward(made(), "baseline", "auto", 0, 1)
    with pytest.raises(ValueError, match="hidden1: expected at least 1, got 0"):
        extension.scratch_bytes("baseline", [1, 8, 8, 0, 4])


def test_forced_instruction_set(native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMALADE_CPU_ISA", raising=False)
    assert cpu.isa_in_use() == cpu.isas_supported()[-1]
    assert cpu.isas_built()[0] == cpu.isas_supported()[0] == "baseline"
    for name in cpu.isas_supported():
        monkeypatch.setenv("FASTMALADE_CPU_ISA", name)
        assert cpu.isa_in_use() == name
    monkeypatch.setenv("FASTMALADE_CPU_ISA", "sse9")
    with pytest.raises(BackendUnavailableError, match=r"expected .*got 'sse9' \(this build has baseline"):
        chain(torch.rand(1, 1, 8, 8))


def test_instruction_set_the_processor_lacks(native, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever this processor has, an extension that reports less support must be believed.
    class Poorer:
        def isas_built(self) -> list[str]:
            return ["baseline", "avx2", "avx512"]

        def isas_supported(self) -> list[str]:
            return ["baseline"]

        def environment(self, name: str) -> str | None:
            return os.environ.get(name)

    monkeypatch.setattr(cpu_extension, "_extension", Poorer())
    monkeypatch.setenv("FASTMALADE_CPU_ISA", "avx2")
    with pytest.raises(BackendUnavailableError, match=r"got 'avx2' \(this processor lacks it\)"):
        cpu.isa_in_use()


def test_extension_refuses_an_instruction_set_it_cannot_run(native) -> None:
    extension = importlib.import_module("fastmalade._cpu")
    with pytest.raises(ValueError, match=r"instruction set: expected one of baseline.*, got sse9"):
        extension.lanes("sse9")
    lacking = sorted(set(cpu.isas_built()) - set(cpu.isas_supported()))
    if not lacking:
        pytest.skip("this processor runs every instruction set that was built")
    with pytest.raises(ValueError, match=f"instruction set {lacking[0]} is not supported by this processor"):
        extension.lanes(lacking[0])


def test_resolve_requests(native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMALADE_BACKEND", raising=False)
    fitting = {"device": CPU, "dtype": torch.float32}
    assert backends.resolve(None, **fitting) == "cpu"
    assert backends.resolve("torch", **fitting) == "torch"
    assert backends.resolve(None, **{**fitting, "dtype": torch.float64}) == "torch"
    assert backends.resolve(None, **{**fitting, "device": torch.device("meta")}) == "torch"
    with pytest.raises(BackendUnavailableError, match=r"expected dtype torch\.float32, got torch\.float64"):
        backends.resolve("cpu", **{**fitting, "dtype": torch.float64})
    with pytest.raises(ValueError, match=r"expected one of torch, cpu.*, got 'gpu'"):
        backends.resolve("gpu", **fitting)
    monkeypatch.setenv("FASTMALADE_BACKEND", "torch")
    assert backends.resolve(None, **fitting) == "torch"
    assert backends.resolve("cpu", **fitting) == "cpu"
    monkeypatch.setenv("FASTMALADE_BACKEND", "fpga")
    with pytest.raises(ValueError, match=r"FASTMALADE_BACKEND.*got 'fpga'"):
        backends.resolve(None, **fitting)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.delenv("FASTMALADE_BACKEND", raising=False)
    monkeypatch.setattr(cpu_extension, "_extension", None)
    monkeypatch.setattr(extensions.importlib, "import_module", missing)
    reason = cpu.unavailable_reason()
    assert reason is not None
    assert "cannot be loaded" in reason
    assert backends.available()["cpu"] == reason
    assert backends.available()["torch"] is None
    fitting = {"device": CPU, "dtype": torch.float32}
    assert backends.resolve(None, **fitting) == "torch"
    with pytest.raises(BackendUnavailableError, match="cannot be loaded"):
        backends.resolve("cpu", **fitting)
    with pytest.raises(BackendUnavailableError, match="cannot be loaded"):
        chain(torch.rand(1, 1, 8, 8))


def test_concurrent_callers(isa: str) -> None:
    torch.set_num_threads(2)
    inputs = [torch.rand(17, 1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(6)]
    expected = [chain(x, seed=n) for n, x in enumerate(inputs)]
    results: list[list[torch.Tensor]] = [[] for _ in inputs]

    def call(n: int) -> None:
        for _ in range(20):
            results[n].append(chain(inputs[n], seed=n))

    callers = [threading.Thread(target=call, args=(n,)) for n in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for n, wanted in enumerate(expected):
        assert len(results[n]) == 20
        assert all(torch.equal(result, wanted) for result in results[n])


def _chain_in_child(connection, x: torch.Tensor) -> None:
    # Plain Python numbers travel: a tensor would open shared memory that the child takes with it.
    connection.send(chain(x).flatten().tolist())
    connection.close()


def test_fork_after_use(native) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this platform does not fork")
    torch.set_num_threads(2)
    x = torch.rand(33, 1, 8, 8)
    expected = chain(x)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_chain_in_child, args=(sender, x))
    child.start()
    sender.close()
    assert receiver.poll(60), "the forked child did not answer"
    assert receiver.recv() == expected.flatten().tolist()
    child.join(60)
    assert child.exitcode == 0


def test_working_memory_is_stated_per_thread(native) -> None:
    extension = importlib.import_module("fastmalade._cpu")
    for name in native.isas_supported():
        lanes = extension.lanes(name)
        size = extension.scratch_bytes(name, [1, 28, 28, 10, 25])
        # State, both hidden layers, the even pixels and four rows of one group; the larger spectra of the inputs
        # (conv2's) and of the outputs (deconv1's); margins.
        needed = 4 * lanes * (784 + 10 * 196 + 25 * 49 + 196 + 4 * 28 + 64 * 4 * 10 + 81 * 4 * 10)
        assert needed <= size <= needed + 4096
