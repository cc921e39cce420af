"""The rival purifiers of the papers, behind the interface of :class:`fastmalade.Defense`."""

from __future__ import annotations

from fastmalade.defenses.apudae import Apudae
from fastmalade.defenses.code_search import CodeSearch
from fastmalade.defenses.deep_prior import DeepPrior
from fastmalade.defenses.defense_gan import DefenseGan
from fastmalade.defenses.files import load_defense, save_defense
from fastmalade.defenses.inc import AutoencodeAndClassify, InvertAndClassify
from fastmalade.defenses.magnet import MagNet

__all__ = [
    "Apudae",
    "AutoencodeAndClassify",
    "CodeSearch",
    "DeepPrior",
    "DefenseGan",
    "InvertAndClassify",
    "MagNet",
    "load_defense",
    "save_defense",
]
