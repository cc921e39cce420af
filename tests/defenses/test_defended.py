"""DefendedClassifier: values, the three gradients against autograd written by hand, and votes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastmalade import DefendedClassifier

MODES = ["unrolled", "bpda", "blind"]


@pytest.fixture
def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 5))
    with torch.no_grad():
        model[3].weight.mul_(5.0)
    return model.requires_grad_(False).eval()


def loss_gradient(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    labels = torch.arange(len(logits)) % logits.shape[1]
    return torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), x)[0]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("gradient", MODES)
def test_value_of_one_chain_is_the_classifier_on_purified_images(purifier, classifier, make_images, gradient):
    x = make_images(7, 1, 8, 8).requires_grad_()
    model = DefendedClassifier(purifier, classifier, gradient=gradient).eval()
    close(model(x, seed=4), classifier(purifier(x, seed=4)))
    with torch.no_grad():
        close(model(x, seed=4), classifier(purifier(x, seed=4)))


@pytest.mark.parametrize("vote", ["mean", "majority"])
@pytest.mark.parametrize("n_chains", [1, 3])
def test_unrolled_gradient(purifier, classifier, make_images, n_chains, vote):
    x = make_images(4, 1, 8, 8).requires_grad_()
    model = DefendedClassifier(purifier, classifier, n_chains=n_chains, vote=vote)
    parts = []
    for k in range(n_chains):
        ids = torch.arange(4) * n_chains + k
        parts.append(classifier(purifier(x, seed=4, sample_ids=ids)))
    by_hand = parts[0] if n_chains == 1 else torch.stack([p.softmax(1) for p in parts]).mean(0).log()
    # The Jacobian of "majority" is that of "mean"; its loss, which depends on the value, is not.
    cotangent = make_images(4, 5, seed=9) - 0.5
    expected = torch.autograd.grad(by_hand, x, cotangent, retain_graph=True)[0]
    close(torch.autograd.grad(model(x, seed=4), x, cotangent)[0], expected)
    if vote == "mean":
        close(loss_gradient(model(x, seed=4), x), loss_gradient(by_hand, x))


@pytest.mark.parametrize("n_chains", [1, 3])
def test_bpda_takes_the_purifier_as_the_identity(purifier, classifier, make_images, n_chains):
    x = make_images(4, 1, 8, 8).requires_grad_()
    model = DefendedClassifier(purifier, classifier, gradient="bpda", n_chains=n_chains)
    chains = []
    with torch.no_grad():
        for k in range(n_chains):
            chains.append(purifier(x, seed=4, sample_ids=torch.arange(4) * n_chains + k))
    leaves = [c.requires_grad_() for c in chains]
    parts = [classifier(leaf) for leaf in leaves]
    by_hand = parts[0] if n_chains == 1 else torch.stack([p.softmax(1) for p in parts]).mean(0).log()
    loss = nn.functional.cross_entropy(by_hand, torch.arange(4), reduction="sum")
    close(loss_gradient(model(x, seed=4), x), sum(torch.autograd.grad(loss, leaves)))


def test_blind_gradient_is_that_of_the_bare_classifier(purifier, classifier, make_images):
    x = make_images(4, 1, 8, 8).requires_grad_()
    model = DefendedClassifier(purifier, classifier, gradient="blind")
    cotangent = make_images(4, 5)
    (got,) = torch.autograd.grad(model(x, seed=4), x, cotangent)
    close(got, torch.autograd.grad(classifier(x), x, cotangent)[0])
    several = DefendedClassifier(purifier, classifier, gradient="blind", n_chains=3)
    (got,) = torch.autograd.grad(several(x, seed=4), x, cotangent)
    close(got, torch.autograd.grad(classifier(x).log_softmax(1), x, cotangent)[0])


def test_gradient_modes_differ_and_values_agree(purifier, classifier, make_images):
    x = make_images(4, 1, 8, 8).requires_grad_()
    models = [DefendedClassifier(purifier, classifier, gradient=g, n_chains=3) for g in MODES]
    values = [m(x, seed=1) for m in models]
    gradients = [loss_gradient(v, x) for v in values]
    for k in (1, 2):
        close(values[k].detach(), values[0].detach())
        assert not torch.allclose(gradients[k], gradients[0], atol=1e-3)


def test_mean_vote(purifier, classifier, make_images):
    x = make_images(6, 1, 8, 8)
    model = DefendedClassifier(purifier, classifier, n_chains=3)
    parts = [classifier(purifier(x, seed=2, sample_ids=torch.arange(6) * 3 + k)).softmax(1) for k in range(3)]
    close(model(x, seed=2), torch.stack(parts).mean(0).log())
    close(model(x, seed=2).exp().sum(1), torch.ones(6))


class Fixed(nn.Module):
    """Logits by position in the batch, whatever the images."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, x):
        return self.rows + 0 * x.flatten(1).sum(1, keepdim=True)


