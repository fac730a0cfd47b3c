"""A copy of a Windows gets a computer name and a machine GUID of its own, in its hives.

Its SID, its membership of a domain and the passwords that go with both stay: they are Windows' own to change (Sysprep).
"""

from __future__ import annotations

import uuid

from recovery.repair.record import Finding
from recovery.repair.windows.drivers import control_sets
from recovery.repair.windows.hivedraft import HiveDraft

_WHY = "a copy is another machine"
_CRYPTOGRAPHY, _MACHINE_GUID = r"Microsoft\Cryptography", "MachineGuid"


def rename(system: HiveDraft, name: str) -> Finding:
    """Draft the name in every control set that may be started from: as NetBIOS has it, and as DNS does."""
    for control_set in control_sets(system):
        names = rf"{control_set}\Control\ComputerName"
        for key in ("ComputerName", "ActiveComputerName"):
            # the latter is made at each start, and few hives hold one
            if key == "ComputerName" or system.has_key(rf"{names}\{key}"):
                system.set_text(rf"{names}\{key}", "ComputerName", name.upper(), _WHY)
        for value in ("Hostname", "NV Hostname"):
            system.set_text(rf"{control_set}\Services\Tcpip\Parameters", value, name, _WHY)
    return Finding(
        "warn",
        f"this copy is called {name}; its SID and its membership of a domain are still the server's",
        "before it meets the server: Sysprep; or leave the domain, and join it anew",
        repaired=True,
    )


def renew_guid(software: HiveDraft) -> Finding:
    """Draft another machine GUID, by which programs and their licences tell machines apart."""
    software.set_text(_CRYPTOGRAPHY, _MACHINE_GUID, str(uuid.uuid4()), _WHY)
    return Finding("warn", "this copy gets its own machine GUID", repaired=True)
