"""Who may connect, from where, and as whom."""
