"""Alerts in the receiver's process: one thread judges the rules, another sends messages to the channels."""
