"""Interrupted attacks go on to bitwise the result of an uninterrupted one; foreign checkpoints are refused."""

from __future__ import annotations

import pytest
import torch

from fastmalade import DefendedClassifier
from fastmalade.attacks import MIM, PGD, AttackCheckpointError, base
from fastmalade.attacks.state import RunState


class CrashError(Exception):
    """Stands for a crash in the middle of a step."""


def interrupted_after(model, calls, kind):
    """A hook that raises at the given call of the purifier."""
    count = [0]

    def hook(module, args):
        count[0] += 1
        if count[0] > calls:
            raise kind

    return model.purifier.register_forward_pre_hook(hook)


def same(a, b):
    for name in ("adversarial", "success", "success_rate", "losses", "queries", "gradients", "spread"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, CrashError])
@pytest.mark.parametrize("calls", [0, 1, 3, 7, 11])
def test_a_resumed_run_is_bitwise_the_same(defended, few, tmp_path, monkeypatch, kind, calls):
    monkeypatch.setattr(base, "SAVE_SECONDS", 0.0)
    images, labels = few[0][:10], few[1][:10]
    attack = MIM(
        epsilon=0.15,
        steps=3,
        restarts=2,
        random_start=True,
        eot=2,
        spread=True,
        early_stop=True,
        judge_chains=3,
        seed=1,
    )
    whole = attack(defended, images, labels, batch_size=6, progress=False)
    path = tmp_path / "deep" / "attack.safetensors"
    handle = interrupted_after(defended, calls, kind)
    with pytest.raises(kind):
        attack(defended, images, labels, batch_size=6, checkpoint=path, progress=False)
    handle.remove()
    seen = []
    handle = defended.purifier.register_forward_pre_hook(lambda module, args: seen.append(1))
    resumed = attack(defended, images, labels, batch_size=6, checkpoint=path, progress=False)
    handle.remove()
    same(resumed, whole)
    if calls >= 7:
        total = len(whole_calls(attack, defended, images, labels))
        assert len(seen) < total
    assert [p.name for p in path.parent.iterdir()] == ["attack.safetensors"]


def whole_calls(attack, defended, images, labels):
    calls = []
    handle = defended.purifier.register_forward_pre_hook(lambda module, args: calls.append(1))
    attack(defended, images, labels, batch_size=6, progress=False)
    handle.remove()
    return calls


def test_a_finished_run_is_read_back(defended, few, tmp_path):
    attack = PGD(epsilon=0.1, steps=2)
    path = tmp_path / "done"
    first = attack(defended, *few, checkpoint=path, progress=False)
    handle = interrupted_after(defended, 0, AssertionError)
    again = attack(defended, *few, checkpoint=path, progress=False)
    handle.remove()
    assert torch.equal(first.adversarial, again.adversarial)
    assert again.spread is None
    assert again.seconds >= first.seconds > 0


def test_foreign_checkpoints_are_refused(defended, purifier, linear, few, tmp_path):
    images, labels = few
    path = tmp_path / "attack"
    attack = PGD(epsilon=0.1, steps=2)
    attack(defended, images, labels, checkpoint=path, progress=False)
    content = path.read_bytes()
    with pytest.raises(AttackCheckpointError, match="settings"):
        PGD(epsilon=0.2, steps=2)(defended, images, labels, checkpoint=path, progress=False)
    with pytest.raises(AttackCheckpointError, match="settings"):
        attack(defended, images, labels, checkpoint=path, batch_size=3, progress=False)
    with pytest.raises(AttackCheckpointError, match="images"):
        attack(defended, images.flip(0), labels, checkpoint=path, progress=False)
    with pytest.raises(AttackCheckpointError, match="images"):
        attack(defended, images, labels, sample_ids=range(1, 17), checkpoint=path, progress=False)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with pytest.raises(AttackCheckpointError, match="model"):
        attack(DefendedClassifier(purifier, other), images, labels, checkpoint=path, progress=False)
    purifier.chain = purifier.chain.replace(n_steps=2)
    with pytest.raises(AttackCheckpointError, match="model"):
        attack(defended, images, labels, checkpoint=path, progress=False)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "cut"])
def test_damaged_checkpoints_are_refused(defended, few, tmp_path, content):
    path = tmp_path / "attack"
    attack = PGD(epsilon=0.1, steps=1)
    if content == "cut":
        attack(defended, *few, checkpoint=path, progress=False)
        content = path.read_bytes()[:-100]
    path.write_bytes(content)
    with pytest.raises(AttackCheckpointError, match="expected the checkpoint of an attack"):
        attack(defended, *few, checkpoint=path, progress=False)


def test_a_weights_file_is_no_checkpoint(defended, purifier, few, tmp_path):
    path = tmp_path / "weights.safetensors"
    purifier.save_pretrained(path)
    with pytest.raises(AttackCheckpointError, match="format"):
        PGD(epsilon=0.1, steps=1)(defended, *few, checkpoint=path, progress=False)


def test_an_interruption_between_assignments_keeps_the_file_before(defended, few, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "SAVE_SECONDS", 0.0)
    path = tmp_path / "attack"
    attack = PGD(epsilon=0.1, steps=3)
    whole = attack(defended, *few, progress=False)
    changing, count = base._Run._changing, [0]

    def planted(self):
        count[0] += 1
        context = changing(self)
        state = context.__enter__()
        if count[0] == 2:
            state.queries += 1
            raise KeyboardInterrupt
        context.__exit__(None, None, None)
        return changing(self)

    monkeypatch.setattr(base._Run, "_changing", planted)
    with pytest.raises(KeyboardInterrupt):
        attack(defended, *few, checkpoint=path, progress=False)
    monkeypatch.undo()
    same_result = attack(defended, *few, checkpoint=path, progress=False)
    assert torch.equal(same_result.adversarial, whole.adversarial)
    assert torch.equal(same_result.queries, whole.queries)


def test_progress_goes_to_standard_error(defended, few, capfd):
    PGD(epsilon=0.1, steps=2)(defended, *few, progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "PGD" in captured.err
    assert "2/2" in captured.err


def test_states_are_equal_after_a_round_trip(few, tmp_path):
    state = RunState.fresh(few[0], 2, 3, spread=False)
    state.batch = {"x": few[0], "settled": torch.tensor([True, False])}
    state.start, state.restart, state.step, state.seconds = 4, 1, 2, 0.1 + 0.2
    state.save(tmp_path / "s", {"settings": "a"})
    back = RunState.load(tmp_path / "s", {"settings": "a"}, torch.device("cpu"))
    assert (back.start, back.restart, back.step, back.seconds) == (4, 1, 2, 0.1 + 0.2)
    assert back.batch.keys() == state.batch.keys()
    assert torch.equal(back.batch["x"], few[0])
    assert bool(torch.isnan(back.losses).all())
