"""Evaluation: accuracy with intervals, transferred attacks, attacks through the defence, certificates."""

from __future__ import annotations

from fastmalade.evaluation.accuracy import accuracy, percent, predictions, wilson_interval
from fastmalade.evaluation.certificate import Certificate, certify
from fastmalade.evaluation.certificate_state import CertificateStateError
from fastmalade.evaluation.foolbox_attacks import ATTACK_CHUNK, AttackName, attacked
from fastmalade.evaluation.transfer import TransferRow, attacked_images, seeded, transfer_table
from fastmalade.evaluation.whitebox import WhiteboxRow, WhiteboxSettings, whitebox_rows

__all__ = [
    "ATTACK_CHUNK",
    "AttackName",
    "Certificate",
    "CertificateStateError",
    "TransferRow",
    "WhiteboxRow",
    "WhiteboxSettings",
    "accuracy",
    "attacked",
    "attacked_images",
    "certify",
    "percent",
    "predictions",
    "seeded",
    "transfer_table",
    "whitebox_rows",
    "wilson_interval",
]
