"""MALADE's purifier, the rival purifiers of the papers, and a classifier behind any of them."""

from __future__ import annotations

from fastmalade.defenses.apudae import Apudae
from fastmalade.defenses.base import Defense, load_defense, save_defense
from fastmalade.defenses.code_search import CodeSearch
from fastmalade.defenses.deep_prior import DeepPrior
from fastmalade.defenses.defended import DefendedClassifier
from fastmalade.defenses.defense_gan import DefenseGan
from fastmalade.defenses.inc import AutoencodeAndClassify, InvertAndClassify
from fastmalade.defenses.magnet import MagNet
from fastmalade.defenses.purifier import Purifier

__all__ = [
    "Apudae",
    "AutoencodeAndClassify",
    "CodeSearch",
    "DeepPrior",
    "DefendedClassifier",
    "Defense",
    "DefenseGan",
    "InvertAndClassify",
    "MagNet",
    "Purifier",
    "load_defense",
    "save_defense",
]
