from collections.abc import Iterator
from pathlib import Path

import pytest

from service.receiver.dedupe import sources
from tests.patience import PATIENCE_SECONDS
from tests.service.receiver.dedupe.estate import Estate


@pytest.fixture
def estate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Estate]:
    monkeypatch.setattr(sources, "OPEN_PATIENCE_SECONDS", PATIENCE_SECONDS)  # however busy the machine is
    made = Estate(tmp_path)
    yield made
    made.stop()
