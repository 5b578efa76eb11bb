"""The page: one HTML file that holds its data, its drawing and its style, and asks for nothing else."""
