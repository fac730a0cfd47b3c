from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.receiver.pushing import Bench, Pusher


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def pusher(bench: Bench) -> Pusher:
    return Pusher(bench)
