"""Results of attacks, and the state of a run that a checkpoint keeps."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastmalade.files import write_bytes

_FORMAT = 2  # 1 did not count gradients without information
_BATCH = "batch."


class AttackCheckpointError(ValueError):
    """Not a checkpoint, or one of another attack, model or images."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Attributes:
        adversarial: (n, C, H, W), dtype and device of the images attacked; inside the ball and the range.
        success: bool (n,): fooled, by the rule ``judged``, under noise that the attack has not seen.
        success_rate: float64 (n,): share of the judging queries that were fooled. ``1 - success_rate.mean()`` is the
            expected accuracy of the deployed defence, one query per image.
        judged: the rule behind ``success``, in words.
        epsilon: radius of the ball.
        norm: "linf", "l2" or "l1".
        losses: (restarts, steps, n) loss before each step, averaged over the noise draws; NaN where an image was
            done already.
        spread: (restarts, steps, n) cosine between the halves of the noise draws (NaN as above), or None if not asked
            for.
        queries: int64 (n,): forward passes of the model per image, every noise draw counted, judging included.
        gradients: int64 (n,): input gradients of the model per image, every noise draw counted.
        zero_gradients, non_finite_gradients: int64 (n,): steps of each image at which the mean gradient was zero
            everywhere, or NaN or infinite somewhere (then the image stayed where it was).
        warnings: sentences about images that count as robust because of such gradients; each was also issued as a
            :class:`fastmalade.attacks.GradientWarning`.
        seconds: wall time, over all resumed parts.
        settings: the settings of the attack.
    """

    adversarial: Tensor
    success: Tensor
    success_rate: Tensor
    judged: str
    epsilon: float
    norm: str
    losses: Tensor
    spread: Tensor | None
    queries: Tensor
    gradients: Tensor
    seconds: float
    settings: dict[str, Any]
    zero_gradients: Tensor
    non_finite_gradients: Tensor
    warnings: tuple[str, ...]

    @property
    def robust_accuracy(self) -> float:
        """Share of images that were not fooled by the rule ``judged``; for untargeted attacks only.

        Raises:
            ValueError: no image, or a targeted attack, whose failures need not be right answers.
        """
        if len(self.success) == 0:
            raise ValueError("robust_accuracy: expected at least one image, got none")
        if self.settings.get("targeted"):
            raise ValueError("robust_accuracy: expected an untargeted attack, got a targeted one")
        return 1.0 - float(self.success.double().mean())


@dataclass
class RunState:
    """Everything a run has found so far; ``batch`` holds the tensors of the batch in progress, by name.

    Attributes:
        start: index of the first image of the batch in progress.
        restart, step: where in that batch the run is; the step is the next one to do.
    """

    adversarial: Tensor
    success: Tensor
    success_rate: Tensor
    losses: Tensor
    spread: Tensor
    queries: Tensor
    gradients: Tensor
    zero_gradients: Tensor
    non_finite_gradients: Tensor
    batch: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    start: int = 0
    restart: int = 0
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def fresh(cls, images: Tensor, restarts: int, steps: int, *, spread: bool) -> RunState:
        """The state before the first step on images (n, C, H, W)."""
        n = len(images)

        def unknown() -> Tensor:
            return torch.full((restarts, steps, n), torch.nan, dtype=images.dtype, device=images.device)

        counts = torch.zeros(n, dtype=torch.int64, device=images.device)
        return cls(
            adversarial=images.detach().clone(),
            success=torch.zeros(n, dtype=torch.bool, device=images.device),
            success_rate=torch.zeros(n, dtype=torch.float64, device=images.device),
            losses=unknown(),
            spread=unknown().double() if spread else torch.zeros(0, dtype=torch.float64),
            queries=counts,
            gradients=counts.clone(),
            zero_gradients=counts.clone(),
            non_finite_gradients=counts.clone(),
        )

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Write the state to one safetensors file, whole or not at all."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "batch"]
        tensors = {n: getattr(self, n).contiguous() for n in names if isinstance(getattr(self, n), Tensor)}
        tensors |= {_BATCH + name: tensor.contiguous() for name, tensor in self.batch.items()}
        header = {n: getattr(self, n) for n in names if n not in tensors}
        text = json.dumps({"format": _FORMAT, "identity": dict(identity), "state": header})
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies: safetensors refuses tensors that share memory, as a first iterate does with its images.
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        write_bytes(path, save(copies, metadata={"fastmalade-attack": text}))

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, str], device: torch.device) -> RunState:
        """Read a state back; no code from the file is run.

        Raises:
            AttackCheckpointError: not a checkpoint, or one of another attack, model or images.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = (file.metadata() or {}).get("fastmalade-attack")
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
            header = json.loads(metadata) if metadata is not None else None
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise AttackCheckpointError(f"{path}: expected the checkpoint of an attack, got {error}") from error
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise AttackCheckpointError(f"{path}: expected the checkpoint of an attack of format {_FORMAT}")
        differing = [name for name, value in identity.items() if header["identity"].get(name) != value]
        if differing:
            details = ", ".join(
                f"{name}: expected {identity[name]}, got {header['identity'].get(name)}" for name in differing
            )
            raise AttackCheckpointError(f"{path} belongs to another run ({details}); delete it or name another file")
        batch = {name.removeprefix(_BATCH): t for name, t in tensors.items() if name.startswith(_BATCH)}
        known = {name: t for name, t in tensors.items() if not name.startswith(_BATCH)}
        return cls(**known, **header["state"], batch=batch)


