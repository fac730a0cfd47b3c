"""What alembic runs: the migrations, in the transaction that database.py opened."""

from __future__ import annotations

from alembic import context

from service.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
