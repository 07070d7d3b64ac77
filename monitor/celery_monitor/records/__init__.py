"""What there is, one module a noun. Frozen where it can be; imports nothing of ours."""
