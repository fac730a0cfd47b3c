from collections.abc import Iterator
from pathlib import Path

import pytest

from service.store.database import Database, sqlite_url
from service.store.tenants import ensure_tenant


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database.open(sqlite_url(tmp_path / "understudy.sqlite"))
    with made.write() as connection:
        ensure_tenant(connection, "default", 0.0)
    yield made
    made.close()
