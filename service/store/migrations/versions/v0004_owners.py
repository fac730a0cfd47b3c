"""Who was the server before a failover, who came back since, and what was committed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("servers", sa.Column("state_since", sa.Double))
    op.add_column("servers", sa.Column("source_machine", sa.String(100)))
    op.add_column("servers", sa.Column("stale", sa.JSON))
    op.add_column("runs", sa.Column("committed_at", sa.Double))
    op.add_column("pulls", sa.Column("received_bytes", sa.BigInteger, nullable=False, server_default="0"))
