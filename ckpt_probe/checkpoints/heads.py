"""Which tensors look like a classifier's weights, told from names and shapes alone: no model is at hand."""

import re
from dataclasses import dataclass

from ckpt_probe.checkpoints.writing import Layout
from ckpt_probe.series import natural

HEAD = re.compile(
    r"(?:^|[._])(heads?|classifiers?|fc|lm_head|score|logits?|output|out|out_proj|last_linear|linear|cls|predictions|"
    r"decoder|qa_outputs|final|readout|last_layer|projector|prototypes|proj)(?:[._]|\d*$)",
    re.IGNORECASE,
)
"""What the last layer is called, by those who name it."""
STRONG = re.compile(r"(?:^|[._])(heads?|classifiers?|fc|lm_head|score|logits?)$", re.IGNORECASE)
"""Names of a module that hardly anything else has."""
INNER = re.compile(
    r"(?:^|[._])(attn|attention|self_attn|query|key|value|q|k|v|qkv|[qkv]_proj|in_proj|mlp|ffn|intermediate|embed\w*|"
    r"wte|wpe|patch\w*|pos\w*|token\w*|gate\w*|up_proj|down_proj|lora\w*|router|downsample|pooler|pool\w*|relative\w*|"
    r"rel_pos\w*|lstm|rnn|gru|se|squeeze\w*|aux\w*|pre_logits|reduction|conv_?\w*)(?:[._]|$)",
    re.IGNORECASE,
)
"""What is inside a backbone."""
STACK = re.compile(r"(?:^|[._])(layers?|blocks?|h|stages?|features|layer\d+|block\d+)[._]\d+(?:[._]|$)", re.IGNORECASE)
"""One of several layers alike."""
MOST = 5
ENOUGH = 2
"""Points from which on a matrix is named at all."""


@dataclass(frozen=True)
class LikelyHead:
    """A matrix that may be a classifier's: its module and tensor, C classes, D features, and what speaks for it."""

    module: str
    weight: str
    classes: int
    features: int
    bias: bool
    reasons: tuple[str, ...]


def likely_heads(layout: Layout) -> list[LikelyHead]:
    """The matrices (C, D), or convolutions (C, D, 1, 1), that are most likely a classifier's, the likeliest first.

    Points for a name that heads have, the last place, more columns than rows, a bias of as many entries and a width
    that the rest of the model has; points off for names of inner layers. Empty where nothing looks like one.
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
        points, reasons = _judged(module, name == last, classes, features, bias, widths)
        if points >= ENOUGH:
            scored.append((-points, name, LikelyHead(module, name, classes, features, bias, tuple(reasons))))
    return [head for _, _, head in sorted(scored, key=lambda found: found[:2])[:MOST]]


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    flat = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    return flat and name.endswith("weight") and shape[0] > 1 and shape[1] > 1


def _judged(
    module: str, last: bool, classes: int, features: int, bias: bool, widths: set[int]
) -> tuple[int, list[str]]:
    said = [
        (3, f"called {module.rpartition('.')[2]}") if STRONG.search(module) else None,
        (2, "a name that heads have") if not STRONG.search(module) and HEAD.search(module) else None,
        (1, "the last of the names") if last else None,
        (1, "fewer rows than columns") if classes < features else None,
        (1, f"a bias of {classes:,}") if bias else None,
        (1, f"{features:,} wide, as a layer before it") if features in widths else None,
    ]
    for_it = [point for point in said if point is not None]
    stacked = 0 if not STACK.search(module) else 2 if last else 4
    against = stacked + (4 if INNER.search(module) else 0)
    return sum(points for points, _ in for_it) - against, [reason for _, reason in for_it]
