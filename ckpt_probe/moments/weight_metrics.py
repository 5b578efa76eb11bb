"""Numbers in records of the weights of a series, for tables, plots and pages: names, labels and meanings."""

from ckpt_probe.moments.registry import Metric

CLAUSET, ANTOGNINI = "Clauset, Shalizi and Newman 2009", "Antognini and Sohl-Dickstein 2018"
PENNINGTON = "Marchenko and Pastur 1967"

# Each entry: name, label, meaning, source.
_ROWS = (
    ("audit.turn_ratio", "turn", "length of the way through the checkpoint, relative to the way past it", ""),
    ("spectrum.alpha", "α", "exponent of the power law of the largest eigenvalues; mean over matrices", CLAUSET),
    ("spectrum.alpha_stderr", "± α", "standard error of the exponent", CLAUSET),
    ("motion.step", "step size", "distance from the checkpoint before", ""),
    ("motion.from_first", "from first", "distance from the first checkpoint, relative to its norm", ""),
    ("motion.cosine", "cosine", "cosine of the displacements since the last and the last but one checkpoint", ""),
    ("motion.norm", "‖θ‖", "norm of the weights", ""),
    ("motion.sign_changes", "signs", "share of entries whose sign changed since the checkpoint before", ""),
    ("motion.path_ratio", "path ratio", "length of the way so far, relative to the distance from the first", ""),
    ("spectrum.stable_rank", "stable rank", "squared Frobenius norm by squared spectral norm; mean over matrices", ""),
    ("spectrum.norm", "‖W‖₂", "spectral norm; the largest of the matrices", ""),
    ("spectrum.spikes", "spikes", "number of eigenvalues beyond the edge of a random matrix", PENNINGTON),
    ("spectrum.spike_share", "spike share", "their share of the squared norm; mean over matrices", PENNINGTON),
    ("spectrum.effective_rank", "erank", "exponential of the entropy of the eigenvalues; mean over matrices", ""),
    ("spectrum.mean_log", "mean log λ", "mean logarithm of the eigenvalues; mean over matrices", ""),
    ("spectrum.tail", "tail", "number of eigenvalues in the tail", CLAUSET),
    ("spectrum.alpha_distance", "distance", "Kolmogorov distance between the tail and its power law", CLAUSET),
    ("spectrum.alpha_p", "p", "goodness of fit of the power law", CLAUSET),
    ("spectrum.change_spikes", "Δ spikes", "spikes of the change since the first checkpoint", PENNINGTON),
    ("spectrum.change_spike_share", "Δ share", "share of those spikes of its squared norm", PENNINGTON),
    ("audit.unchanged", "unchanged", "number of tensors that equal those of the checkpoint before", ""),
    ("audit.nan", "NaN", "number of NaN", ""),
    ("audit.inf", "inf", "number of infinite entries", ""),
    ("motion.path", "path", "length of the way so far", ""),
    ("motion.pca_1", "PC 1", "position along the first main direction of the trajectory", ANTOGNINI),
    ("motion.pca_2", "PC 2", "position along the second main direction", ANTOGNINI),
    ("motion.pca_share_1", "PC 1 share", "share of variance of the first main direction", ANTOGNINI),
    ("motion.pca_share_2", "PC 2 share", "share of variance of the second main direction", ANTOGNINI),
    ("motion.walk_share_1", "walk 1", "share of the first main direction of a random walk of equal length", ANTOGNINI),
    ("motion.walk_share_2", "walk 2", "share of its second main direction", ANTOGNINI),
)

WEIGHT_METRICS = tuple(
    Metric(name, label, meaning, name.partition(".")[0], priority, requires=(), source=source)
    for priority, (name, label, meaning, source) in enumerate(_ROWS, 1)
)
"""In the order in which a narrow table keeps its columns."""
