"""Evaluation: accuracy with intervals, attacks through foolbox, and the transfer protocol of the papers."""

from __future__ import annotations

from fastmalade.evaluation.accuracy import accuracy, predictions, wilson_interval
from fastmalade.evaluation.foolbox_attacks import ATTACK_CHUNK, AttackName, attacked
from fastmalade.evaluation.transfer import TransferRow, attacked_images, transfer_table

__all__ = [
    "ATTACK_CHUNK",
    "AttackName",
    "TransferRow",
    "accuracy",
    "attacked",
    "attacked_images",
    "predictions",
    "transfer_table",
    "wilson_interval",
]
