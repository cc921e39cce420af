"""Whether a network is exactly that of Table 8 (paper 000), so that the kernels compute what it computes.

An ``Autoencoder`` can be changed after it was made: hooks, pruning, weight norm, parametrizations, adapters in place of
layers, another stride. All of these show in what :data:`TABLE_8` lists. The definition is data, because it is read in
two places: here, and in csrc/network.h for calls on a few images, where looking in Python takes a fiftieth of the call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastmalade.models.autoencoder import Autoencoder


class Rule(NamedTuple):
    """What one module of a network has to be.

    Attributes:
        kind: its class, exactly.
        forward: what the class computes with; another one means that somebody replaced it for the whole process.
        attributes: names in the instance's ``__dict__`` and the values that they must equal.
    """

    kind: type[nn.Module]
    forward: Any
    attributes: dict[str, object]


class Definition(NamedTuple):
    """What a network has to be.

    Attributes:
        network: the network itself.
        layers: name -> rule, in the order of the ten tensors: weight and bias of each.
        own: names that no instance may have in its ``__dict__``.
        hooks: torch's tables of hooks that every module of the process calls; they must be empty.
    """

    network: Rule
    layers: dict[str, Rule]
    own: tuple[str, ...]
    hooks: tuple[dict[Any, Any], ...]


# Old weight norm and pruning are pre-hooks; parametrizations change the class of the layer.
_NO_HOOKS: dict[str, object] = {
    name: {} for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
}


def _convolution(kind: type[nn.Module], **settings: int) -> Rule:
    both: dict[str, object] = {name: (value, value) for name, value in {"dilation": 1, **settings}.items()}
    return Rule(kind, kind.forward, _NO_HOOKS | both | {"groups": 1, "padding_mode": "zeros"})


TABLE_8 = Definition(
    network=Rule(Autoencoder, Autoencoder.forward, _NO_HOOKS),
    layers={
        "conv1": _convolution(nn.Conv2d, stride=2, padding=2),
        "conv2": _convolution(nn.Conv2d, stride=2, padding=2),
        "deconv1": _convolution(nn.ConvTranspose2d, stride=2, padding=4, output_padding=1),
        "deconv2": _convolution(nn.ConvTranspose2d, stride=2, padding=0, output_padding=1),
        "conv3": _convolution(nn.Conv2d, stride=1, padding=2),
    },
    own=("forward",),
    hooks=(
        _module._global_forward_pre_hooks,
        _module._global_forward_hooks,
        _module._global_backward_pre_hooks,
        _module._global_backward_hooks,
    ),
)


def native_weights(network: object) -> tuple[Tensor, ...] | None:
    """The ten tensors of ``Autoencoder.weights()`` of a network that is exactly Table 8, else None.

    Exactly means: an :class:`fastmalade.Autoencoder`, or a subclass that computes with its ``forward``, whose layers
    are as its constructor made them, without hooks of its own or of the whole process, and whose ten tensors share one
    dtype and one device and do without ``__torch_dispatch__``. What the tensors hold, how many channels there are,
    whether they require a gradient and whether the network is in training mode makes no difference.
    """
    if not isinstance(network, Autoencoder) or any(len(hooks) > 0 for hooks in TABLE_8.hooks):
        return None
    if type(network).forward is not TABLE_8.network.forward or not _has(network, TABLE_8.network):
        return None
    weights: list[Tensor] = []
    for name, rule in TABLE_8.layers.items():
        layer = getattr(network, name, None)
        if type(layer) is not rule.kind or rule.kind.forward is not rule.forward or not _has(layer, rule):
            return None
        weights += (layer.weight, layer.bias)  # type: ignore[union-attr, arg-type]
    first = weights[0]
    for weight in weights:
        if not isinstance(weight, Tensor) or is_traceable_wrapper_subclass(weight):
            return None
        if weight.dtype != first.dtype or weight.device != first.device:
            return None
    return tuple(weights)


def is_native_autoencoder(network: object) -> bool:
    """Whether this network is exactly Table 8, see :func:`native_weights`."""
    return native_weights(network) is not None


def _has(module: nn.Module, rule: Rule) -> bool:
    """Whether the instance is as the rule says."""
    if any(name in module.__dict__ for name in TABLE_8.own):
        return False
    return all(getattr(module, name) == value for name, value in rule.attributes.items())
