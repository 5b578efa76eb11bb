"""Conclusions from names, dtypes and shapes of tensors, without a model: likely classifiers and quantised tensors."""

import re
from dataclasses import dataclass

from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.series import natural

HEAD = re.compile(
    r"(?:^|[._])(heads?|classifiers?|fc|lm_head|score|logits?|output|out|out_proj|last_linear|linear|cls|predictions|"
    r"decoder|qa_outputs|final|readout|last_layer|projector|prototypes|proj)(?:[._]|\d*$)",
    re.IGNORECASE,
)
"""Usual names of the last layer."""
STRONG = re.compile(r"(?:^|[._])(heads?|classifiers?|fc|lm_head|score|logits?)$", re.IGNORECASE)
"""Names that hardly any other module has."""
INNER = re.compile(
    r"(?:^|[._])(attn|attention|self_attn|query|key|value|q|k|v|qkv|[qkv]_proj|in_proj|mlp|ffn|intermediate|embed\w*|"
    r"wte|wpe|patch\w*|pos\w*|token\w*|gate\w*|up_proj|down_proj|lora\w*|router|downsample|pooler|pool\w*|relative\w*|"
    r"rel_pos\w*|lstm|rnn|gru|se|squeeze\w*|aux\w*|pre_logits|reduction|conv_?\w*)(?:[._]|$)",
    re.IGNORECASE,
)
"""Names of modules inside a backbone."""
STACK = re.compile(r"(?:^|[._])(layers?|blocks?|h|stages?|features|layer\d+|block\d+)[._]\d+(?:[._]|$)", re.IGNORECASE)
"""Names of one of several similar layers."""
MOST = 5
"""Largest number of matrices that are returned."""
ENOUGH = 2
"""Least number of points of a matrix that is returned."""

BITSANDBYTES = re.compile(r"(.+)\.quant_state\.bitsandbytes__(\w+)")
COMPANIONS = (
    ("{}.absmax", "bitsandbytes, 4 bits"),
    ("{module}.SCB", "bitsandbytes, 8 bits"),
    ("{module}.weight_scale_inv", "scaled 8-bit floats"),
    ("{module}.weight_scale", "scaled"),
    ("{module}.scales", "GPTQ or AWQ"),
    ("{module}.zero_point", "with zero points"),
)
"""Names of tensors that accompany a quantised tensor, and the quantisation that they indicate."""
PACKED = ("qweight", "weight_packed")
SMALL = frozenset({"I8", "U8", "I16", "U16", "I32"})


@dataclass(frozen=True)
class LikelyHead:
    """A matrix that may be the weights of a classifier.

    Attributes:
        module: Name of the module.
        weight: Name of the tensor.
        classes: Number of rows, C.
        features: Number of columns, D.
        bias: Whether the module has a bias of C entries.
        reasons: Properties that classifiers have.
    """

    module: str
    weight: str
    classes: int
    features: int
    bias: bool
    reasons: tuple[str, ...]


def likely_heads(layout: Layout) -> list[LikelyHead]:
    """Return the matrices (C, D), or convolutions (C, D, 1, 1), that are most likely a classifier's, likeliest first.

    A matrix gets points for a usual name of a head, the last position, more columns than rows, a bias of C entries and
    a width that other layers have; it loses points for names of inner layers. The result may be empty.
    """
    matrices = {name: shape[:2] for name, (_, shape) in layout.items() if _is_matrix(name, shape)}
    if not matrices:
        return []
    last = max(matrices, key=natural)
    widths = {shape[0] for _, shape in layout.values() if len(shape) == 1}
    scored = []
    for name, (classes, features) in matrices.items():
        module = name.removesuffix("weight").rstrip(".")
        bias = layout.get(f"{module}.bias" if module else "bias", ("", ()))[1] == (classes,)
        points, reasons = _points(module, name == last, classes, features, bias, widths)
        if points >= ENOUGH:
            scored.append((-points, name, LikelyHead(module, name, classes, features, bias, tuple(reasons))))
    return [head for _, _, head in sorted(scored, key=lambda entry: entry[:2])[:MOST]]


def quantised(layout: Layout) -> dict[str, str]:
    """Return names of quantised tensors with a description of the quantisation.

    They are recognised by their dtype and by accompanying tensors. An integer matrix called weight counts as one too.
    """
    stated = {match[1]: match[2] for name in layout if (match := BITSANDBYTES.fullmatch(name))}
    kinds: dict[str, str] = {}
    for name, (dtype, shape) in layout.items():
        module, _, last = name.rpartition(".")
        if name in stated:
            kinds[name] = f"bitsandbytes {stated[name]}"
        elif last in PACKED or (last == "weight" and (dtype in SMALL or dtype.startswith("F8_"))):
            present = (kind for form, kind in COMPANIONS if form.format(name, module=module) in layout)
            kind = next(present, None)
            if kind is not None or last in PACKED or len(shape) > 1:
                kinds[name] = kind or f"{dtype}, without a scale"
    return kinds


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    flat = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    return flat and name.endswith("weight") and shape[0] > 1 and shape[1] > 1


def _points(
    module: str, last: bool, classes: int, features: int, bias: bool, widths: set[int]
) -> tuple[int, list[str]]:
    candidates = [
        (3, f"called {module.rpartition('.')[2]}") if STRONG.search(module) else None,
        (2, "a usual name of heads") if not STRONG.search(module) and HEAD.search(module) else None,
        (1, "the last of the names") if last else None,
        (1, "fewer rows than columns") if classes < features else None,
        (1, f"a bias of {classes:,}") if bias else None,
        (1, f"{features:,} wide, as a layer before it") if features in widths else None,
    ]
    reasons = [candidate for candidate in candidates if candidate is not None]
    stacked = 0 if not STACK.search(module) else 2 if last else 4
    inner = 4 if INNER.search(module) else 0
    return sum(points for points, _ in reasons) - stacked - inner, [reason for _, reason in reasons]
