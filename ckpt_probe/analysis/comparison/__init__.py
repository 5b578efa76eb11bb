"""Compare series of records: groups of runs, differences at steps or at equal loss, and their intervals."""
