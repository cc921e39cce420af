"""Defended models for foolbox, ART and pyautoattack, whose verdicts by a single draw are judged again.

The libraries are optional (``pip install 'fastmalade[attacks]'``) and imported when a function needs them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fastmalade.attacks.eot import DEFAULT_MAX_BYTES, Judge, Judging, judge
from fastmalade.attacks.masking import WatchedGradients
from fastmalade.attacks.target import Target
from fastmalade.checks import check_choice, check_count, check_labelled_images
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.models.modes import evaluation_mode
from fastmalade.seeds import check_seed, derive_seed

_AUTOATTACK_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class SeededCalls(nn.Module):
    """A defended classifier whose noise differs from call to call, yet repeats with ``seed``.

    An attack library calls a model as model(x). Call number i of this one uses a seed derived from (seed, i), so the
    library meets fresh noise each time, a run can be repeated, and nothing depends on torch's global generator,
    which libraries reseed.

    Args:
        defended: the model; its own seed is not used.
        seed: 0 <= seed < 2**64.

    Attributes:
        calls: number of calls so far.
    """

    def __init__(self, defended: DefendedClassifier, seed: int) -> None:
        super().__init__()
        if not isinstance(defended, DefendedClassifier):
            raise TypeError(f"defended: expected a DefendedClassifier, got {type(defended).__name__}")
        self.defended = defended
        self.seed = check_seed(seed)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K), with the next noise."""
        self.calls += 1
        return self.defended(x, seed=derive_seed(self.seed, self.calls))


