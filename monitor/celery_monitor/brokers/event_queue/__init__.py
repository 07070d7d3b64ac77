"""Brokers that carry no events: the queues of celery_monitor_capture take the place of events and broadcasts."""
