"""Presentation of records: tables, JSON Lines, CSV, data frames, figures, pages, and summaries in words."""

from ckpt_probe.reporting.comparison import comparison_footnotes, comparison_table
from ckpt_probe.reporting.formats import to_csv, to_dataframe, to_json_line, write_event_files, write_parquet
from ckpt_probe.reporting.table import footnotes, records_table
from ckpt_probe.reporting.uncertain import number_with_error, short_number