class _InModelDtype(nn.Module):
    """Casts images to the model's dtype: ART's BoundaryAttack hands over float64, whatever it was given."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.dtype))


def foolbox_model(defended: DefendedClassifier, *, seed: int | None = None) -> Any:
    """A ``foolbox.PyTorchModel`` of a defended classifier, with the purifier's value range as bounds.

    foolbox takes a gradient from one call: for EOT give the classifier ``n_chains`` > 1.

    Args:
        defended: put into eval mode.
        seed: noise that differs from call to call and repeats with the seed; by default it comes from the operating
            system.

    Raises:
        TypeError: not a DefendedClassifier.
        ModuleNotFoundError: foolbox is not installed.
    """
    model = _prepared(defended, seed)
    _require("foolbox", "foolbox")
    import foolbox

    return foolbox.PyTorchModel(
        WatchedGradients(model).eval(), bounds=defended.purifier.value_range, device=_placed(defended)[0]
    )


def art_classifier(
    defended: DefendedClassifier,
    *,
    input_shape: Sequence[int],
    n_classes: int,
    seed: int | None = None,
    loss: nn.Module | None = None,
) -> Any:
    """An ART ``PyTorchClassifier`` of a defended classifier, with the purifier's value range as clip values.

    Images of another floating dtype are cast to the model's: some attacks of ART compute in float64.
    To use the purifier as a preprocessing defence of an ART classifier see :mod:`fastmalade.adapters.art`.

    Args:
        defended: put into eval mode.
        input_shape: (C, H, W).
        n_classes: K.
        seed: as for :func:`foolbox_model`.
        loss: loss module of (logits, labels); by default cross entropy, summed. ART differentiates the loss of a whole
            batch, so a loss that is a mean gives each image 1 / B of its gradient, in batches of whatever size ART
            chooses: attacks that read its length (and a step that rounds to nothing in float32) depend on B.

    Raises:
        TypeError: not a DefendedClassifier.
        ModuleNotFoundError: ART is not installed.

    Warns:
        UserWarning: a loss whose reduction is "mean".
    """
    model = _prepared(defended, seed)
    check_count("n_classes", n_classes, 2)
    _require("art", "adversarial-robustness-toolbox")
    from art.estimators.classification import PyTorchClassifier

    if getattr(loss, "reduction", None) == "mean":
        warnings.warn(
            "loss: expected a sum over images, got a mean, which scales the gradient of each image by 1 / batch size; "
            "use reduction='sum'",
            stacklevel=2,
        )
    device, dtype = _placed(defended)
    return PyTorchClassifier(
        _InModelDtype(WatchedGradients(model), dtype),
        loss=nn.CrossEntropyLoss(reduction="sum") if loss is None else loss,
        input_shape=tuple(input_shape),
        nb_classes=n_classes,
        clip_values=defended.purifier.value_range,
        device_type="gpu" if device.type == "cuda" else "cpu",
    )


@dataclass(frozen=True)
class AutoAttackReport:
    """AutoAttack's own figure, and what fresh noise says about the same images.

    The library calls an image fooled when one query is wrong, and makes hundreds of single queries: bad luck of the
    defence counts as success of the attack. An image that the library failed on comes back unattacked.

    Attributes:
        adversarial: (n, C, H, W); images that the library failed on are the clean ones.
        found: bool (n,): fooled by the library's own, single queries (wrong without an attack included).
        success: bool (n,): fooled by the rule ``judged``, with noise that the library has not met.
        success_rate: float64 (n,): share of the judging queries that were fooled.
        judged: the rule behind ``success``, in words.
        model_calls: calls of the model that the library made, each with fresh noise.
        library_accuracy: share of images not ``found``: the figure that the library reports.
        rejudged_accuracy: share of images without ``success``.
    """

    adversarial: Tensor
    found: Tensor
    success: Tensor
    success_rate: Tensor
    judged: str
    model_calls: int

    @property
    def library_accuracy(self) -> float:
        """Robust accuracy as the library counts it."""
        return 1.0 - float(self.found.double().mean())

    @property
    def rejudged_accuracy(self) -> float:
        """Robust accuracy under fresh noise."""
        return 1.0 - float(self.success.double().mean())


def autoattack_rand(
    defended: DefendedClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: str = "linf",
    eot: int = 20,
    steps: int = 100,
    batch_size: int = 250,
    seed: int = 0,
    judge_rule: Judge = "majority",
    judge_chains: int = 9,
) -> AutoAttackReport:
    """AutoAttack's version for randomised defences, APGD on cross entropy and DLR loss (Croce and Hein 2020).

    pyautoattack reseeds torch's global generator. The defence's noise does not come from there, and the generator's
    state is restored afterwards.

    Args:
        defended: the model with the gradient that it is set to; in eval mode during the call. At least 4 classes (DLR).
        images: (n, C, H, W) float32 in [0, 1], the range that the library assumes.
        labels: int64 (n,).
        epsilon: radius of the ball.
        norm: "linf", "l2" or "l1".
        eot: gradients averaged per step, 20 in the library's own setting; each is one call of the model.
        steps: steps of each of the two attacks, 100 in the library's own setting.
        batch_size: images attacked at once.
        seed: of the noise, of the library and of the verdict.
        judge_rule, judge_chains: see :class:`fastmalade.attacks.Attack`.

    Raises:
        TypeError, ValueError: a wrong argument, or a value range other than (0, 1).
        ModuleNotFoundError: pyautoattack is not installed.
    """
    target = Target(_checked(defended), defended.gradient)
    check_labelled_images(images, labels)
    check_choice("judge_rule", judge_rule, get_args(Judge))
    for name, value in (("eot", eot), ("steps", steps), ("batch_size", batch_size), ("judge_chains", judge_chains)):
        check_count(name, value, 1)
    if defended.purifier.value_range != (0.0, 1.0):
        raise ValueError(
            f"defended: expected the value range (0, 1), which AutoAttack assumes, got {defended.purifier.value_range}"
        )
    if norm not in _AUTOATTACK_NORMS:
        raise ValueError(f"norm: expected one of {', '.join(_AUTOATTACK_NORMS)}, got {norm!r}")
    if len(images) == 0:
        raise ValueError("images: expected at least one, got none")
    _require("pyautoattack", "pyautoattack")
    from pyautoattack import AutoAttack

    judging = Judging(judge_rule, judge_chains)
    model = SeededCalls(defended, derive_seed(seed, 0))
    # The library's seed goes to torch.manual_seed; some of its parts read 0 as no seed.
    small_seed = derive_seed(seed, 1) % 2**31 + 1
    devices = [images.device] if images.is_cuda else []
    with evaluation_mode(defended), torch.random.fork_rng(devices=devices):
        library = AutoAttack(
            WatchedGradients(model).eval(),
            norm=_AUTOATTACK_NORMS[norm],
            eps=epsilon,
            version="rand",
            seed=small_seed,
            device=images.device,
        )
        library.apgd.eot_iter = eot
        library.apgd.n_iter = library.apgd.n_iter_orig = steps
        adversarial, predicted = library.run_standard_evaluation(images.clone(), labels.clone(), batch_size=batch_size)
        success, rate = judge(
            target,
            adversarial,
            labels,
            derive_seed(seed, 2),
            torch.arange(len(images), device=images.device),
            judging,
            rows=target.chains_per_call(images, DEFAULT_MAX_BYTES),
        )
    return AutoAttackReport(
        adversarial=adversarial.detach(),
        found=predicted != labels,
        success=success,
        success_rate=rate,
        judged=str(judging),
        model_calls=model.calls,
    )


def _checked(defended: object) -> DefendedClassifier:
    if not isinstance(defended, DefendedClassifier):
        raise TypeError(f"defended: expected a DefendedClassifier, got {type(defended).__name__}")
    return defended


def _prepared(defended: DefendedClassifier, seed: int | None) -> nn.Module:
    model = _checked(defended) if seed is None else SeededCalls(_checked(defended), seed)
    return model.eval()


def _placed(defended: DefendedClassifier) -> tuple[torch.device, torch.dtype]:
    parameter = next(defended.purifier.parameters(), None)
    return (torch.device("cpu"), torch.float32) if parameter is None else (parameter.device, parameter.dtype)


def _require(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"{package} is not installed: pip install 'fastmalade[attacks]'")
