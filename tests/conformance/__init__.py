"""Our record beside an independent one, while the integration suite of Celery runs: make conformance."""
