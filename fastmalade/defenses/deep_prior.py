"""DIP-INC: an untrained generator is fitted to each image and stopped early (paper 004, Algorithm 2)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastmalade.checks import check_count
from fastmalade.defenses.base import Cost, Defense, StatedGradient
from fastmalade.defenses.optimizers import Adam
from fastmalade.defenses.unrolled import State, inner_gradient, iterate
from fastmalade.models.prior import PriorNetwork
from fastmalade.noise import normals_like

_WEIGHTS_STEP, _CODE_STEP = 0, 1


class DeepPrior(Defense):
    """x -> G_phi*(z): Adam fits the weights phi of an untrained network to x, for a fixed random code z.

    All images of a batch are fitted at once, each with its own weights. An image stops when its mean squared error
    falls below a threshold while the others go on, so the result does not depend on the batch.

    The gradient is BPDA by default. ``gradient="unrolled"`` is the exact derivative through all steps on the weights;
    for each image it keeps about 2 sqrt(T) copies of the weights and their two moments, and each step costs a
    second-order pass through the network.

    Args:
        network: G; it makes images of any size.
        n_steps: T, the most steps taken; in the paper 500 for eps 0.01 and 0.05, 100 for eps 0.1, images in [-1, 1].
        rate: of Adam, 0.01 in the paper.
        stop_error: mean over pixels of (x - G)^2 for images in [0, 1] at which an image stops, or 0 for never. The
            paper's 0.005 is for images in [-1, 1]: 0.00125 here.
        value_range, gradient: see :class:`fastmalade.Defense`.

    Raises:
        TypeError, ValueError: not a PriorNetwork, or a number out of its range.

    Source: paper 004, Algorithm 2, sections 3.1 and 4.4.2. The loss here is the mean over pixels and channels; Adam
    takes the same steps for any multiple of it.
    """

    kind: ClassVar[str] = "dip-inc"

    def __init__(
        self,
        network: PriorNetwork | None = None,
        *,
        n_steps: int = 500,
        rate: float = 0.01,
        stop_error: float = 0.00125,
        value_range: tuple[float, float] = (0.0, 1.0),
        gradient: StatedGradient = "bpda",
    ) -> None:
        super().__init__(value_range=value_range, gradient=gradient)
        network = PriorNetwork() if network is None else network
        if not isinstance(network, PriorNetwork):
            raise TypeError(f"network: expected a PriorNetwork, got {type(network).__name__}")
        check_count("n_steps", n_steps, 0)
        if not 0.0 <= stop_error < math.inf:
            raise ValueError(f"stop_error: expected a finite number >= 0, got {stop_error!r}")
        self.network = network
        self.n_steps, self.rate, self.stop_error = n_steps, rate, stop_error
        self.optimizer = Adam(rate)

    @property
    def channels(self) -> int:
        """C of the images."""
        return self.network.out_channels

    @property
    def states_kept(self) -> int:
        """Weights and moments at about 2 sqrt(n_steps) steps, measured in images of 28x28."""
        if self.gradient == "bpda":
            return 1
        return 2 * (math.isqrt(self.n_steps) + 1) * 3 * self.network.parameter_count // 784 + 1

    def cost(self, batch: int = 1, image_shape: tuple[int, int, int] = (1, 28, 28)) -> Cost:
        """If no image stops early; see :meth:`fastmalade.Defense.cost`."""
        check_count("batch", batch, 1)
        self._check_shape((batch, *image_shape))
        size = self.network.code_size(*image_shape[1:])
        weights = torch.empty(1, self.network.parameter_count, device="meta", requires_grad=True)
        code = torch.empty(1, self.network.code_channels, *size, device="meta")
        with torch.enable_grad():
            with FlopCounterMode(display=False) as counter:
                output = self.network(weights, code)
            forward = int(counter.get_total_flops())
            with FlopCounterMode(display=False) as counter:
                torch.autograd.grad(output.sum(), weights)
        evaluations = batch * (self.n_steps + 1), batch * self.n_steps
        return Cost(evaluations[0] * forward + evaluations[1] * int(counter.get_total_flops()), *evaluations)

    def networks(self) -> dict[str, nn.Module]:
        """The network that a file holds: its architecture, as it has no weights."""
        return {"network": self.network}

    def settings(self) -> dict[str, Any]:
        """Arguments besides the networks and the value range, as JSON values."""
        return {name: getattr(self, name) for name in ("n_steps", "rate", "stop_error", "gradient")}

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())

    def _purified(self, x: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        height, width = x.shape[2:]
        code_shape = (self.network.code_channels, *self.network.code_size(height, width))
        code = normals_like(x, seed, sample_ids, _CODE_STEP, code_shape)
        normals = normals_like(x, seed, sample_ids, _WEIGHTS_STEP, (self.network.parameter_count,))

        def image(weights: Tensor) -> Tensor:
            return self.network(weights, code)[:, :, :height, :width]

        def step(target: Tensor, state: State, t: int) -> State:
            weights, first, second, running = state
            gradients, errors = inner_gradient(
                lambda at: (image(at[0]) - target).square().flatten(1).mean(1), (weights,)
            )
            # An image that has stopped keeps its weights; its moments no longer matter.
            running = running * (errors.detach() >= self.stop_error)[:, None]
            updated, first, second = self.optimizer.update((weights,), gradients, (first, second), t, self.n_steps)
            return torch.where(running > 0, updated, weights), first, second, running.detach()

        weights = self.network.initial(normals)
        running = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        state = (weights, *self.optimizer.slots((weights,)), running)
        return image(iterate(step, self.n_steps, x, state)[0])
