"""Plans that do more: steps side by side, prices, caps, checks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("runs", sa.Column("price", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("runs", sa.Column("over_cap", sa.Text))
    op.add_column("steps", sa.Column("after", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("steps", sa.Column("retries", sa.Integer, nullable=False, server_default="0"))
    op.add_column("steps", sa.Column("optional", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("commands", sa.Column("output", sa.Text))
    op.create_table(
        "caps",
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), primary_key=True),
        sa.Column("instances", sa.Integer),
        sa.Column("price_per_hour", sa.Double),
        sa.Column("changed_at", sa.Double, nullable=False),
    )
    op.create_table(
        "plan_checks",
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), primary_key=True),
        sa.Column("plan", sa.String(255), primary_key=True),
        sa.Column("level", sa.String(20), nullable=False),
        sa.Column("findings", sa.JSON, nullable=False),
        sa.Column("price", sa.JSON),
        sa.Column("checked_at", sa.Double, nullable=False),
    )
    # Until now each step came after the one before it.
    steps = sa.table("steps", sa.column("position", sa.Integer), sa.column("after", sa.JSON))
    connection = op.get_bind()
    for position in connection.execute(sa.select(steps.c.position).distinct()).scalars().all():
        if position:
            connection.execute(steps.update().where(steps.c.position == position).values(after=[position - 1]))
