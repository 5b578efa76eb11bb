"""Presentation of records: tables, JSON Lines, CSV, data frames, figures, pages, and summaries in words."""
