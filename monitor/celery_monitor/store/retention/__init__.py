"""What is deleted, and on PostgreSQL the partitions that are dropped as a whole."""
