"""``python -m monitor`` is ``celery-monitor``."""

from monitor.cli import main

if __name__ == "__main__":  # a child process imports this module again
    main()
