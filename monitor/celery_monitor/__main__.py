"""``python -m celery_monitor`` is ``celery-monitor``."""

from celery_monitor.cli import main

if __name__ == "__main__":  # a child process imports this module again
    main()
