"""The tables, as queries see them. A change here needs a migration beside it; a test compares the two.

Times are seconds since 1970 (UTC) unless the column is what an agent or an operator reads (taken_at, verified_at).
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("created_at", Double, nullable=False),
)


def _tenant() -> Column[str]:
    return Column("tenant", String(100), ForeignKey("tenants.name"), nullable=False)


enroll_tokens = Table(
    "enroll_tokens",
    metadata,
    Column("secret_sha256", String(64), primary_key=True),
    _tenant(),
    Column("server_name", String(255)),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
)

servers = Table(
    "servers",
    metadata,
    Column("id", String(40), primary_key=True),
    _tenant(),
    Column("name", String(255), nullable=False),
    Column("state", String(20), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("owner_machine", String(100)),
    Column("owner_since", Double),
    Column("retired_machine", String(100)),
    Column("source_machine", String(100)),
    Column("state_since", Double),
    Column("stale", JSON),
    Column("home_arrived", Boolean, nullable=False),
    Column("failover_run", String(60)),
    Column("failback_run", String(60)),
    Column("volumes", JSON, nullable=False),
    Column("inventory", JSON, nullable=False),
    Column("last_seen_at", Double),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("tenant", "name", name="uq_servers_tenant_name"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(48), primary_key=True),
    _tenant(),
    Column("server_id", String(40), ForeignKey("servers.id"), nullable=False),
    Column("machine_id", String(100), nullable=False),
    Column("enrolled_at", Double, nullable=False),
    Column("not_after", Double, nullable=False),
    Column("revoked", Boolean, nullable=False),
)

points = Table(
    "points",
    metadata,
    Column("id", String(60), primary_key=True),
    _tenant(),
    Column("server_id", String(40), ForeignKey("servers.id"), nullable=False),
    Column("server_name", String(255), nullable=False),
    Column("taken_at", String(40), nullable=False),
    Column("consistency", String(20), nullable=False),
    Column("completeness", String(20), nullable=False),
    Column("root", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sent_bytes", BigInteger, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("label", Text),
    Column("volumes", JSON, nullable=False),
    Column("parent", String(60)),
    Column("sequence", Integer, nullable=False),
    Column("verified_at", String(40)),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("server_id", "sequence", name="uq_points_server_sequence"),
)

pulls = Table(
    "pulls",
    metadata,
    Column("point_id", String(60), ForeignKey("points.id", ondelete="CASCADE"), primary_key=True),
    Column("volume", Integer, primary_key=True),
    _tenant(),
    Column("machine_id", String(100), nullable=False),
    Column("root", String(64), nullable=False),
    Column("received_bytes", BigInteger, nullable=False, server_default="0"),
    Column("at", Double, nullable=False),
)

commands = Table(
    "commands",
    metadata,
    Column("id", String(100), primary_key=True),
    _tenant(),
    Column("server_id", String(40), ForeignKey("servers.id"), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("label", Text),
    Column("state", String(20), nullable=False),
    Column("sent_at", Double),
    Column("point", String(60)),
    Column("output", Text),
    Column("error", Text),
    Column("created_at", Double, nullable=False),
    Index("ix_commands_server_state", "server_id", "state"),
)

plans = Table(
    "plans",
    metadata,
    Column("tenant", String(100), ForeignKey("tenants.name"), primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("text", Text, nullable=False),
    Column("changed_at", Double, nullable=False),
)

plan_checks = Table(
    "plan_checks",
    metadata,
    Column("tenant", String(100), ForeignKey("tenants.name"), primary_key=True),
    Column("plan", String(255), primary_key=True),
    Column("level", String(20), nullable=False),
    Column("findings", JSON, nullable=False),
    Column("price", JSON),
    Column("checked_at", Double, nullable=False),
)

caps = Table(
    "caps",
    metadata,
    Column("tenant", String(100), ForeignKey("tenants.name"), primary_key=True),
    Column("instances", Integer),
    Column("price_per_hour", Double),
    Column("changed_at", Double, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(60), primary_key=True),
    _tenant(),
    Column("kind", String(20), nullable=False),
    Column("plan", String(255), nullable=False),
    Column("state", String(20), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("failover_run", String(60)),
    Column("price", JSON, nullable=False),
    Column("over_cap", Text),
    Column("committed_at", Double),
    Column("expires_at", Double),
    Column("scheduled", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Index("ix_runs_tenant_created_at", "tenant", "created_at"),
    Index("ix_runs_state", "state"),
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", String(60), ForeignKey("runs.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    _tenant(),
    Column("name", Text, nullable=False),
    Column("action", String(40), nullable=False),
    Column("args", JSON, nullable=False),
    Column("after", JSON, nullable=False),
    Column("retries", Integer, nullable=False),
    Column("optional", Boolean, nullable=False),
    Column("closing", Boolean, nullable=False),
    Column("state", String(20), nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("error", Text),
    Column("waits_for", Text),
    Column("result", JSON, nullable=False),
)

drill_schedules = Table(
    "drill_schedules",
    metadata,
    Column("tenant", String(100), ForeignKey("tenants.name"), primary_key=True),
    Column("every_seconds", Double, nullable=False),
    Column("window", String(20)),
    Column("at_once", Integer, nullable=False),
    Column("changed_at", Double, nullable=False),
)

proofs = Table(
    "proofs",
    metadata,
    _tenant(),
    Column("run_id", String(60), ForeignKey("runs.id"), primary_key=True),
    Column("server_id", String(40), primary_key=True),
    Column("point", String(60), nullable=False),
    Column("at", Double, nullable=False),
    Column("held", Boolean, nullable=False),
    Index("ix_proofs_server_at", "server_id", "at"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _tenant(),
    Column("at", Double, nullable=False),
    Column("who", String(255), nullable=False),
    Column("action", String(60), nullable=False),
    Column("detail", Text, nullable=False),
    Index("ix_audit_tenant_at", "tenant", "at"),
)
