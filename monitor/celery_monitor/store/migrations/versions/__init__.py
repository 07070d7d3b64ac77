"""store migrations versions."""
