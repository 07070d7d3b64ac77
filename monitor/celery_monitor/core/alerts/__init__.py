"""Alerts without I/O: the kinds of rules, and how alerts begin, end and become messages."""
