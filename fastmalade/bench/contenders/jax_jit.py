"""JAX: the whole chain under ``jax.jit``, noise from ``jax.random.normal`` inside."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from fastmalade.bench import rewritten
from fastmalade.bench.contenders.base import Chain, Peer
from fastmalade.bench.task import HIGH, LOW, Task
from fastmalade.reference import TABLE8_LAYERS


class Jax(Peer):
    """Forms: images and weights with channels last or first, and the "rbg" generator in place of threefry."""

    name = "jax"
    title = "JAX"
    packages = ("jax", "jaxlib")
    modules = ("jax", "jaxlib")
    forms = ("NHWC, threefry", "NCHW, threefry", "NHWC, rbg")
    differentiable = True

    def __init__(self, *, is_rewritten: bool = False) -> None:
        super().__init__(is_rewritten=is_rewritten)
        self._graphs: dict[tuple[object, ...], tuple[Any, object]] = {}

    def prepare(self, task: Task, form: str) -> Chain:
        """Compiles at the first call. The key is split inside the graph and carried from call to call."""
        import jax

        return self._caller(task, form, lambda: jax.jit(self._chain(task, form)))

    def prepare_gradient(self, task: Task, form: str, cotangent: np.ndarray) -> Chain:
        """``jax.vjp`` of the chain, forward and backward in one compiled function."""
        import jax

        def build() -> Any:
            chain = self._chain(task, form)

            def gradient(images: Any, a: Any, d: Any, key: Any, cotangent: Any) -> Any:
                _, pullback, key = jax.vjp(lambda x: chain(x, a, d, key), images, has_aux=True)
                return pullback(cotangent)[0], key

            return jax.jit(gradient)

        return self._caller(task, form, build, cotangent)

    def _caller(self, task: Task, form: str, build: Callable[[], Any], *more: np.ndarray) -> Chain:
        import jax

        key = (id(task.weights), task.image_shape, task.n_steps, form, bool(more))
        if key not in self._graphs:
            # The weights are kept so that their id cannot come to mean others.
            self._graphs[key] = (build(), task.weights)
        graph = self._graphs[key][0]
        schedule = [jax.device_put(np.array(s, np.float32)) for s in (task.step_sizes, task.noise_scales)]
        constants = [jax.device_put(array) for array in more]
        state = {"key": _fresh_key(form)}

        def run(images: np.ndarray) -> np.ndarray:
            result, state["key"] = graph(images, *schedule, state["key"], *constants)
            return np.asarray(result)

        return run

    def _chain(self, task: Task, form: str) -> Callable[[Any, Any, Any, Any], tuple[Any, Any]]:
        import jax
        from jax import numpy as jnp

        layout = form[:4]
        build = _rewritten if self.is_rewritten else _table8
        forward = build(task, layout)

        def chain(images: Any, a: Any, d: Any, key: Any) -> tuple[Any, Any]:
            key, *keys = jax.random.split(key, task.n_steps + 1)
            x = images if layout == "NCHW" else images.transpose(0, 2, 3, 1)
            for step, step_key in enumerate(keys):
                x = x + a[step] * (forward(x) - x) + d[step] * jax.random.normal(step_key, x.shape, jnp.float32)
            x = jnp.clip(x, LOW, HIGH)
            return (x if layout == "NCHW" else x.transpose(0, 3, 1, 2)), key

        return chain


def _fresh_key(form: str) -> Any:
    import jax

    return jax.random.key(secrets.randbits(32), impl="rbg" if form.endswith("rbg") else "threefry2x32")


def _convolution(layout: str) -> Callable[..., Any]:
    """``convolve(x, weight (O, I, k, k), bias, stride, padding, dilation of the input)`` in a layout."""
    from jax import lax

    numbers = ("NCHW", "OIHW", "NCHW") if layout == "NCHW" else ("NHWC", "HWIO", "NHWC")

    def convolve(
        x: Any, weight: np.ndarray, bias: Any, stride: int, padding: tuple[int, int], dilation: int = 1
    ) -> Any:
        kernel: Any = weight if layout == "NCHW" else np.ascontiguousarray(weight.transpose(2, 3, 1, 0))
        y = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [padding, padding],
            lhs_dilation=(dilation, dilation),
            dimension_numbers=numbers,
        )
        if bias is None:
            return y
        return y + (bias[:, None, None] if layout == "NCHW" else bias)

    return convolve


def _table8(task: Task, layout: str) -> Callable[[Any], Any]:
    """The layers of paper 000, Table 8; a transposed convolution is one over a dilated input with a flipped kernel."""
    from jax import numpy as jnp

    convolve = _convolution(layout)
    arrays = [weight.numpy() for weight in task.weights]

    def forward(x: Any) -> Any:
        for index, (stride, padding, output_padding, transposed) in enumerate(TABLE8_LAYERS):
            weight, bias = arrays[2 * index], arrays[2 * index + 1]
            if transposed:
                reach = weight.shape[2] - 1 - padding
                flipped = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
                x = convolve(x, flipped, bias, 1, (reach, reach + output_padding), stride)
            else:
                x = convolve(x, weight, bias, stride, (padding, padding))
            x = jnp.tanh(x)
        return x

    return forward


def _rewritten(task: Task, layout: str) -> Callable[[Any], Any]:
    """The graph of :mod:`fastmalade.bench.rewritten`."""
    from jax import numpy as jnp

    convolve = _convolution(layout)
    r = rewritten.rewrite(task.weights, *task.shape[1:])
    constant = r.constant if layout == "NCHW" else r.constant.transpose(1, 2, 0)

    def shuffled(x: Any) -> Any:
        if layout == "NCHW":
            b, c, h, w = x.shape
            return x.reshape(b, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        b, h, w, c = x.shape
        return x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * h, 2 * w, c // 4)

    def forward(x: Any) -> Any:
        x = jnp.tanh(convolve(x, r.conv1, r.bias1, 2, (2, 2)))
        x = jnp.tanh(convolve(x, r.conv2, r.bias2, 2, (2, 2)))
        x = jnp.tanh(shuffled(convolve(x, r.up1, r.up_bias1, 1, (2, 2))))
        x = jnp.tanh(convolve(x, r.point, r.point_bias, 1, (0, 0)))
        return jnp.tanh(shuffled(convolve(x, r.up2, None, 1, (1, 1))) + constant)

    return forward
