"""The page: one HTML file with its data, program and style, which makes no requests."""
