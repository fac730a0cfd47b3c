"""The database as a whole: what its own check finds wrong with tables and indexes, beside what rows say."""

from __future__ import annotations

from typing import Protocol

from service.receiver.verify.findings import Finding, Part, Verdict

_WAY_OUT = "stop the service and make the file anew: docs/runbooks/lost-receiver.md"
NAME = "database"


class Checked(Protocol):
    def complaints(self) -> list[str]: ...

    def index_anew(self) -> None:
        """Raises StorageError."""
        ...


def verify_database(database: Checked, *, heal: bool = False) -> Verdict:
    """`heal` makes the indexes anew, which is all that can be made from the rest. Raises StorageError."""
    before = database.complaints()
    if before and heal:
        database.index_anew()
    left = database.complaints() if before and heal else before
    findings = [
        Finding(
            part=Part.DATABASE,
            what=f"the database's file is damaged: {what}",
            where="database",
            points=[],
            way_out=_WAY_OUT,
            healed="" if what in left else "indexes were made anew",
        )
        for what in dict.fromkeys([*before, *left])
    ]
    return Verdict(point=NAME, findings=findings)
