"""Alembic runs this: it takes the connection that ``migrations.upgrade`` was given."""

from alembic import context

from celery_monitor.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller's transaction is the only one
    render_as_batch=True,
)
context.run_migrations()
