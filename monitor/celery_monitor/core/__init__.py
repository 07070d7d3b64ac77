"""What follows from records alone: no I/O, no clock, no logging."""