def test_majority_vote_and_ties(purifier, make_images):
    # Two chains weakly for class 0, one strongly for class 1: mean and majority disagree.
    disagreement = [[0.2, 0.0, -9.0], [0.2, 0.0, -9.0], [-9.0, 9.0, -9.0]]
    # One vote each: the mean softmax decides, for class 2.
    tie = [[1.0, 0.0, 0.9], [0.0, 1.0, 0.9], [0.0, 0.0, 9.0]]
    x = make_images(2, 1, 8, 8)
    fixed = Fixed(disagreement + tie)
    majority = DefendedClassifier(purifier, fixed, n_chains=3, vote="majority")(x)
    mean = DefendedClassifier(purifier, fixed, n_chains=3, vote="mean")(x)
    assert majority.argmax(1).tolist() == [0, 2]
    assert mean.argmax(1).tolist() == [1, 2]
    close(majority.exp().sum(1), torch.ones(2))
    probabilities = torch.tensor(disagreement).softmax(1).mean(0)
    close(majority[0], ((torch.tensor([2.0, 1.0, 0.0]) + probabilities) / 4).log())


def test_saturated_logits_stay_finite(purifier, make_images):
    rows = [[1e4, 0.0, -1e4]] * 3
    x = make_images(1, 1, 8, 8).requires_grad_()
    for vote in ("mean", "majority"):
        value = DefendedClassifier(purifier, Fixed(rows), n_chains=3, vote=vote)(x)
        assert bool(torch.isfinite(value).all())
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert bool(torch.isfinite(gradient).all())


def test_randomness(purifier, classifier, make_images):
    x = make_images(4, 1, 8, 8)
    model = DefendedClassifier(purifier, classifier, n_chains=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = model(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert not torch.equal(model(x), first)
    assert torch.equal(model(x, seed=3), model(x, seed=3))
    fixed = DefendedClassifier(purifier, classifier, n_chains=2, seed=3)
    assert torch.equal(fixed(x), model(x, seed=3))
    assert not torch.equal(fixed(x, seed=4), fixed(x))
    close(model(x[2:], seed=3, sample_ids=[2, 3]), model(x, seed=3)[2:])


def test_chains_of_one_image_have_noise_of_their_own(purifier, make_images):
    """With a classifier that returns pixels, the spread over chains shows in the mean of the softmax."""
    x = make_images(1, 1, 8, 8)
    seen = []

    def record(images):
        seen.append(images)
        return images.flatten(1)

    DefendedClassifier(purifier, record, n_chains=4)(x, seed=1)
    (images,) = seen
    assert images.shape == (4, 1, 8, 8)
    assert all(not torch.equal(images[j], images[k]) for j in range(4) for k in range(j))


def test_copies(purifier, classifier, make_images):
    model = DefendedClassifier(purifier, classifier, n_chains=2, vote="majority", seed=1)
    x = make_images(2, 1, 8, 8)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_empty_batch(purifier, classifier):
    for gradient in MODES:
        for n_chains in (1, 3):
            model = DefendedClassifier(purifier, classifier, gradient=gradient, n_chains=n_chains)
            assert model(torch.zeros(0, 1, 8, 8)).shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"purifier": nn.Identity()}, TypeError, "purifier: expected a Purifier or another Defense, got Identity"),
        ({"classifier": None}, TypeError, "classifier: expected"),
        ({"gradient": "exact"}, ValueError, "gradient: expected one of unrolled, bpda, blind, got 'exact'"),
        ({"vote": "median"}, ValueError, "vote: expected one of mean, majority, got 'median'"),
        ({"n_chains": 0}, ValueError, "n_chains: expected n_chains >= 1, got 0"),
        ({"n_chains": 2.0}, TypeError, "n_chains: expected an int, got float"),
        ({"seed": math.pi}, TypeError, "seed: expected"),
    ],
)
def test_arguments_are_checked(purifier, classifier, change, error, message):
    with pytest.raises(error, match=message):
        DefendedClassifier(**{"purifier": purifier, "classifier": classifier, **change})


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("gradient", MODES)
def test_compiled_as_one_graph(purifier, classifier, make_images, gradient):
    model = DefendedClassifier(purifier, classifier, gradient=gradient, seed=4).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = make_images(5, 1, 8, 8).requires_grad_()
    found, expected = compiled(x), model(x)
    close(found, expected)
    close(loss_gradient(found, x), loss_gradient(expected, x))


@pytest.mark.usefixtures("fresh_compiler")
def test_exported_with_its_classifier(purifier, classifier, make_images):
    model = DefendedClassifier(purifier, classifier).eval()
    seeded = DefendedClassifier(purifier, classifier, seed=4).eval()
    x, batch = make_images(5, 1, 8, 8), torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
        assert not torch.equal(program(x), program(x))  # fresh noise inside the exported graph, too
        assert program(make_images(9, 1, 8, 8)).shape == (9, 5)
        close(torch.export.export(seeded, (x,)).module()(x), seeded(x))
