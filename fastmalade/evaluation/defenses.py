"""The defences that the evaluations compare."""

from __future__ import annotations

from fastmalade.defenses import Apudae, AutoencodeAndClassify, DeepPrior, DefenseGan, InvertAndClassify, MagNet
from fastmalade.defenses.base import Defense


def compared_defenses() -> dict[str, Defense]:
    """Every shipped defence by name, with the settings that the papers print where they print any.

    MALADE with N = 10, Defense-GAN with L = 200 and R = 10 (000), INC with 200 steps (004 has "typically more than
    2000"), DIP-INC with 100 steps, APuDAE's variants with n = 15 and alpha = 0.01 (003 Table 2).
    """
    apudae = Apudae.from_pretrained("apudae-mnist")
    assert isinstance(apudae, Apudae)
    found: dict[str, Defense] = {
        "malade": Defense.from_pretrained("malade-mnist"),
        "magnet": MagNet.from_pretrained("magnet-mnist"),
        "defense-gan": DefenseGan.from_pretrained("defense-gan-mnist"),
        "inc": InvertAndClassify.from_pretrained("inc-mnist"),
        "autoencode": AutoencodeAndClassify.from_pretrained("autoencode-mnist"),
        # Its default is BPDA; what an attack uses is for the attack to say.
        "dip-inc": DeepPrior(n_steps=100, gradient="unrolled").eval(),
    }
    for variant in ("direct", "A", "B", "C", "D", "E", "F", "G"):
        found[f"apudae-{variant}"] = Apudae(apudae.autoencoder, **(apudae.settings() | {"variant": variant})).eval()
    return found
