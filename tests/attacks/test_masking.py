"""Attacks on models whose gradients say nothing: counted, warned of, and named where there is none at all."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from masked import ZeroBackward
from typer.testing import CliRunner

import fastmalade
from fastmalade import DefendedClassifier, Purifier
from fastmalade.attacks import FGSM, MIM, PGD, CounterAttackB, GradientWarning, RandomFGSM, eot_gradient
from fastmalade.cli.app import app
from fastmalade.data import embedded_tensors
from fastmalade.models.registry import save_classifier

ATTACKS = {
    "fgsm": FGSM(epsilon=0.3),
    "r+fgsm": RandomFGSM(epsilon=0.3),
    "pgd": PGD(epsilon=0.3, steps=5),
    "mim": MIM(epsilon=0.3, steps=5),
    "eot": PGD(epsilon=0.3, steps=5, eot=3, restarts=2),
}


@pytest.fixture(scope="module")
def data():
    digits, labels = embedded_tensors()
    return digits[:12], labels[:12]


@pytest.fixture(scope="module")
def classifier():
    return fastmalade.load_classifier("mnist-c")


def dead_relu(x):
    return torch.relu(x - 2.0) + (x > 0.5)


ZERO = {
    "a zero backward": ZeroBackward.apply,
    "rounding": lambda x: (8 * x).round() / 8,
    "a step": lambda x: (x > 0.5).to(x.dtype) + 0 * x,
    "a sign": lambda x: 0.5 + 0.5 * torch.sign(x - 0.5),
    "a dead relu": dead_relu,
    "a clamp": lambda x: (1e6 * (x - 0.5)).clamp(0, 1),
}
CUT = {
    "detach": lambda x: x.detach(),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy().copy()),
    "no_grad": torch.no_grad()(lambda x: x * 1.0),
    "integers": lambda x: (x * 255).to(torch.uint8).to(x.dtype) / 255,
}
NOT_FINITE = {
    "a square root at zero": lambda x: x + torch.sqrt(0.0 * x),
    "zero over zero": lambda x: x + torch.where(x > -1, 0.0, torch.log(x - x)),
    "an overflow": lambda x: x + 0.0 * torch.where(x > 2, torch.exp(1e5 * x), x),
}


def model_of(classifier, before):
    return lambda x: classifier(before(x))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ZERO)
def test_zero_gradients_are_no_robustness(data, classifier, name, attack):
    x, y = data
    model = model_of(classifier, ZERO[name])
    with pytest.warns(GradientWarning, match=r"of 12 images count as robust, but .* zero"):
        result = ATTACKS[attack](model, x, y, progress=False)
    robust = ~result.success
    assert int(robust.sum()) > 0
    steps = result.gradients // ATTACKS[attack].eot
    assert (2 * result.zero_gradients >= steps)[robust].all()
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith(f"{int(robust.sum())} of 12")
    assert int(result.non_finite_gradients.sum()) == 0


@pytest.mark.parametrize("name", NOT_FINITE)
def test_gradients_that_are_not_finite(data, classifier, name):
    x, y = data
    model = model_of(classifier, NOT_FINITE[name])
    with pytest.warns(GradientWarning, match="NaN or infinite"):
        result = PGD(epsilon=0.3, steps=4)(model, x, y, progress=False)
    assert int(result.non_finite_gradients.sum()) > 0
    with pytest.raises(FloatingPointError, match="of 12 images"):
        eot_gradient(model, x, y, samples=1)


@pytest.mark.parametrize("name", CUT)
def test_a_model_that_cuts_the_gradient_off(data, classifier, name):
    x, y = data
    for attack in (FGSM(epsilon=0.3), PGD(epsilon=0.3, steps=2, eot=2)):
        with pytest.raises(RuntimeError, match=r"model: expected logits with a gradient .*detach.*bpda"):
            attack(model_of(classifier, CUT[name]), x, y, progress=False)
    with pytest.raises(RuntimeError, match="model: expected logits with a gradient"):
        eot_gradient(model_of(classifier, CUT[name]), x, y, samples=2)


def test_a_defence_that_defends_by_rounding(data, classifier):
    x, y = data
    purifier = Purifier(lambda state: state.round(), fastmalade.ChainConfig(1, 1.0, 0.0))
    defended = DefendedClassifier(purifier, classifier).eval()
    with pytest.warns(GradientWarning, match="zero"):
        PGD(epsilon=0.6, steps=5)(defended, x, y, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        through = PGD(epsilon=0.6, steps=20, gradient="bpda")(defended, x, y, progress=False)
    assert through.robust_accuracy < 0.5
    assert through.warnings == ()


def test_honest_models_and_balls_of_one_point_are_silent(data, classifier):
    x, y = data
    defended = DefendedClassifier(Purifier.from_pretrained("malade-mnist"), classifier).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for attack in (*ATTACKS.values(), CounterAttackB(epsilon=0.3, steps=3)):
            result = attack(defended, x, y, progress=False)
            assert result.warnings == ()
            assert int(result.zero_gradients.sum()) == int(result.non_finite_gradients.sum()) == 0
        FGSM(epsilon=0.0)(model_of(classifier, ZERO["rounding"]), x, y, progress=False)


def test_counts_survive_an_interruption(data, classifier, tmp_path):
    x, y = data
    attack, model = PGD(epsilon=0.1, steps=6, restarts=2), model_of(classifier, ZERO["rounding"])
    with pytest.warns(GradientWarning):
        whole = attack(model, x, y, batch_size=5, progress=False)

    class Stop(BaseException):
        pass

    def stop(done, _total):
        if done == 15:
            raise Stop

    with pytest.raises(Stop):
        attack(model, x, y, batch_size=5, progress=stop, checkpoint=tmp_path / "state")
    with pytest.warns(GradientWarning):
        resumed = attack(model, x, y, batch_size=5, progress=False, checkpoint=tmp_path / "state")
    assert torch.equal(whole.zero_gradients, resumed.zero_gradients)
    assert whole.warnings == resumed.warnings
    assert torch.equal(whole.adversarial, resumed.adversarial)


def test_the_command_says_so(tmp_path, classifier):
    """A classifier so certain that the softmax is exactly one: cross entropy has no gradient in float32."""
    certain = fastmalade.load_classifier("mnist-c")
    with torch.no_grad():
        for parameter in certain.head[-1].parameters():
            parameter *= 1000.0
    save_classifier(certain, tmp_path / "certain.safetensors")
    options = ["--classifier", str(tmp_path / "certain.safetensors"), "--images", "8", "--steps", "3", "--eot", "1"]
    done = CliRunner().invoke(
        app, ["attack", *options, "--attacks", "pgd:blind", "--epsilon", "0.01", "--output", str(tmp_path / "a.json")]
    )
    assert done.exit_code == 0, done.output
    assert "warning: pgd:blind:" in done.output
    rows = {row["attack"]: row for row in json.loads((tmp_path / "a.json").read_text())["rows"]}
    assert "count as robust" in rows["pgd:blind"]["warnings"][0]


@pytest.mark.parametrize("name", ["rounding", "a zero backward", "a sign"])
def test_libraries_that_differentiate_our_models(data, classifier, name):
    foolbox = pytest.importorskip("foolbox")
    from fastmalade.evaluation.foolbox_attacks import attacked

    class Masked(torch.nn.Module):
        def forward(self, x):
            return classifier(ZERO[name](x))

    x, y = data
    with pytest.warns(GradientWarning, match="of 12 images got a gradient that is zero"):
        attacked(Masked().eval(), x, y, "fgsm", 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientWarning)
        attacked(classifier, x, y, "pgd", 0.2, steps=3)
    defended = DefendedClassifier(Purifier(ZERO[name], fastmalade.ChainConfig(1, 1.0, 0.0)), classifier)
    with pytest.warns(GradientWarning, match="got a gradient that is zero"):
        foolbox.attacks.LinfFastGradientAttack()(fastmalade.attacks.foolbox_model(defended), x, y, epsilons=0.2)
