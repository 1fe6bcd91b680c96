"""Where the annealed activation stands relative to A and B: the seven placements of the paper's Table 1."""

from __future__ import annotations

from typing import NamedTuple

from afa_lora.core.errors import unknown_name


class Placement(NamedTuple):
    """Which of the three sites of s·σ(B σ(A σ(x))) carry φ_β."""

    before_a: bool
    between: bool
    after_b: bool

    @property
    def linear(self) -> bool:
        return not any(self)


PLAIN = Placement(False, False, False)  # LoRA itself

# In Table 1's order.
PLACEMENTS: dict[str, Placement] = {
    "σ-A-B": Placement(True, False, False),
    "A-σ-B": Placement(False, True, False),
    "A-B-σ": Placement(False, False, True),
    "σ-A-σ-B": Placement(True, True, False),
    "A-σ-B-σ": Placement(False, True, True),
    "σ-A-B-σ": Placement(True, False, True),
    "σ-A-σ-B-σ": Placement(True, True, True),
}


def normalise_placement(name: str) -> str:
    """Return the paper's spelling of a placement; ``s`` stands for σ (``"A-s-B"`` is ``"A-σ-B"``).

    Raises:
        InvalidSettingError: not one of the seven.
    """
    spelled = name.replace("s", "σ") if isinstance(name, str) else name
    if spelled not in PLACEMENTS:
        raise unknown_name("placement", name, PLACEMENTS)
    return spelled
