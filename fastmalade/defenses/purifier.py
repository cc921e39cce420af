"""``Purifier``: an autoencoder and the settings of a chain as one module that cleans images."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmalade import backends
from fastmalade.backends.gradient_plan import GradientPlan, check_max_bytes, make_plan
from fastmalade.backends.values import Execution, NoiseSource
from fastmalade.chain.call import noise_source, run
from fastmalade.chain.config import ChainConfig
from fastmalade.chain.gradient import batch_sizes
from fastmalade.defenses.base import Cost, Defense
from fastmalade.inputs import prepare
from fastmalade.models import Autoencoder
from fastmalade.models.autoencoder import is_native_autoencoder


class Purifier(Defense):
    """Relaxes images towards high density by Langevin dynamics (MALADE or MALA: 000 sec. 4.2, 001 sec. 3).

    ``forward`` is the differentiable piece that goes in front of a classifier; ``purify`` is the forgiving
    one that takes any array of images and checks it. Both draw fresh noise at every call unless a seed is
    given. Picklable, deep-copyable, and moved by ``.to`` like any module.

    Args:
        autoencoder: r, an :class:`fastmalade.Autoencoder` or any module (B, C, H, W) -> (B, C, H, W) on [0,
            1]. A module of your own tells its channel count in an attribute ``in_channels``, if ``purify``
            is to take layouts other than (B, C, H, W).
        chain: number of steps, step sizes, noise and clamp.
        value_range: (low, high) of the images given and returned; mapped affinely to the autoencoder's [0,
            1].
        backend: "torch", "cpu", "cuda", "triton" or None to choose by environment, dtype and device at each call.
        max_bytes: budget for what a gradient through the chain keeps in memory, see
            :func:`fastmalade.langevin_chain`.
        precision: of the products on a GPU, see there; like the backend not part of a saved file.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an empty or infinite value range, an unknown backend or precision, or a budget below 1.
    """

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
        if backend is not None and backend not in backends.BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(backends.BACKENDS)} or None, got {backend!r}")
        self.autoencoder = autoencoder
        self.chain = chain
        self.backend = backend
        self.max_bytes = None if max_bytes is None else check_max_bytes(max_bytes)
        self.precision = backends.checked_precision(precision)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, backend: str | None = None, precision: str = "fp32"
    ) -> Purifier:
        """Load a shipped purifier ("malade-mnist", "mala-mnist") or a file of :meth:`save_pretrained`.

        Never runs code from the file and never uses a network. Parameters are frozen, the module is in eval
        mode.

        Raises:
            FileNotFoundError: neither a shipped name nor a file; lists the shipped names.
            PretrainedError: a damaged or foreign file.
        """
        from fastmalade.pretrained import load_purifier

        return load_purifier(name_or_path, backend=backend, precision=precision)

    def save_pretrained(self, path: str | os.PathLike[str], *, training: dict[str, Any] | None = None) -> None:
        """Write autoencoder, chain and value range to one safetensors file, whole or not at all.

        Args:
            path: file to write; an old one is replaced only once the new one is complete.
            training: facts about the training for the header, JSON values.

        Raises:
            TypeError: the autoencoder is not a Table 8 ``Autoencoder``.
        """
        from fastmalade.pretrained import save_purifier

        save_purifier(self, path, training=training)

    def forward(
        self, x: Tensor, *, seed: int | None = None, sample_ids: Any = None, noise: Tensor | None = None
    ) -> Tensor:
        """Purify a batch, differentiably.

        The gradient is the exact derivative of this computation for the noise that it drew. Values are not
        checked against the range: that would cost a pass over the batch inside every step of an attack.

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
        """All states, (N + 1, B, C, H, W), entry 0 is ``x``; as :meth:`forward`, without gradients."""
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
            images: torch tensor, numpy array or object with ``__dlpack__``, never written to; uint8 or
                floating with values in ``value_range``; (B, C, H, W) or, where unambiguous, (B, H, W, C),
                (B, H, W), (H, W). The full rules are those of :func:`fastmalade.inputs.prepare`. Computed
                in the dtype of the autoencoder.
            seed: 0 <= seed < 2**64; None draws a fresh one from the operating system.
            sample_ids: B integers, 0..B-1 by default. A pipeline that splits a data set passes global ids,
                so that the result does not depend on the split.
            backend: overrides the purifier's.
            chain_overrides: fields of :class:`ChainConfig`, for this call.

        Returns:
            Purified images without gradient; an empty result for an empty batch.

        Raises:
            TypeError: wrong kind or dtype, or an unknown override.
            ValueError: wrong shape, values out of range, NaN or infinity.
            FloatingPointError: the chain diverged.
            BackendUnavailableError: the backend asked for cannot run here.
        """
        config = self.chain.replace(**chain_overrides) if chain_overrides else self.chain
        autoencoder = self.autoencoder
        dtype, device = _dtype_and_device(autoencoder)
        prepared = prepare(
            images,
            channels=getattr(autoencoder, "in_channels", None),
            multiple=4 if isinstance(autoencoder, Autoencoder) else 1,
            value_range=self.value_range,
            dtype=dtype,
            device=device,
        )
        x, how = prepared.images, Execution(backend or self.backend, self.max_bytes, self.precision)
        result = None
        if x.is_cuda:
            from fastmalade.executor.chains import purify_in_graph

            result = purify_in_graph(self, x, config, how.backend, seed=seed, sample_ids=sample_ids)
        if result is None:
            source = noise_source(x, config.n_steps, seed=seed, sample_ids=sample_ids)
            options = {"gradients": False, "inspect": not prepared.inspected}
            result = run_chain(x, autoencoder, config, self.value_range, source, how, **options)
        if self.value_range != (0.0, 1.0) and config.clamp != "none" and config.n_steps > 0:
            # The map back to the value range may round a value on its edge to the outside.
            result = result.clamp(*self.value_range)
        return prepared.restore(result)

    def gradient_plan(self, images: Tensor, *, max_bytes: int | None = None) -> GradientPlan:
        """What a gradient through this chain would keep and run again; print it before running anything.

        The plan is for the backward pass by itself. Where no budget was set, a small batch keeps its activations from
        the forward pass instead.

        Args:
            images: a batch (B, C, H, W) like the one to come, on any device, "meta" included; its values are not read.
            max_bytes: budget, by default the purifier's own.

        Raises:
            TypeError: the autoencoder is not a Table 8 ``Autoencoder``, of whose steps no sizes are known.
            ValueError: the budget does not hold a single step, or the backend is one for GPUs, which has no such plan.
        """
        autoencoder = self.autoencoder
        if not is_native_autoencoder(autoencoder):
            raise TypeError(f"gradient_plan: expected a Table 8 Autoencoder, got {type(autoencoder).__name__}")
        assert isinstance(autoencoder, Autoencoder)
        autoencoder.check_shape(images.shape)
        dtype, device = _dtype_and_device(autoencoder)
        budget = self.max_bytes if max_bytes is None else max_bytes
        name = backends.resolve(self.backend, device=device, dtype=dtype)
        if name not in ("cpu", "torch"):
            raise ValueError(
                f"gradient_plan: expected the cpu or torch backend, got {name}: it keeps the states and computes one "
                "step's activations again, and works through a batch that needs more than max_bytes in parts"
            )
        if name == "cpu":
            return backends.cpu.calls.gradient_plan(
                images.shape, autoencoder.hidden_channels, self.chain.n_steps, budget
            )
        batch = torch.empty(images.shape, dtype=dtype, device="meta")
        return make_plan(self.chain.n_steps, batch_sizes(batch, autoencoder.weights()), budget)

    @property
    def is_random(self) -> bool:
        """Whether any step adds noise."""
        return any(scale != 0 for scale in self.chain.schedule()[1])

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] = (1, 28, 28)) -> Cost:
        """Work of one call: one pass of the autoencoder for each step; see :meth:`fastmalade.Defense.cost`.

        Raises:
            TypeError: the autoencoder is no module.
            ValueError: a batch below 1, or a shape that does not fit.
        """
        from fastmalade.checks import check_count
        from fastmalade.models.flops import network_flops

        check_count("batch", batch, 1)
        if not isinstance(self.autoencoder, nn.Module):
            raise TypeError(f"autoencoder: expected a module to count, got {type(self.autoencoder).__name__}")
        evaluations = batch * self.chain.n_steps
        return Cost(evaluations * network_flops(self.autoencoder, (1, *image_shape))[0], evaluations, 0)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        precision = "" if self.precision == "fp32" else f", precision={self.precision!r}"
        return f"chain={self.chain}, value_range={self.value_range}, backend={self.backend!r}{precision}"


def run_chain(
    x: Tensor,
    autoencoder: Callable[[Tensor], Tensor],
    config: ChainConfig,
    value_range: tuple[float, float],
    noise: NoiseSource,
    how: Execution,
    **options: bool,
) -> Tensor:
    """:func:`fastmalade.chain.call.run` with a purifier's settings, images in and out in ``value_range``."""
    # Under torch.compile the settings are constants, so skip the cache.
    steps = config.steps() if torch.compiler.is_compiling() else config.settings
    if value_range == (0.0, 1.0):
        return run(x, autoencoder, steps, noise, how, **options)
    low, high = value_range
    return run((x - low) / (high - low), autoencoder, steps, noise, how, **options) * (high - low) + low


def _dtype_and_device(autoencoder: Callable[[Tensor], Tensor]) -> tuple[torch.dtype, torch.device]:
    if type(autoencoder) is Autoencoder:
        # An attribute of a module is found by a search that takes a hundredth of a call on one image.
        weight = autoencoder._modules["conv1"]._parameters.get("weight")  # type: ignore[union-attr]
        if weight is not None:
            return weight.dtype, weight.device
    for parameter in autoencoder.parameters() if isinstance(autoencoder, nn.Module) else ():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return torch.float32, torch.device("cpu")
