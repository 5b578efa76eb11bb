"""Which tensors of a checkpoint are quantised: what they stand for is not in them alone."""

import re

from ckpt_probe.checkpoints.writing import Layout

BITSANDBYTES = re.compile(r"(.+)\.quant_state\.bitsandbytes__(\w+)")
COMPANIONS = (
    ("{}.absmax", "bitsandbytes, 4 bits"),
    ("{module}.SCB", "bitsandbytes, 8 bits"),
    ("{module}.weight_scale_inv", "scaled 8-bit floats"),
    ("{module}.weight_scale", "scaled"),
    ("{module}.scales", "GPTQ or AWQ"),
    ("{module}.zero_point", "with zero points"),
)
"""Names that stand beside a quantised tensor, and what they tell."""
PACKED = ("qweight", "weight_packed")
SMALL = frozenset({"I8", "U8", "I16", "U16", "I32"})


def quantised(layout: Layout) -> dict[str, str]:
    """Name of each quantised tensor, and by what; found by its dtype and by what stands beside it.

    A matrix of whole numbers called weight is taken for one too, whatever stands beside it.
    """
    stated = {found[1]: found[2] for name in layout if (found := BITSANDBYTES.fullmatch(name))}
    found = {}
    for name, (dtype, shape) in layout.items():
        module, _, last = name.rpartition(".")
        beside = (how for form, how in COMPANIONS if form.format(name, module=module) in layout)
        if name in stated:
            found[name] = f"bitsandbytes {stated[name]}"
        elif last in PACKED or (last == "weight" and (dtype in SMALL or dtype.startswith("F8_"))):
            told = next(beside, None)
            if told is not None or last in PACKED or len(shape) > 1:
                found[name] = told or f"{dtype}, of which nothing is said"
    return found
