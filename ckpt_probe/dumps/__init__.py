"""Read and write HDF5 dumps of features and classifier weights."""

from ckpt_probe.dumps.reading import Dump, has_dumps, open_dump, open_dump_series, ordered_dumps, read_provenance
from ckpt_probe.dumps.schema import FEATURE_DTYPES, FORMAT_VERSION, PENULTIMATE, STORES, Provenance, require_split_name
from ckpt_probe.dumps.views import LayerView, Pass, SplitView
from ckpt_probe.dumps.writing import DumpWriter, as_stored
