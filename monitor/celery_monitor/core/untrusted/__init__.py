"""Data from outside (brokers, workers, result backends, databases of others) as it may be used, stored and printed."""
