"""A copy of a server becomes a machine of its own: what tells machines apart is made anew, most of it by the copy
itself. Its programs' licences, keys and jobs stay: what depends on them is not known from here.
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
_LEASES = (
    "/var/lib/dhcp/*.leases",
    "/var/lib/dhclient/*.lease*",
    "/var/lib/dhcpcd*/*.lease*",
    "/var/lib/dhcpcd*/duid",
    "/etc/dhcpcd.duid",
    "/var/lib/NetworkManager/*.lease",
    "/var/lib/NetworkManager/secret_key",
)
"""Also the ids by which DHCP servers know a client; those of systemd-networkd follow from the machine id."""
_HOSTNAME, _HOSTS = "/etc/hostname", "/etc/hosts"
_CLOUD_INIT = "/etc/cloud/cloud.cfg.d/99_understudy_clone.cfg"
_KEEP_NAME = b"# Made by Understudy for this copy: its name is its own.\npreserve_hostname: true\n"
_AGENT = "/var/lib/understudy-agent/{}"
_AGENT_FILES = ("identity.json", "key.pem", "certificate.pem")


def renew(draft: Draft, host_name: str) -> Iterator[Finding]:
    """Drafts that the copy has this name, and finds no machine id, SSH host keys, random seed, DHCP leases and no
    agent's identity."""
    _rename(draft, host_name)
    renewed = [f"host name ({host_name})"]
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
    leases = draft.glob(*_LEASES)
    for path in leases:
        draft.erase(path, _WHY)
    if leases:
        renewed.append("DHCP leases and client ids")
    agents = draft.glob(*(_AGENT.format(name) for name in _AGENT_FILES))
    for path in agents:
        draft.erase(path, "the server's agent is the server's")
    if agents:
        renewed.append("agent's identity (enrol it anew if the copy is to be protected)")
    yield Finding("warn", f"this copy gets its own: {', '.join(renewed)}", repaired=True)


def _rename(draft: Draft, host_name: str) -> None:
    """It keeps the domain of the old name, and goes on to reach itself by the old name, which programs are set to."""
    lines = (line.strip() for line in draft.text(_HOSTNAME).splitlines())
    old = next((line for line in lines if line and not line.startswith("#")), "")
    domain = old.partition(".")[2]
    names = [f"{host_name}.{domain}", host_name] if domain else [host_name]
    draft.write(_HOSTNAME, f"{names[0]}\n".encode(), _WHY)
    draft.write_text(_HOSTS, _hosts(draft.text(_HOSTS), {old, old.partition(".")[0]} - {""}, names), _WHY)
    if draft.glob("/usr/bin/cloud-init"):
        draft.write(_CLOUD_INIT, _KEEP_NAME, "cloud-init would give it another name")


def _hosts(text: str, old: set[str], names: list[str]) -> str:
    """The new names before the old ones, where these lead to the machine itself."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        code, mark, comment = line.partition("#")
        address, *known = code.split() or [""]
        at = next((at for at, name in enumerate(known) if name in old), None)
        if at is not None and (address.startswith("127.") or address == "::1"):
            known[at:at] = names
            lines[number] = "\t".join([address, " ".join(known)]) + (f" {mark}{comment}" if mark else "")
    if not any(names[0] in line.split() for line in lines):
        lines.append(f"127.0.1.1\t{' '.join(names)}")
    return "\n".join([*lines, ""])
