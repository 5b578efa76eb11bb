"""Compute records from dumps, features or classifier weights; compare runs and layers."""

from ckpt_probe.analysis.comparison.compare import Comparison, compare
from ckpt_probe.analysis.entries import Record, empty_record, in_order, settled
from ckpt_probe.analysis.features import analyze_features
from ckpt_probe.analysis.record import Blocks, FirstPass, compute_from_blocks, compute_from_moments
from ckpt_probe.analysis.records import Records, read_records
from ckpt_probe.analysis.series import analyze, read_series
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.analysis.similarity import Similarity, similarity
from ckpt_probe.analysis.weights import weights_record
