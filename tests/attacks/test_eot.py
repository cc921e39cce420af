"""Batched EOT against one call per draw, and the verdict against counting."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastmalade import DefendedClassifier, eot_gradient
from fastmalade.attacks.eot import Judging, blocks, judge
from fastmalade.attacks.target import Target
from fastmalade.seeds import derive_seed


def by_hand(defended, x, labels, samples, seed, ids, gradient="unrolled"):
    """Mean over draws of the gradient of each draw's loss, one call per image and draw."""
    mode = "unrolled" if gradient == "blind" else gradient
    model = DefendedClassifier(defended.purifier, defended.classifier, gradient=mode, n_chains=defended.n_chains)
    gradients, losses = [], []
    for i, image_id in enumerate(ids):
        draws = []
        for k in range(samples):
            leaf = x[i : i + 1].clone().requires_grad_(True)
            if gradient == "blind":
                logits = defended.classifier(leaf)
            else:
                logits = model(leaf, seed=seed, sample_ids=[(image_id * samples + k) % 2**64])
            loss = F.cross_entropy(logits, labels[i : i + 1])
            draws.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        gradients.append(torch.stack(draws))
    return torch.stack(gradients)[:, :, 0], torch.stack(losses).reshape(len(x), samples)


@pytest.mark.parametrize("ids", [[5, 0, 77], [2**61 + 3, 2**63, 2**64 - 1]], ids=["small", "large"])
@pytest.mark.parametrize("gradient", ["unrolled", "bpda", "blind"])
def test_the_mean_of_single_draws(defended, few, gradient, ids):
    x, y = few[0][:3], few[1][:3]
    found = eot_gradient(defended, x, y, samples=5, gradient=gradient, seed=9, sample_ids=ids, spread=True)
    draws, losses = by_hand(defended, x, y, 5, 9, ids, gradient)
    torch.testing.assert_close(found.gradient, draws.mean(1), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.loss, losses.mean(1), rtol=1e-4, atol=1e-6)
    expected = F.cosine_similarity(draws[:, :2].sum(1).flatten(1), draws[:, 2:].sum(1).flatten(1))
    torch.testing.assert_close(found.spread.float(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(3), rtol=1e-5, atol=1e-6)


def test_a_vote_of_chains_inside_each_draw(purifier, linear, few):
    defended = DefendedClassifier(purifier, linear, n_chains=2)
    x, y = few[0][:2], few[1][:2]
    found = eot_gradient(defended, x, y, samples=3, seed=1)
    draws, _ = by_hand(defended, x, y, 3, 1, range(2))
    torch.testing.assert_close(found.gradient, draws.mean(1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("max_bytes", [1, 300_000, 700_000])
def test_memory_changes_rounding_only(defended, few, max_bytes):
    x, y = few[0][:5], few[1][:5]
    options = {"samples": 6, "seed": 2, "spread": True}
    whole = eot_gradient(defended, x, y, **options)
    parts = eot_gradient(defended, x, y, max_bytes=max_bytes, **options)
    assert Target(defended).chains_per_call(x, max_bytes) < 30
    torch.testing.assert_close(parts.gradient, whole.gradient, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.spread, whole.spread, rtol=1e-4, atol=1e-5)


def test_one_call_for_all_draws(defended, few):
    calls = []
    handle = defended.purifier.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    eot_gradient(defended, *few, samples=8, seed=0)
    handle.remove()
    assert calls == [8 * len(few[0])]


def test_seeds(defended, few):
    options = {"samples": 2}
    first = eot_gradient(defended, *few, seed=3, **options).gradient
    assert torch.equal(first, eot_gradient(defended, *few, seed=3, **options).gradient)
    assert not torch.equal(first, eot_gradient(defended, *few, seed=4, **options).gradient)
    fresh = [eot_gradient(defended, *few, **options).gradient for _ in range(2)]
    assert not torch.equal(*fresh)
    assert derive_seed(0, 1) != derive_seed(1, 0) != derive_seed(0, 1, 0)


def test_spread_tells_noise_from_signal(purifier, linear, few):
    quiet = DefendedClassifier(purifier, linear)
    purifier.chain = purifier.chain.replace(noise_scale=0.001, clamp="none")
    calm = eot_gradient(quiet, *few, samples=4, seed=0, spread=True).spread.mean()
    purifier.chain = purifier.chain.replace(noise_scale=1.0)
    noisy = eot_gradient(quiet, *few, samples=4, seed=0, spread=True).spread.mean()
    assert float(calm) > 0.999
    assert float(noisy) < float(calm) - 0.01


def test_margin_does_not_vanish_where_cross_entropy_does(linear, few):
    def certain(x):
        return 100.0 * linear(x)

    x, y = few
    right = linear(x).argmax(1) == y
    cross_entropy = eot_gradient(certain, x, y, samples=1).gradient
    margin = eot_gradient(certain, x, y, samples=1, loss="margin").gradient
    dead = (cross_entropy.flatten(1) == 0).all(1) & right
    assert int(dead.sum()) >= 3
    assert bool((margin[dead].flatten(1) != 0).any(1).all())
    logits = certain(x)
    expected = torch.stack(
        [max(v for k, v in enumerate(row) if k != int(c)) - row[int(c)] for row, c in zip(logits, y, strict=True)]
    )
    torch.testing.assert_close(eot_gradient(certain, x, y, samples=1, loss="margin").loss, expected)


@pytest.mark.parametrize(("n", "k", "rows"), [(5, 3, 7), (5, 3, 3), (4, 9, 4), (1, 1, 1), (3, 2, 100), (0, 2, 4)])
def test_blocks_cover_each_draw_once(n, k, rows):
    seen = torch.zeros(n, k, dtype=torch.int64)
    for part, draws in blocks(n, k, rows):
        seen[part, draws.start : draws.stop] += 1
        assert (part.stop - part.start) * len(draws) <= rows
    assert bool((seen == 1).all())


def test_judge_counts(few):
    """A model whose answers are known: right in the first queries of each image, wrong in the rest."""
    x, y = few
    wrong_of_five = torch.arange(len(x)) % 6

    class Scripted(torch.nn.Module):
        def forward(self, rows):
            assert len(rows) == 5 * len(x)
            query = torch.arange(5).repeat(len(x))
            wrong = query >= 5 - wrong_of_five.repeat_interleave(5)
            return F.one_hot(torch.where(wrong, y.repeat_interleave(5) + 1, y.repeat_interleave(5)) % 10, 10).float()

    def found(labels, **judging):
        return judge(Target(Scripted()), x, labels, 0, torch.arange(len(x)), Judging(chains=5, **judging), rows=1000)

    success, share = found(y)
    torch.testing.assert_close(share, wrong_of_five.double() / 5)
    assert torch.equal(success, wrong_of_five >= 3)
    success, _ = found(y, rule="mean")
    assert torch.equal(success, wrong_of_five >= 3)
    reached, share = found((y + 1) % 10, targeted=True)
    torch.testing.assert_close(share, wrong_of_five.double() / 5)
    assert torch.equal(reached, wrong_of_five >= 3)


def test_wrong_arguments(defended, linear, few):
    x, y = few
    with pytest.raises(TypeError, match="images: expected a torch tensor"):
        eot_gradient(defended, x.numpy(), y)
    with pytest.raises(TypeError, match="labels: expected int64"):
        eot_gradient(defended, x, y.int())
    with pytest.raises(ValueError, match="labels: expected shape"):
        eot_gradient(defended, x, y[:3])
    with pytest.raises(ValueError, match="labels: expected classes >= 0"):
        eot_gradient(defended, x, y - 1)
    with pytest.raises(ValueError, match="samples: expected at least 2"):
        eot_gradient(defended, x, y, samples=1, spread=True)
    with pytest.raises(ValueError, match="need a DefendedClassifier"):
        eot_gradient(linear, x, y, gradient="bpda")
    with pytest.raises(ValueError, match="loss"):
        eot_gradient(defended, x, y, loss="hinge")
    with pytest.raises(FloatingPointError, match=r"1 of 16 images"):
        eot_gradient(lambda v: linear(v) * torch.where(torch.arange(16) == 3, torch.nan, 1.0)[:, None], x, y, samples=1)
