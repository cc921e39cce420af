"""``Purifier``: MALADE, an autoencoder and the settings of a Langevin chain as one module."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmalade import backends
from fastmalade.backends.gradient_plan import GradientPlan, check_max_bytes, make_plan
from fastmalade.backends.values import Execution, NoiseSource
from fastmalade.chain import direct
from fastmalade.chain.call import noise_source, run_chain
from fastmalade.chain.config import ChainConfig
from fastmalade.chain.gradient import batch_sizes
from fastmalade.chain.observers import refuse_transformations
from fastmalade.checks import check_count
from fastmalade.defenses.base import Cost, Defense, load_defense
from fastmalade.executor.chains import graph_backend, purify_in_graph
from fastmalade.inputs import Prepared, plain_batch, prepare
from fastmalade.models import Autoencoder
from fastmalade.models.flops import network_flops
from fastmalade.models.registry import network_of, table8_config
from fastmalade.models.table8 import is_native_autoencoder
from fastmalade.pretrained import expected_in_header


class Purifier(Defense):
    """Moves images towards high density by Langevin dynamics (MALADE or MALA: 000 sec. 4.2, 001 sec. 3).

    ``forward`` is differentiable and goes in front of a classifier; ``purify`` takes any array of images, checks it and
    gives no gradient. Both draw fresh noise at every call unless they are given a seed. A purifier can be pickled,
    deep-copied, and moved with ``.to`` like any module.

    Args:
        autoencoder: r, an :class:`fastmalade.Autoencoder` or any callable (B, C, H, W) -> (B, C, H, W) on [0, 1]. Give
            your own module an attribute ``in_channels`` if ``purify`` is to take layouts other than (B, C, H, W).
        chain: number of steps, step sizes, noise and clamp.
        value_range: (low, high) of the images given and returned, one number each for all channels; mapped affinely to
            the autoencoder's [0, 1].
        backend: "torch", "cpu", "cuda", "triton" or None to choose by environment, dtype and device at each call.
        max_bytes: budget for what a gradient through the chain keeps in memory, see :func:`fastmalade.langevin_chain`.
        precision: of the matrix products on a GPU, see :func:`fastmalade.langevin_chain`. Backend, budget and precision
            are not saved to files.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an empty or infinite value range or one with bounds by channel, an unknown backend or precision, or
            a budget below 1.
    """

    kind: ClassVar[str] = "purifier"
    file_kind: ClassVar[str] = "purifier"
    overridable: ClassVar[frozenset[str]] = frozenset({"backend", *(field.name for field in fields(ChainConfig))})
    images_per_call: ClassVar[int] = 1024

    def __init__(
        self,
        autoencoder: Callable[[Tensor], Tensor],
        chain: ChainConfig,
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
        backend: str | None = None,
        max_bytes: int | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(value_range=value_range)
        if not callable(autoencoder):
            raise TypeError(f"autoencoder: expected a module or callable r(x), got {type(autoencoder).__name__}")
        if not isinstance(chain, ChainConfig):
            raise TypeError(f"chain: expected a ChainConfig, got {type(chain).__name__}")
        self.autoencoder = autoencoder
        self.chain = chain
        self.backend = _checked_backend(backend)
        self.max_bytes = None if max_bytes is None else check_max_bytes(max_bytes)
        self.precision = backends.checked_precision(precision)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, backend: str | None = None, precision: str = "fp32"
    ) -> Purifier:
        """Load a shipped purifier ("malade-mnist", "mala-mnist") or a file of :meth:`save_pretrained`.

        Never runs code from the file and never uses a network. Parameters are frozen, the module is in eval mode.

        Args:
            name_or_path: a shipped name or a file.
            backend, precision: see the constructor.

        Raises:
            FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
            PretrainedError: a damaged or foreign file, or one that does not hold a purifier.
            ValueError: an unknown backend or precision.
        """
        backend, precision = _checked_backend(backend), backends.checked_precision(precision)
        purifier = load_defense(name_or_path, Purifier)
        purifier.backend, purifier.precision = backend, precision
        return purifier

    def forward(
        self, x: Tensor, *, seed: int | None = None, sample_ids: Any = None, noise: Tensor | None = None
    ) -> Tensor:
        """Purify a batch, differentiably.

        The gradient is the exact derivative of the computation for the noise that it drew. Values are not checked
        against the range: that would cost a pass over the batch inside every step of an attack.

        Args:
            x: (B, C, H, W) in ``value_range``, dtype and device of the autoencoder.
            seed, sample_ids, noise: see :func:`fastmalade.langevin_chain`.

        Returns:
            (B, C, H, W) in ``value_range``.

        Raises:
            TypeError, ValueError, BackendUnavailableError: see :func:`fastmalade.langevin_chain`.
        """
        config = self.chain
        source = noise_source(x, config.n_steps, seed=seed, sample_ids=sample_ids, noise=noise)
        how = Execution(self.backend, self.max_bytes, self.precision)
        return run_chain(x, self.autoencoder, config, self.value_range, source, how)

    def trajectory(
        self, x: Tensor, *, seed: int | None = None, sample_ids: Any = None, noise: Tensor | None = None
    ) -> Tensor:
        """All states, (N + 1, B, C, H, W), entry 0 is ``x``; arguments as for :meth:`forward`, no gradients."""
        source = noise_source(x, self.chain.n_steps, seed=seed, sample_ids=sample_ids, noise=noise)
        how = Execution(self.backend, self.max_bytes, self.precision)
        return run_chain(x, self.autoencoder, self.chain, self.value_range, source, how, trajectory=True)

    def purify(
        self,
        images: Any,
        *,
        seed: int | None = None,
        sample_ids: Any = None,
        backend: str | None = None,
        **chain_overrides: Any,
    ) -> Any:
        """Purify images of any supported kind; the result has the same kind, dtype, device and layout.

        Args:
            images: torch tensor, numpy array or object with ``__dlpack__``, never written to; uint8 or floating with
                values in ``value_range``; (B, C, H, W) or, where unambiguous, (B, H, W, C), (B, H, W), (H, W). The full
                rules are those of :func:`fastmalade.inputs.prepare`. The chain runs in the dtype of the autoencoder.
            seed: 0 <= seed < 2**64; None draws a fresh one from the operating system.
            sample_ids: B integers, 0 <= id < 2**64; 0..B-1 by default. If you split a data set, pass global ids: then
                the result does not depend on the split.
            backend: in place of the purifier's, for this call.
            chain_overrides: fields of :class:`ChainConfig`, for this call.

        Returns:
            Purified images without gradient; an empty result for an empty batch.

        Raises:
            TypeError: wrong kind or dtype, or an unknown override.
            ValueError: wrong shape, NaN or infinity, values out of range by more than rounding.
            FloatingPointError: the chain diverged.
            BackendUnavailableError: the backend asked for cannot run here.
        """
        config = self.chain.replace(**chain_overrides) if chain_overrides else self.chain
        how = Execution(backend or self.backend, self.max_bytes, self.precision)
        plain = plain_batch(images) if self.value_range == (0.0, 1.0) else None
        if plain is not None:
            # Preparing such a batch would take a twentieth of a call on one image.
            source = noise_source(plain, config.n_steps, seed=seed, sample_ids=sample_ids)
            result = direct.run(plain, self.autoencoder, config.settings, source, how, gradients=False, inspect=True)
            if result is not None:
                return result if plain is images else result.numpy()
        refuse_transformations()
        prepared = self._prepared(images)
        x, result = prepared.images, None
        if x.is_cuda:
            result = purify_in_graph(self, x, config, how.backend, seed=seed, sample_ids=sample_ids)
        if result is None:
            source = noise_source(x, config.n_steps, seed=seed, sample_ids=sample_ids)
            result = run_chain(x, self.autoencoder, config, self.value_range, source, how, gradients=False)
        if self.value_range != (0.0, 1.0) and config.clamp != "none" and config.n_steps > 0:
            # Mapping back to the value range may round a value at its edge out of it.
            result = result.clamp(*self.value_range)
        return prepared.restore(result)

    def gradient_plan(self, images: Tensor, *, max_bytes: int | None = None, weights: bool = False) -> GradientPlan:
        """What a gradient through this chain would keep in memory and what it would run again; print it to see.

        The plan is for the backward pass alone. Where no budget was set, a small batch keeps its activations from the
        forward pass instead.

        Args:
            images: a batch (B, C, H, W) of the size to come, on any device including "meta"; values are not read.
            max_bytes: budget, by default the purifier's own.
            weights: of a gradient with respect to the parameters, which on the backend "cpu" keeps more.

        Raises:
            TypeError: the autoencoder is not a Table 8 ``Autoencoder``; the sizes of other steps are not known.
            ValueError: the budget does not hold a single step, or the backend is one for GPUs, which makes no plan.
        """
        autoencoder = self.autoencoder
        if not is_native_autoencoder(autoencoder):
            raise TypeError(f"gradient_plan: expected a Table 8 Autoencoder, got {type(autoencoder).__name__}")
        assert isinstance(autoencoder, Autoencoder)
        autoencoder.check_shape(images.shape)
        dtype, device = self._dtype_and_device()
        budget = self.max_bytes if max_bytes is None else max_bytes
        name = backends.resolve(self.backend, device=device, dtype=dtype)
        if name not in ("cpu", "torch"):
            raise ValueError(
                f"gradient_plan: expected the cpu or torch backend, got {name}: it keeps the states and computes one "
                "step's activations again, and works through a batch that needs more than max_bytes in parts"
            )
        if name == "cpu":
            return backends.cpu.calls.gradient_plan(
                images.shape, autoencoder.hidden_channels, self.chain.n_steps, budget, weights=weights
            )
        batch = torch.empty(images.shape, dtype=dtype, device="meta")
        return make_plan(self.chain.n_steps, batch_sizes(batch, autoencoder.weights()), budget)

    @property
    def channels(self) -> int | None:
        """C of the images; None for an autoencoder that does not say, which may be any callable."""
        return _channels(self.autoencoder)

    @property
    def multiple(self) -> int:
        """4 for the Table 8 autoencoder."""
        return _multiple(self.autoencoder)

    @property
    def is_random(self) -> bool:
        """Whether any step adds noise."""
        return any(scale != 0 for scale in self.chain.schedule()[1])

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] = (1, 28, 28)) -> Cost:
        """Work of one call: one pass of the autoencoder for each step; see :meth:`fastmalade.Defense.cost`.

        Raises:
            TypeError: the autoencoder is not a module.
            ValueError: a batch below 1, or a shape that does not fit.
        """
        check_count("batch", batch, 1)
        if not isinstance(self.autoencoder, nn.Module):
            raise TypeError(f"autoencoder: expected a module to count, got {type(self.autoencoder).__name__}")
        evaluations = batch * self.chain.n_steps
        return Cost(evaluations * network_flops(self.autoencoder, (1, *image_shape))[0], evaluations, 0)

    def networks(self) -> dict[str, nn.Module]:
        """The networks that a file holds."""
        autoencoder: Any = self.autoencoder
        return {"autoencoder": autoencoder}

    def settings(self) -> dict[str, Any]:
        """Arguments besides the network and the value range that a file holds, as JSON values."""
        return {"chain": self.chain.to_dict()}

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        precision = "" if self.precision == "fp32" else f", precision={self.precision!r}"
        return f"chain={self.chain}, value_range={self.value_range}, backend={self.backend!r}{precision}"

    def _prepared(self, images: Any) -> Prepared:
        # Looks up the autoencoder once: three properties would take another hundredth of a call on one image.
        autoencoder = self.autoencoder
        dtype, device = _dtype_and_device(autoencoder)
        return prepare(
            images,
            channels=_channels(autoencoder),
            multiple=_multiple(autoencoder),
            value_range=self.value_range,
            dtype=dtype,
            device=device,
        )

    def _dtype_and_device(self) -> tuple[torch.dtype, torch.device]:
        return _dtype_and_device(self.autoencoder)

    def _check(self, x: Tensor) -> None:
        """Checks nothing: the chain checks its images itself."""

    def _purified(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        backend = graph_backend(self.backend, x.device, x.dtype) if isinstance(seed, Tensor) else self.backend
        how = Execution(backend, self.max_bytes, self.precision)
        return run_chain(x, self.autoencoder, self.chain, (0.0, 1.0), NoiseSource(seed, sample_ids), how)

    def _to_header(self) -> tuple[dict[str, Any], dict[str, nn.Module]]:
        # The oldest kind of file, kept so that older versions can read it. Its one network has neither name nor type.
        header = {
            "kind": self.file_kind,
            "autoencoder": table8_config(self.autoencoder),
            "chain": self.chain.to_dict(),
            "value_range": list(self.value_range),
        }
        return header, {"": self.networks()["autoencoder"]}

    @classmethod
    def _from_header(cls, path: Path, header: Mapping[str, Any]) -> tuple[Purifier, dict[str, nn.Module]]:
        autoencoder = network_of(path, header, "autoencoder", Autoencoder)
        with expected_in_header(path, "chain and value_range"):
            low, high = header["value_range"]
            purifier = cls(autoencoder, ChainConfig.from_dict(header["chain"]), value_range=(low, high))
        return purifier, {"": autoencoder}


def _channels(autoencoder: object) -> int | None:
    return getattr(autoencoder, "in_channels", None)


def _multiple(autoencoder: object) -> int:
    return 4 if isinstance(autoencoder, Autoencoder) else 1


def _dtype_and_device(autoencoder: object) -> tuple[torch.dtype, torch.device]:
    if type(autoencoder) is Autoencoder:
        # The search through all parameters would take a hundredth of a call on one image.
        weight = autoencoder._modules["conv1"]._parameters.get("weight")  # type: ignore[union-attr]
        if weight is not None:
            return weight.dtype, weight.device
    for parameter in autoencoder.parameters() if isinstance(autoencoder, nn.Module) else ():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return torch.float32, torch.device("cpu")


def _checked_backend(backend: str | None) -> str | None:
    if backend is not None and backend not in backends.BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(backends.BACKENDS)} or None, got {backend!r}")
    return backend
