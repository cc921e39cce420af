"""Sample ids under torch.compile(fullgraph=True): every kind of them, one after the other, as in eager mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_defenses import small_defense

from fastmalade import DefendedClassifier, Purifier

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


KINDS = {
    "lists": [[1, 2, 3], [7, 5, 9], [0, 2**40, 4], [2**63, 1, 2**64 - 1]],
    "tuples": [(3, 1, 2), (8, 8, 0), (2**64 - 1, 0, 2**63 + 7)],
    "ranges": [range(3), range(4, 7), range(9, 12), range(8, 2, -2), range(2, -1, -1), range(2**63 - 2, 2**63 + 1)],
    "arrays": [np.array([4, 0, 9]), np.array([1, 2**63 + 5, 2], dtype=np.uint64), np.arange(3, dtype=np.int16)],
    "tensors": [torch.tensor([4, 0, 9]), torch.tensor([1, -5, 2]).view(torch.uint64), torch.arange(3).to(torch.int32)],
    "lists of numpy's": [[np.int64(4), 0, np.int64(7)]],
}


def models():
    purifier = small_defense("malade")
    flat = torch.nn.Flatten()
    return {
        "purifier": purifier,
        "chains": DefendedClassifier(purifier, flat, n_chains=2).eval(),
        "any r(x)": Purifier(lambda x: x * 0.5 + 0.2, purifier.chain),
    }


@pytest.mark.parametrize("name", ["purifier", "chains", "any r(x)"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_for_each_kind(make_images, name, kind):
    model, x = models()[name], make_images(3, 1, 8, 8)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(images, ids):
        return model(images, seed=5, sample_ids=ids)

    for ids in KINDS[kind]:
        torch.testing.assert_close(compiled(x, ids), model(x, seed=5, sample_ids=ids), rtol=0, atol=1e-6)


def test_ids_of_a_pipeline(make_images):
    """Global ids counted on, batch after batch: a graph for the first batch, and one for any other."""
    model, graphs = small_defense("malade"), []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=counting, fullgraph=True)
    def compiled(images, first):
        return model(images, seed=5, sample_ids=[first + k for k in range(len(images))])

    for first in (0, 3, 6, 9, 1000):
        x = make_images(3, 1, 8, 8)
        expected = model(x, seed=5, sample_ids=range(first, first + 3))
        torch.testing.assert_close(compiled(x, first), expected, rtol=0, atol=1e-6)
    assert len(graphs) == 2


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, -1, 2], ValueError, "got -1 at index 1"),
        ((0, 1, 2**64), ValueError, "at index 2"),
        (range(-2, 1), ValueError, "got -2 at index 0"),
        ([0, 1, 0.5], TypeError, "expected integers"),
        ([0, 1], ValueError, r"expected shape \(3,\)"),
        (np.zeros(3), TypeError, "expected an integer tensor"),
        (np.zeros((3, 1), dtype=np.int64), ValueError, r"expected shape \(3,\)"),
    ],
    ids=repr,
)
def test_wrong_ids_are_refused_in_a_graph(make_images, ids, error, message):
    """The compiler hands a Python error back as its own where it may not leave the graph, and as it is elsewhere."""
    model, x = small_defense("malade"), make_images(3, 1, 8, 8)
    strict = torch.compile(lambda ids: model(x, sample_ids=ids), backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        strict(ids)
    torch._dynamo.reset()
    with pytest.raises(error, match=f"sample_ids: .*{message}|sample_ids: expected integers"):
        torch.compile(lambda ids: model(x, sample_ids=ids), backend="aot_eager")(ids)
