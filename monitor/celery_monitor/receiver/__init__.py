"""From the broker to rows: sources yield events, ingest folds and stores them."""
