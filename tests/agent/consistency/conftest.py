from tests.agent.volumes.disks import lab  # noqa: F401 (a fixture)
