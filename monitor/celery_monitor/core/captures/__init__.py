"""Captured messages: whether one agrees with the events of its task, and who signed it."""
