"""Queries to a defence and its answers, kept in a file: they are the expensive part of training a substitute."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastmalade.attacks.state import identity_of
from fastmalade.files import write_bytes
from fastmalade.models.modes import evaluation_mode
from fastmalade.progress import progress_bar
from fastmalade.training.loop import CheckpointError

SAVE_SECONDS = 60.0
_FORMAT = 1
_PARAMETER = "parameter:"


class Queries:
    """Images to query, the answers so far, and the substitute trained on them.

    Args:
        images: (n, C, H, W), the first images to query.
        asked: the model that is queried; the file identifies it by its structure and parameters.
        settings: what the answers and later images depend on.
        checkpoint: file for all of this; read if it exists, written from the first answer on.

    Attributes:
        images: (m, C, H, W), all so far.
        answers: (k, ...), for the first k <= m images.
        agreement: see :class:`fastmalade.attacks.substitute.QueriedSet`; one entry for each finished round.
        parameters: state of the substitute after the last finished round.

    Raises:
        CheckpointError: the file belongs to another run, or is not a record of queries.
    """

    def __init__(
        self,
        images: Tensor,
        asked: nn.Module,
        settings: Mapping[str, Any],
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        self.images = images.detach()
        self.answers: Tensor | None = None
        self.agreement: list[float] = []
        self.parameters: dict[str, Tensor] = {}
        self.path = None if checkpoint is None else Path(checkpoint)
        self._saved_at = time.perf_counter()
        if self.path is not None:
            none = torch.zeros(0)
            self._identity = identity_of(settings, asked, images, none, none)
            if self.path.exists():
                self._load(self.path)

    @property
    def training_checkpoint(self) -> Path | None:
        """File beside the record for the epochs of the training in progress."""
        return None if self.path is None else self.path.with_name(self.path.name + ".training")

    def ask(
        self, answer: Callable[[Tensor, Tensor], Tensor], model: nn.Module, size: int, label: str, *, progress: bool
    ) -> Tensor:
        """Answers for all images; those not answered yet are queried in batches and saved from time to time.

        Args:
            answer: images (b, C, H, W) and sample ids, int64 (b,), their positions among all images, to answers
                (b, ...).
            model: put into eval mode meanwhile.
            size: images per query.
            label: text beside the progress bar.
            progress: show the bar on standard error.
        """
        done = 0 if self.answers is None else len(self.answers)
        if self.answers is not None and done == len(self.images):
            return self.answers
        try:
            with evaluation_mode(model), torch.no_grad(), progress_bar(enabled=progress) as bar:
                task = bar.add_task(label, total=len(self.images), completed=done)
                for first in range(done, len(self.images), size):
                    part = self.images[first : first + size]
                    new = answer(part, torch.arange(first, first + len(part), device=part.device))
                    # One assignment: an interruption leaves the record before this batch, or after it.
                    self.answers = new if self.answers is None else torch.cat([self.answers, new])
                    bar.advance(task, len(part))
                    if time.perf_counter() - self._saved_at > SAVE_SECONDS:
                        self.save()
        finally:
            self.save()
        assert self.answers is not None
        return self.answers

    def extend(self, images: Tensor) -> None:
        """Add images (m, C, H, W) to query."""
        self.images = torch.cat([self.images, images.detach()])

    def end_round(self, substitute: nn.Module, agreement: float) -> None:
        """Keep the state of a substitute that was trained on all answers, and delete the record of its epochs."""
        self.parameters = {name: tensor.detach().clone() for name, tensor in substitute.state_dict().items()}
        self.agreement = [*self.agreement, agreement]
        # First of all: leftover epochs would stop the next round after an interruption; a lost round is just run again.
        if self.training_checkpoint is not None:
            self.training_checkpoint.unlink(missing_ok=True)
        self.save()

    def save(self) -> None:
        """Write the record to its file, whole or not at all; nothing without a file or before the first answer."""
        if self.path is None or self.answers is None:
            return
        tensors = {"images": self.images, "answers": self.answers}
        tensors |= {_PARAMETER + name: tensor for name, tensor in self.parameters.items()}
        text = json.dumps({"format": _FORMAT, "identity": self._identity, "agreement": self.agreement})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Copies: safetensors refuses tensors that share memory, as tied parameters do.
        copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        write_bytes(self.path, save(copies, metadata={"fastmalade-queries": text}))
        self._saved_at = time.perf_counter()

    def _load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("fastmalade-queries")
                tensors = {name: file.get_tensor(name).to(self.images.device) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: expected a record of queries, got {error}") from error
        header = None if text is None else json.loads(text)
        if header is None or header["format"] != _FORMAT:
            raise CheckpointError(f"{path}: expected a record of queries of format {_FORMAT}")
        differing = [name for name, value in self._identity.items() if header["identity"][name] != value]
        if differing:
            details = ", ".join(
                f"{name}: expected {self._identity[name]}, got {header['identity'][name]}" for name in differing
            )
            raise CheckpointError(f"{path} was made with other settings ({details}); delete it or name another file")
        self.images, self.answers, self.agreement = tensors["images"], tensors["answers"], header["agreement"]
        self.parameters = {k.removeprefix(_PARAMETER): v for k, v in tensors.items() if k.startswith(_PARAMETER)}
