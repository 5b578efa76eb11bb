"""Pure mathematics on tensors: Gram matrices, matrix entropy, mutual information, similarity, neural collapse."""

from ckpt_probe.metrics import similarity
from ckpt_probe.metrics.collapse import nc5, reference_values, simplex_etf
from ckpt_probe.metrics.covariance import alpha_req, participation_ratio, rankme
from ckpt_probe.metrics.decisions import nearest_means
from ckpt_probe.metrics.entropy import effective_rank, erank_difference, hdr, matrix_entropy, mir, mutual_information
from ckpt_probe.metrics.rows import gram

__all__ = [
    "alpha_req",
    "effective_rank",
    "erank_difference",
    "gram",
    "hdr",
    "matrix_entropy",
    "mir",
    "mutual_information",
    "nc5",
    "nearest_means",
    "participation_ratio",
    "rankme",
    "reference_values",
    "similarity",
    "simplex_etf",
]
