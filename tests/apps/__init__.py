"""Small Celery applications that real worker processes run in tests."""
