"""The search for a chain: what it tries, how it judges, and that an interrupted one goes on."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fastmalade import ChainConfig, DefendedClassifier, Purifier
from fastmalade.attacks import PGD
from fastmalade.evaluation.tuning import ChainSearch, TuningResult, tune_chain
from fastmalade.models import build_classifier
from fastmalade.training import CheckpointError

SEARCH = ChainSearch(n_steps=(1, 3), n_random=8, n_local=8, coarse_images=20, attacked_images=6, seed=4)
ATTACKS = {"exact": PGD(epsilon=0.3, steps=2, step_size=0.2, eot=2), "bpda": PGD(epsilon=0.3, steps=2, gradient="bpda")}


@pytest.fixture(scope="module")
def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_classifier("D").requires_grad_(False).eval()


@pytest.fixture
def autoencoder():
    return Purifier.from_pretrained("malade-mnist").autoencoder


@pytest.fixture
def conditions(digits):
    images, labels = digits[0][:40], digits[1][:40]
    return {"clean": (images, labels), "noisy": (images.clamp(0.2, 0.8), labels)}


def test_what_is_tried_and_how_it_is_judged(autoencoder, classifier, conditions):
    seen = []
    tried = tune_chain(
        autoencoder, classifier, conditions, SEARCH, attacks=ATTACKS, progress=lambda *told: seen.append(told)
    )
    assert [(done, total) for done, total, _ in seen] == [(n + 1, 16) for n in range(16)]
    assert [result.stage for result in tried] == ["full"] * 8 + ["coarse"] * 8
    for stage in ("full", "coarse"):
        scores = [result.score for result in tried if result.stage == stage]
        assert scores == sorted(scores, reverse=True)
    assert {result.chain.n_steps for result in tried if result.stage == "coarse"} == {1, 3}
    assert {name for result in tried for name in result.accuracies} == {"clean", "noisy", "exact", "bpda"}
    # The best, by hand.
    best = tried[0]
    purifier = Purifier(autoencoder, best.chain)
    clean, noisy = (
        float((classifier(purifier(images, seed=4)).argmax(1) == labels).float().mean())
        for images, labels in conditions.values()
    )
    images, labels = (part[-6:] for part in conditions["clean"])
    left = [
        1 - float(a(DefendedClassifier(purifier, classifier), images, labels).success_rate.mean())
        for a in ATTACKS.values()
    ]
    assert list(best.accuracies.values()) == pytest.approx([clean, noisy, *left])
    bare = float((classifier(conditions["clean"][0]).argmax(1) == conditions["clean"][1]).float().mean())
    parts = [noisy, *left]
    expected = (min(parts) + sum(parts) / 3) / 2 - 10 * max(0.0, bare - 0.012 - clean)
    assert best.score == pytest.approx(expected)


def test_noise_at_langevins_scale():
    generator = torch.Generator().manual_seed(0)
    search = ChainSearch(n_steps=(5, 10), sigma2=0.15)
    drawn = [search.random_chain(index, generator) for index in range(200)]
    assert [chain.n_steps for chain in drawn[:4]] == [5, 10, 5, 10]
    shares = [chain.noise_scale / math.sqrt(2 * chain.step_size * 0.15) for chain in drawn]
    langevin = [share for index, share in enumerate(shares) if index // 2 % 2 == 1]
    assert all(0.25 <= share <= 1.0 for share in langevin)
    assert min(shares) < 0.1
    assert max(shares) > 1.0


def test_an_interrupted_search_goes_on(autoencoder, classifier, conditions, tmp_path):
    file = tmp_path / "deep" / "trials.jsonl"
    whole = tune_chain(autoencoder, classifier, conditions, SEARCH, attacks=ATTACKS)

    def stop(done: int, total: int, result: TuningResult) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_chain(autoencoder, classifier, conditions, SEARCH, attacks=ATTACKS, checkpoint=file, progress=stop)
    assert len(file.read_text().splitlines()) == 12
    resumed = tune_chain(autoencoder, classifier, conditions, SEARCH, attacks=ATTACKS, checkpoint=file)
    assert resumed == whole
    lines = file.read_text().splitlines()
    assert len(lines) == 17
    assert ChainConfig.from_dict(json.loads(lines[1])["chain"]).n_steps in (1, 3)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="is of another search"):
        tune_chain(autoencoder, classifier, conditions, SEARCH, checkpoint=file)
    assert file.read_bytes() == before
    file.write_text(lines[0] + "\nnot a result\n")
    with pytest.raises(CheckpointError, match="expected the results of a search"):
        tune_chain(autoencoder, classifier, conditions, SEARCH, attacks=ATTACKS, checkpoint=file)


def test_conditions_that_do_not_serve(autoencoder, classifier, conditions):
    with pytest.raises(ValueError, match=r"expected a condition 'clean' and attacked ones, got \['clean'\]"):
        tune_chain(autoencoder, classifier, {"clean": conditions["clean"]})