class KeptImages:
    """Images that an attack of a library made, in a file of their own: all of them or none.

    Args:
        path: the file.
        identity: of :func:`identity_of`, which the file must agree with.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path, self.identity = path, dict(identity)

    def read(self) -> Tensor | None:
        """The images, or None where there is no file yet.

        Raises:
            AttackCheckpointError: not such a file, or one of another attack, model or images.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                known = json.loads((file.metadata() or {}).get("fastmalade-images", "null"))
                images: Tensor = file.get_tensor("adversarial")
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise AttackCheckpointError(f"{self.path}: expected the images of an attack, got {error}") from error
        if known != self.identity:
            raise AttackCheckpointError(f"{self.path} belongs to another run; delete it or name another folder")
        return images

    def write(self, images: Tensor) -> None:
        """Keep the images."""
        metadata = {"fastmalade-images": json.dumps(self.identity)}
        write_bytes(self.path, save({"adversarial": images.detach().contiguous().clone()}, metadata=metadata))


def identity_of(
    settings: Mapping[str, Any], model: object, images: Tensor, labels: Tensor, ids: Tensor
) -> dict[str, str]:
    """What a checkpoint must agree with: settings, and digests of model, images, labels and sample ids.

    A module is identified by its structure, parameters and buffers, any other callable by the name of its type alone.
    """
    model_digest = hashlib.sha256(type(model).__qualname__.encode())
    if isinstance(model, nn.Module):
        model_digest.update(repr(model).encode())
        for name, tensor in sorted(model.state_dict().items()):
            model_digest.update(name.encode() + _bytes(tensor))
    data_digest = hashlib.sha256(str((tuple(images.shape), images.dtype)).encode())
    for tensor in (images, labels, ids):
        data_digest.update(_bytes(tensor))
    return {
        "settings": json.dumps(dict(settings), sort_keys=True),
        "model": model_digest.hexdigest(),
        "images": data_digest.hexdigest(),
    }


def _bytes(tensor: Tensor) -> bytes:
    # Viewed as bytes first: numpy has no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def checked_path(checkpoint: str | os.PathLike[str] | None) -> Path | None:
    """The path of a checkpoint, or None."""
    return None if checkpoint is None else Path(checkpoint)
