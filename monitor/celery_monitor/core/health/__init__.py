"""What is judged of a setup, as findings."""
