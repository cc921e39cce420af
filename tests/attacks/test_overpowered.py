"""The overpowered attack finds what it claims, and robust training takes it away."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastmalade import Defense, load_classifier
from fastmalade.attacks.overpowered import find_pairs, judge_pairs, train_robust


class _Line(nn.Module):
    """G(z) = z as a 1x1 image."""

    latent_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, z):
        return self.scale * z[:, :, None, None]


def _threshold(sharpness: float) -> nn.Module:
    """Two classes with the border at 0.3."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[sharpness], [-sharpness]]))
        model[1].bias.copy_(torch.tensor([-0.3 * sharpness, 0.3 * sharpness]))
    return model.eval()


def test_pairs_lie_on_both_sides_of_a_known_border():
    start = (torch.linspace(0.22, 0.36, 4)[:, None], torch.linspace(0.24, 0.38, 4)[:, None])
    settings = {"n_steps": 500, "distance": 4e-4, "valid_distance": 5e-4, "rate": 2e-3}
    pairs = find_pairs(_Line(), _threshold(15.0), 4, start=start, **settings)
    assert bool(pairs.valid.all())
    assert bool(pairs.changed.all())
    assert pairs.share_changed == 1.0
    # Farthest apart in probability at the distance allowed is what lies evenly around the border, at the limit.
    middle = (pairs.first + pairs.second).flatten() / 2
    torch.testing.assert_close(middle, torch.full((4,), 0.3), rtol=0, atol=4e-3)
    torch.testing.assert_close(pairs.distance, torch.full((4,), 5e-4), rtol=0.1, atol=0)
    p = torch.sigmoid(30 * (pairs.first.flatten() - 0.3))
    q = torch.sigmoid(30 * (pairs.second.flatten() - 0.3))
    expected = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    torch.testing.assert_close(pairs.divergence, expected, rtol=1e-3, atol=1e-4)


def test_a_flat_classifier_has_no_pairs():
    pairs = find_pairs(_Line(), _threshold(0.0), 3, n_steps=20)
    assert not bool(pairs.changed.any())
    assert float(pairs.divergence.abs().max()) < 1e-6
    far = find_pairs(_Line(), _threshold(0.0), 3, n_steps=0, spread=5.0)
    assert math.isnan(far.share_changed)


def test_repeatable_and_batch_independent():
    generator = Defense.from_pretrained("inc-mnist").generator
    classifier = load_classifier("mnist-c")
    pairs, again = (find_pairs(generator, classifier, 3, n_steps=4, seed=7) for _ in range(2))
    assert torch.equal(pairs.first, again.first)
    fewer = find_pairs(generator, classifier, 2, n_steps=4, seed=7)
    torch.testing.assert_close(fewer.second, pairs.second[:2], rtol=0, atol=1e-4)
    judged = judge_pairs(pairs, generator, classifier)
    torch.testing.assert_close(judged.divergence, pairs.divergence)
    assert torch.equal(judged.changed, pairs.changed)


def test_robust_training_softens_the_border(tmp_path):
    generator, classifier = _Line(), _threshold(30.0)
    x = torch.rand(64, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    # What lies near the border has either label, so that cross entropy alone would not keep it sharp.
    y = ((x.flatten() < 0.3) ^ (torch.arange(64) % 7 == 0)).long()
    settings = {"distance": 4e-4, "valid_distance": 5e-4, "n_steps": 150, "rate": 2e-3}
    start = (torch.full((4, 1), 0.25), torch.full((4, 1), 0.27))
    before = find_pairs(generator, classifier, 4, start=start, **settings)
    trained = copy.deepcopy(classifier)
    options = {"epochs": 6, "batch_size": 16, "learning_rate": 1.0, "inner_steps": 8, "pairs": 8, "progress": False}
    report = train_robust(trained, generator, x, y, checkpoint=tmp_path / "run.pt", **options)
    assert len(report.history) == 6
    after = find_pairs(generator, trained, 4, start=start, **settings)
    assert float(after.divergence.mean()) < 0.5 * float(before.divergence.mean())
    assert float(judge_pairs(before, generator, trained).divergence.mean()) < 0.5 * float(before.divergence.mean())
    resumed = copy.deepcopy(classifier)
    train_robust(resumed, generator, x, y, checkpoint=tmp_path / "run.pt", **options)
    assert torch.equal(resumed[1].weight, trained[1].weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_pairs": 0}, "n_pairs: expected at least 1"),
        ({"n_pairs": 1, "rate": 0.0}, "rate: expected a positive number"),
        ({"n_pairs": 1, "distance": -1.0}, "distance: expected a positive number"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        find_pairs(_Line(), _threshold(1.0), **settings)
    with pytest.raises(ValueError, match="mix: expected a number in"):
        train_robust(_threshold(1.0), _Line(), torch.zeros(2, 1, 1, 1), torch.zeros(2).long(), mix=1.0)


class _Dropping(nn.Module):
    """Logits of the first pixel, behind dropout; notes in which mode it ran."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout, self.modes = nn.Linear(1, 2), nn.Dropout(0.5), []

    def forward(self, x):
        self.modes.append(self.training)
        return self.linear(self.dropout(x.flatten(1)[:, :1]))


def test_pairs_are_compared_without_dropout():
    classifier = _Dropping().train()
    train_robust(
        classifier,
        _Line(),
        torch.rand(8, 1, 1, 1),
        torch.zeros(8).long(),
        pairs=2,
        inner_steps=1,
        batch_size=4,
        progress=False,
    )
    # Of each batch the last two: the pairs without dropout, the images with it.
    per_batch = len(classifier.modes) // 2
    for first in (0, per_batch):
        assert classifier.modes[first : first + per_batch][-2:] == [False, True]
