"""What a run of certificates has counted so far, and the file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastmalade.files import write_json

_FORMAT = 1


class CertificateStateError(ValueError):
    """Not a checkpoint of certificates, or one of another run."""


@dataclass
class Counts:
    """Counts of the images that are done, in the order of the batch.

    Attributes:
        total: images in all.
        proposed: class that the first draws chose, for each image.
        agreeing: how many of the n draws said that class.
        seconds: wall time so far, over all resumed parts.
        identity: what a checkpoint must agree with.
    """

    total: int
    proposed: list[int] = field(default_factory=list)
    agreeing: list[int] = field(default_factory=list)
    seconds: float = 0.0
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Images counted."""
        return len(self.proposed)

    def add(self, proposed: int, agreeing: int, seconds: float) -> None:
        """One more image."""
        self.proposed.append(proposed)
        self.agreeing.append(agreeing)
        self.seconds += seconds

    def save(self, path: Path) -> None:
        """Write the counts, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"proposed": self.proposed, "agreeing": self.agreeing, "seconds": self.seconds}
        write_json(path, {"certificates": _FORMAT, "identity": self.identity, **state})

    @classmethod
    def of_run(cls, path: Path, identity: Mapping[str, str], total: int) -> Counts:
        """The counts in a file, or none yet where there is no file.

        Raises:
            CertificateStateError: not a checkpoint of certificates, or one of another run.
        """
        fresh = cls(total, identity=dict(identity))
        if not path.exists():
            return fresh
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["certificates"] != _FORMAT:
                raise ValueError(f"format {known['certificates']}")
            found = cls(
                total, list(known["proposed"]), list(known["agreeing"]), float(known["seconds"]), fresh.identity
            )
            other = known["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise CertificateStateError(f"{path}: expected a checkpoint of certificates, got {error!r}") from error
        if other != fresh.identity or not len(found.proposed) == len(found.agreeing) <= total:
            raise CertificateStateError(
                f"{path} is of another run (model, images, sigma, n, n_selection or seed differ); "
                "delete it or name another file"
            )
        return found
