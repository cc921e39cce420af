"""Why the printed weight makes MALADE's field MALA's: under Theorem 1's assumption (000) labels pull nowhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import fastmalade
from fastmalade import Purifier


def test_the_expected_score_of_the_labels_vanishes(digits):
    """Labels drawn from p(y | x) itself: sum_y p(y | x) grad log p(y | x) = grad sum_y p(y | x) = grad 1."""
    classifier = fastmalade.load_classifier("mnist-c").double()
    x = (digits[0][:8].double() * 0.6 + 0.2).requires_grad_(True)
    scores = []
    for label in range(10):
        log_p = F.log_softmax(classifier(x), dim=1)[:, label]
        (score,) = torch.autograd.grad(log_p.sum(), x)
        scores.append(score)
    p = classifier(x).softmax(1).detach()
    expected = torch.einsum("bk,kbchw->bchw", p, torch.stack(scores))
    largest = max(float((p[:, k, None, None, None] * scores[k]).abs().max()) for k in range(10))
    assert largest > 1e-3  # the terms do not vanish, their sum does
    assert float(expected.abs().max()) < 1e-12 * max(1.0, largest)


def test_so_does_the_supervised_part_of_the_objective(digits):
    """The gradient of the expected cross entropy behind r with respect to the weights of r, labels from p(y | r(x))."""
    classifier = fastmalade.load_classifier("mnist-c").double()
    autoencoder = Purifier.from_pretrained("mala-mnist").autoencoder.double().requires_grad_(True)
    x = digits[0][:4].double()
    logits = classifier(autoencoder(x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))))
    own = -(logits.detach().softmax(1) * F.log_softmax(logits, dim=1)).sum()
    given = F.cross_entropy(logits, digits[1][:4], reduction="sum")
    weights = list(autoencoder.parameters())
    vanishing, other = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True)]).norm()
        for loss in (own, given)
    )
    entropy = -(logits.softmax(1) * F.log_softmax(logits, dim=1)).sum()
    moving = torch.cat([g.flatten() for g in torch.autograd.grad(entropy, weights)]).norm()
    assert float(vanishing) < 1e-10 * max(1.0, float(other))
    assert float(moving) > 1e-6  # that of the entropy, whose labels move along, does not
