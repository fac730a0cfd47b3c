"""A copy of a server becomes a machine of its own: what tells machines apart is made anew, by the copy itself.

Its host name and its programs' licences, keys and jobs stay: what depends on them is not known from here.
"""

from __future__ import annotations

from collections.abc import Iterator

from recovery.repair.draft import Draft
from recovery.repair.record import Finding

_MACHINE_ID = "/etc/machine-id"
_WHY = "a copy is another machine"
_SSH_KEYS = "/etc/ssh/ssh_host_*"
_KEYGEN = "/usr/bin/ssh-keygen"
_UNITS = ("ssh", "sshd")
_BEFORE_SSH = """# Made by Understudy for this copy: its host keys are its own.
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
"""
_AGENT = "/var/lib/understudy-agent/{}"
_AGENT_FILES = ("identity.json", "key.pem", "certificate.pem")


def renew(draft: Draft) -> Iterator[Finding]:
    """Drafts that the copy finds no machine id, no SSH host keys, no random seed and no agent's identity."""
    renewed = []
    if draft.read(_MACHINE_ID):
        draft.write(_MACHINE_ID, b"", _WHY)  # empty: systemd makes one, and it is no first boot
        draft.remove("/var/lib/dbus/machine-id", _WHY)
        renewed.append("machine id")
    keys = draft.glob(_SSH_KEYS)
    if keys and draft.glob(_KEYGEN):
        for path in keys:
            draft.erase(path, _WHY)
        for unit in _UNITS:
            if draft.glob(f"/lib/systemd/system/{unit}.service", f"/usr/lib/systemd/system/{unit}.service"):
                path = f"/etc/systemd/system/{unit}.service.d/understudy.conf"
                draft.write(path, _BEFORE_SSH.encode(), "sshd starts with keys only, and not every system makes them")
        renewed.append("SSH host keys")
    for path in draft.glob("/var/lib/systemd/random-seed"):
        draft.erase(path, _WHY)
        renewed.append("random seed")
    agents = draft.glob(*(_AGENT.format(name) for name in _AGENT_FILES))
    for path in agents:
        draft.erase(path, "the server's agent is the server's")
    if agents:
        renewed.append("agent's identity (enrol it anew if the copy is to be protected)")
    if renewed:
        yield Finding("warn", f"this copy gets its own: {', '.join(renewed)}", repaired=True)
