"""Migrations, run at every start by service.store.database."""
