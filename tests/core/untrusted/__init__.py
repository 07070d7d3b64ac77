"""Twins of core/untrusted/."""
