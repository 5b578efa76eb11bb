"""Matrix entropies of the accumulated rows: spectra of their moments, exact or sampled, by level."""
