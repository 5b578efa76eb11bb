"""Arrays held in memory: where they come from, and which of their samples are taken, as they are or changed."""
