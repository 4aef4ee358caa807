"""Celery: the app, the three chained tasks, the worker process."""
