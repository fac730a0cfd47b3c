from tests.recovery.repair.conftest import worker_parts

__all__ = ["worker_parts"]
