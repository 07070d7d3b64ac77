"""Alerts in the record: rules and channels, alerts and their messages, and the facts that rules are judged by."""
