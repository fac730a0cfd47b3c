"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "enroll_tokens",
        sa.Column("secret_sha256", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("server_name", sa.String(255)),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double),
    )
    op.create_table(
        "servers",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("owner_machine", sa.String(100)),
        sa.Column("owner_since", sa.Double),
        sa.Column("retired_machine", sa.String(100)),
        sa.Column("home_arrived", sa.Boolean, nullable=False),
        sa.Column("failover_run", sa.String(60)),
        sa.Column("failback_run", sa.String(60)),
        sa.Column("volumes", sa.JSON, nullable=False),
        sa.Column("inventory", sa.JSON, nullable=False),
        sa.Column("last_seen_at", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("tenant", "name", name="uq_servers_tenant_name"),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(48), primary_key=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("server_id", sa.String(40), sa.ForeignKey("servers.id"), nullable=False),
        sa.Column("machine_id", sa.String(100), nullable=False),
        sa.Column("enrolled_at", sa.Double, nullable=False),
        sa.Column("not_after", sa.Double, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
    )
    op.create_table(
        "points",
        sa.Column("id", sa.String(60), primary_key=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("server_id", sa.String(40), sa.ForeignKey("servers.id"), nullable=False),
        sa.Column("server_name", sa.String(255), nullable=False),
        sa.Column("taken_at", sa.String(40), nullable=False),
        sa.Column("consistency", sa.String(20), nullable=False),
        sa.Column("completeness", sa.String(20), nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sent_bytes", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("volumes", sa.JSON, nullable=False),
        sa.Column("parent", sa.String(60)),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("verified_at", sa.String(40)),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("server_id", "sequence", name="uq_points_server_sequence"),
    )
    op.create_table(
        "pulls",
        sa.Column("point_id", sa.String(60), sa.ForeignKey("points.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("volume", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("machine_id", sa.String(100), nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.create_table(
        "commands",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("server_id", sa.String(40), sa.ForeignKey("servers.id"), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("sent_at", sa.Double),
        sa.Column("point", sa.String(60)),
        sa.Column("error", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("ix_commands_server_state", "commands", ["server_id", "state"])
    op.create_table(
        "plans",
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), primary_key=True),
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Double, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(60), primary_key=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("plan", sa.String(255), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("failover_run", sa.String(60)),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "steps",
        sa.Column("run_id", sa.String(60), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("args", sa.JSON, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("error", sa.Text),
        sa.Column("waits_for", sa.Text),
        sa.Column("result", sa.JSON, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("tenant", sa.String(100), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("action", sa.String(60), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_audit_tenant_at", "audit", ["tenant", "at"])
