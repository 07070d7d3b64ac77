"""Where events come from: one module per way of reading them, all yielding the same Events."""
