"""Drills that end by themselves, are done on a schedule, and leave proof behind."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("runs", sa.Column("expires_at", sa.Double))
    op.add_column("runs", sa.Column("scheduled", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("steps", sa.Column("closing", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "drill_schedules",
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), primary_key=True),
        sa.Column("every_seconds", sa.Double, nullable=False),
        sa.Column("window", sa.String(20)),
        sa.Column("at_once", sa.Integer, nullable=False),
        sa.Column("changed_at", sa.Double, nullable=False),
    )
    op.create_table(
        "proofs",
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("run_id", sa.String(60), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("server_id", sa.String(40), primary_key=True),
        sa.Column("point", sa.String(60), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("held", sa.Boolean, nullable=False),
    )
    op.create_index("ix_proofs_server_at", "proofs", ["server_id", "at"])
