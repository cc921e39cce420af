"""The defences that the evaluations compare."""

from __future__ import annotations

from fastmalade.defenses import Apudae, AutoencodeAndClassify, DeepPrior, DefenseGan, InvertAndClassify, MagNet
from fastmalade.defenses.base import Defense


def compared_defenses() -> dict[str, Defense]:
    """Every shipped defence by name, as cheap as its paper allows where the paper's own settings take minutes an image.

    As printed: Defense-GAN with L = 200 and R = 10 (000), APuDAE's variants with n = 15 and alpha = 0.01 (003 Table 2).
    Not as printed: INC with 200 steps and DIP-INC with 100, where 004 has "typically more than 2000": their figures are
    of weaker defences than the paper's. MALADE has the chain that ships.
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
