"""What agents are asked to do. Delivered at least once: an agent that lost one is told again with its next hello."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import insert, select, update

from agent.protocol.errors import NotFound
from service.store.database import Database
from service.store.reading import read, readable
from service.store.rows import CommandProgress, CommandRow
from service.store.schema import commands

OPEN = (CommandProgress.QUEUED.value, CommandProgress.SENT.value)


class CommandStore:
    """`on_change` is called with the server's id after each change, from whatever thread made it."""

    def __init__(
        self,
        database: Database,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._on_change = on_change

    def add(self, command_id: str, tenant: str, server_id: str, kind: str, label: str | None) -> None:
        """There already: does nothing."""
        with self._database.write() as connection:
            if connection.execute(select(commands.c.id).where(commands.c.id == command_id)).one_or_none() is None:
                row = CommandRow(
                    id=command_id, tenant=tenant, server_id=server_id, kind=kind, label=label, created_at=time.time()
                )
                connection.execute(insert(commands).values(dataclasses.asdict(row)))
        self._on_change(server_id)

    def get(self, command_id: str) -> CommandRow:
        with self._database.read() as connection:
            found = connection.execute(select(commands).where(commands.c.id == command_id)).mappings().one_or_none()
        if found is None:
            raise NotFound(f"there is no command {command_id}")
        return read(commands, found, _row)

    def deliver(self, server_id: str) -> list[CommandRow]:
        """All that is not done, oldest first; from now on it counts as sent."""
        wanted = (commands.c.server_id == server_id) & commands.c.state.in_(OPEN)
        with self._database.read() as connection:  # most hellos find nothing, and should not take the write lock
            if connection.execute(select(commands.c.id).where(wanted).limit(1)).one_or_none() is None:
                return []
        sent = {"state": CommandProgress.SENT.value, "sent_at": time.time()}
        with self._database.write() as connection:
            query = select(commands).where(wanted).order_by(commands.c.created_at).with_for_update()
            found = connection.execute(query).mappings().all()
            connection.execute(update(commands).where(wanted).values(sent))
        return [dataclasses.replace(row, state=CommandProgress.SENT) for row in readable(commands, found, _row)]

    def finish(
        self,
        command_id: str,
        server_id: str,
        *,
        point: str | None = None,
        output: str | None = None,
        error: str | None = None,
    ) -> None:
        """How it ended; the first word counts. Raises NotFound, also for another server's."""
        done = {"state": CommandProgress.DONE.value, "point": point, "output": output, "error": error}
        with self._database.write() as connection:
            mine = (commands.c.id == command_id) & (commands.c.server_id == server_id)
            if connection.execute(select(commands.c.id).where(mine)).one_or_none() is None:
                raise NotFound(f"there is no command {command_id} for this server")
            connection.execute(update(commands).where(mine & commands.c.state.in_(OPEN)).values(done))
        self._on_change(server_id)

    def cancel(self, server_id: str, reason: str) -> None:
        """The agent that was asked is not the owner any more."""
        done = {"state": CommandProgress.DONE.value, "error": reason}
        with self._database.write() as connection:
            unfinished = (commands.c.server_id == server_id) & commands.c.state.in_(OPEN)
            connection.execute(update(commands).where(unfinished).values(done))
        self._on_change(server_id)


def _row(fields: dict[str, Any]) -> CommandRow:
    return CommandRow(**{**fields, "state": CommandProgress(fields["state"])})
