"""Whole runs with contenders made for it: failures, resuming, interruption, and what the result says."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from fastmalade.bench import Settings, machine, run, runner
from fastmalade.bench.contenders import Native, select
from fastmalade.bench.settings import parse_shape
from fastmalade.bench.timing import Summary

SHAPES = ((1, 8, 12),)


pytestmark = pytest.mark.usefixtures("quick_measurements")


@pytest.fixture
def settings():
    return Settings(peers=("none",), batches=(1, 3), steps=(2,), shapes=SHAPES, seconds=0.0)


def cells(result):
    return {(cell["contender"], cell["batch"]): cell for cell in result["cells"]}


def test_real_contenders(tmp_path):
    settings = Settings(peers=("eager", "eager-rewritten"), batches=(2,), steps=(1, 2), shapes=SHAPES, seconds=0.0)
    output = tmp_path / "bench.json"
    result = run(settings, output=output)
    assert json.loads(output.read_text()) == result
    assert result["complete"]
    native = [] if Native().unavailable_reason() else ["native"]
    expected = [*native, "eager", "eager-rewritten"]
    assert [(c["contender"], c["steps"]) for c in result["cells"]] == [(k, n) for n in (1, 2) for k in expected]
    for cell in result["cells"]:
        times = cell["us_per_image"]
        assert 0 < times["fastest"] <= times["low"] <= times["median"] <= times["high"]
        assert times["repetitions"] >= times["rounds"] >= 3
        assert cell["verification"]["error"] <= cell["verification"]["allowed"]
        assert cell["shape"] == "1x8x12"
    assert result["cells"][-1]["flops_per_image"] == 2 * result["cells"][0]["flops_per_image"]
    assert {"fastmalade", "torch", "python"} <= set(result["versions"])
    assert result["ceilings"]["copy_bytes_per_second"] > 1e6
    assert result["machine"]["processor"]


def test_gradients_leave_out_who_has_none(fake):
    settings = Settings(peers=("none",), batches=(2,), steps=(1,), shapes=SHAPES, seconds=0.0, gradient=True)
    result = run(settings, contenders=[*select(["eager"])[1:], fake()])
    assert [cell["contender"] for cell in result["cells"]] == ["eager"]
    assert result["contenders"]["fake"]["reason"] == "has no gradient"


def test_a_contender_that_is_wrong_is_reported_and_never_timed(settings, fake):
    def broken(task):
        raise RuntimeError("no such\n operator")

    wrong = fake("wrong", result=lambda result, images: result * np.float32(0.9))
    absent = fake("absent", reason="needs a library")
    result = run(settings, contenders=[fake(), wrong, fake("broken", task=broken), absent])
    found = cells(result)
    assert {key for key, cell in found.items() if "us_per_image" in cell} == {("fake", 1), ("fake", 3)}
    assert "noiseless result: expected" in found["wrong", 1]["failed_forms"][""]
    assert found["broken", 3]["failed_forms"] == {"": "RuntimeError: no such operator"}
    assert ("absent", 1) not in found
    assert result["contenders"]["absent"]["reason"] == "needs a library"
    assert absent.prepared == 0


def test_the_fastest_form_that_passes_is_kept(settings, fake, monkeypatch):
    class Forms(fake):
        forms = ("slow", "fast", "wrong")

        def prepare(self, task, form):
            chain = super().prepare(task, form)
            return (lambda images: chain(images) * np.float32(0.9)) if form == "wrong" else chain

    def timed(calls, images, **options):
        return {name: Summary(5.0, 2.0 if name == "slow" else 1.0, 9.0, 1.0, 3, 3) for name in calls}

    monkeypatch.setattr(runner, "interleaved", timed)
    found = cells(run(settings, contenders=[Forms()]))["fake", 1]
    assert found["form"] == "fast"
    assert list(found["failed_forms"]) == ["wrong"]
    assert found["screening_us_per_image"] == {"slow": 2.0, "fast": 1.0}


def test_resume_keeps_cells_and_measures_the_rest(tmp_path, settings, fake, monkeypatch):
    output = tmp_path / "bench.json"
    first = run(settings, output=output, contenders=[fake()])
    again, other = fake(), fake("other")
    second = run(settings, output=output, resume=True, contenders=[again, other])
    assert again.prepared == 0
    assert other.prepared > 0
    assert second["cells"][:2] == first["cells"]
    assert list(cells(second)) == [("fake", 1), ("fake", 3), ("other", 1), ("other", 3)]

    # Without --resume, at another commit or with other seconds everything is measured.
    changed = Settings(peers=("none",), batches=(1, 3), steps=(2,), shapes=SHAPES, seconds=0.001)
    for choices, resume in ((settings, False), (changed, True)):
        fresh = fake()
        result = run(choices, output=output, resume=resume, contenders=[fresh])
        assert fresh.prepared > 0
        assert any("nothing was kept" in warning for warning in result["warnings"]) == resume
    monkeypatch.setattr(machine, "commit", lambda: {"id": "0" * 40, "dirty": False})
    fresh = fake()
    result = run(changed, output=output, resume=True, contenders=[fresh])
    assert fresh.prepared > 0
    assert "nothing was kept of the earlier result: commit differ" in " ".join(result["warnings"])


def test_resume_tries_again_what_failed(tmp_path, settings, fake):
    output = tmp_path / "bench.json"
    failing = fake("sometimes", result=lambda result, images: result + np.float32(1.0))
    first = run(settings, output=output, contenders=[fake(), failing])
    assert not any("us_per_image" in cell for (name, _), cell in cells(first).items() if name == "sometimes")
    second = run(settings, output=output, resume=True, contenders=[fake(), fake("sometimes")])
    assert len(second["cells"]) == 4
    assert all("us_per_image" in cell for cell in second["cells"])


def test_resume_refuses_a_foreign_file(tmp_path, settings, fake):
    output = tmp_path / "other.json"
    output.write_text('{"kind": "something else"}')
    with pytest.raises(ValueError, match="expected a result of fastmalade bench"):
        run(settings, output=output, resume=True, contenders=[fake()])
    assert output.read_text() == '{"kind": "something else"}'


def test_an_interrupted_run_leaves_what_it_has_done(tmp_path, settings, fake):
    output = tmp_path / "bench.json"

    def interrupt(task):
        if task.batch == 3:
            raise KeyboardInterrupt
        return task

    with pytest.raises(KeyboardInterrupt):
        run(settings, output=output, contenders=[fake(), fake("late", task=interrupt)])
    left = json.loads(output.read_text())
    assert not left["complete"]
    assert list(cells(left)) == [("fake", 1), ("late", 1)]
    resumed = run(settings, output=output, resume=True, contenders=[fake(), fake("late")])
    assert resumed["complete"]
    assert resumed["cells"][:2] == left["cells"]
    assert len(resumed["cells"]) == 4

    # Nothing done yet: an older file stays as it is.
    before = output.read_text()
    at_once = Settings(peers=("none",), batches=(3,), steps=(2,), shapes=SHAPES, seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(at_once, output=output, contenders=[fake("late", task=interrupt)])
    assert output.read_text() == before


def test_progress_goes_from_0_to_1(settings, fake):
    told = []
    run(settings, contenders=[fake()], report=lambda what, part: told.append((what, part)))
    parts = [part for _, part in told]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert told[0] == ("1x8x12, N=2, batch 1: verifying fake", 0.0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_the_process_is_held_to_its_processors_and_let_go():
    before = os.sched_getaffinity(0)
    with machine.pinned(1) as processors:
        assert os.sched_getaffinity(0) == set(processors)
        assert len(processors) == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match=f"threads: expected 1 to {len(before)}.* got {len(before) + 1}"):
        machine.pinned(len(before) + 1).__enter__()
    assert os.sched_getaffinity(0) == before


def test_a_busy_machine_is_a_warning():
    assert machine.warnings(0.1) == []
    assert "load average was 2.5" in machine.warnings(2.5)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "batches: expected at least one"),
        ({"batches": (0, 1)}, "batches: expected at least 1, got 0"),
        ({"steps": (0,)}, "steps: expected at least 1, got 0"),
        ({"shapes": ((1, 28, 30),)}, "shapes: expected CxHxW with H and W positive multiples of 4, got 1x28x30"),
        ({"seconds": -1.0}, "seconds: expected at least 0"),
        ({"peers": ("nobody",)}, "got 'nobody'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_shapes():
    assert parse_shape("3x32X64") == (3, 32, 64)
    for text in ("28x28", "1x28x", "axbxc", "1x-4x4"):
        with pytest.raises(ValueError, match="expected CxHxW"):
            parse_shape(text)
