"""Counts over time by minute, hour and day: written by the counters, read as series and as failure groups."""
