"""Network configuration that is bound to one card, by its hardware address or by a name that follows from its slot.

What binds to an address is loosened. A name that the configuration expects is given to the first card there is, by a
systemd link file: so whatever configures the network at home does so elsewhere. Routes and addresses stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from recovery.repair.draft import Draft
from recovery.repair.linux import bootloader
from recovery.repair.linux.system import System
from recovery.repair.record import Finding

_LINK = "/etc/systemd/network/00-understudy.link"
_SLOT = r"(?:en[opsxX]\w+|em\d+|p\d+p\d+)"
"""A card's name that follows from where it is plugged in, or from its address."""
_CARD = rf"(?:{_SLOT}|eth\d+)"
_BY_ADDRESS = "another network card has another hardware address"
_BY_ADDRESS_AND_NAME = "another network card has another address and another name"


def repair(draft: Draft, system: System) -> Iterator[Finding]:
    yield from _persistent_rules(draft)
    yield from _networkd(draft)
    yield from _netplan(draft)
    yield from _network_manager(draft)
    yield from _ifcfg(draft)
    yield from _names(draft, system)


def _persistent_rules(draft: Draft) -> Iterator[Finding]:
    for path in draft.glob("/etc/udev/rules.d/*persistent-net*.rules"):
        if re.search(r"^\s*[^#\s].*NAME=", draft.text(path), re.MULTILINE):
            draft.remove(path, "it keeps names for cards that are not there")
            yield _bound(path)


def _networkd(draft: Draft) -> Iterator[Finding]:
    for path in draft.glob("/etc/systemd/network/*.network", "/etc/systemd/network/*.link"):
        text = draft.text(path)
        any_card = "Path=*" if path.endswith(".link") else "Name=en* eth*"
        mended = _in_section(text, "Match", r"^(Permanent)?MACAddress=.*$", any_card)
        yield from _freed(draft, path, mended, _BY_ADDRESS)


def _netplan(draft: Draft) -> Iterator[Finding]:
    for path in draft.glob("/etc/netplan/*.yaml"):
        text = draft.text(path)
        mended = re.sub(r"^(\s*)macaddress:.*$", r'\1name: "e*"', text, flags=re.MULTILINE)
        # a flow mapping, as cloud-init does not write it, but people do
        mended = re.sub(r"(match:\s*\{[^}]*?)macaddress:[^,}]*", r'\1name: "e*"', mended)
        yield from _freed(draft, path, mended, _BY_ADDRESS)


def _network_manager(draft: Draft) -> Iterator[Finding]:
    """Its profiles apply to any card when they name none: no file has to be made, which SELinux would mistrust."""
    for path in draft.glob("/etc/NetworkManager/system-connections/*"):
        text = draft.text(path)
        if not re.search(r"^type=(ethernet|802-3-ethernet)$", text, re.MULTILINE):
            continue
        mended = _in_section(text, "connection", rf"^interface-name={_SLOT}$\n?", "")
        for section in ("ethernet", "802-3-ethernet"):
            mended = _in_section(mended, section, r"^mac-address=.*$\n?", "")
        yield from _freed(draft, path, mended, _BY_ADDRESS_AND_NAME)


def _ifcfg(draft: Draft) -> Iterator[Finding]:
    for path in draft.glob("/etc/sysconfig/network-scripts/ifcfg-*"):
        text = draft.text(path)
        if not re.search(r"^TYPE=[\"']?Ethernet", text, re.MULTILINE | re.IGNORECASE):
            continue
        pattern = rf"^(HWADDR=.*|DEVICE=[\"']?{_SLOT}[\"']?)$\n?"
        mended = re.sub(pattern, "", text, flags=re.MULTILINE)
        yield from _freed(draft, path, mended, _BY_ADDRESS_AND_NAME)


def _names(draft: Draft, system: System) -> Iterator[Finding]:
    """A name that ifupdown, netplan or networkd waits for."""
    expected = [(path, name) for path, name in _expected(draft)]
    if not expected or system.family in ("rhel", "suse"):
        return
    path, name = expected[0]
    options = "".join(draft.text(configuration) for configuration in bootloader.configurations(draft))
    if name == "eth0" and "net.ifnames=0" in options:
        return
    if any(re.search(r"^Name=", draft.text(link), re.MULTILINE) for link in draft.glob("/etc/systemd/network/*.link")):
        return  # somebody names cards there already
    text = f"# Made by Understudy's boot repair: {path} expects this name.\n[Match]\nPath=*\n\n[Link]\nName={name}\n"
    draft.write(_LINK, text.encode(), "the card is called otherwise elsewhere")
    others = sorted({other for _, other in expected} - {name})
    yield _bound(path)
    if others:
        yield Finding("warn", f"the network cards {', '.join(others)} are configured too; only {name} will be there")


def _expected(draft: Draft) -> Iterator[tuple[str, str]]:
    for path in draft.glob("/etc/network/interfaces", "/etc/network/interfaces.d/*"):
        for name in re.findall(rf"^\s*iface\s+({_CARD})\s", draft.text(path), re.MULTILINE):
            yield path, name
    for path in draft.glob("/etc/netplan/*.yaml"):
        for name, below in re.findall(rf"^\s+({_CARD}):[ \t]*\n?(.*\n?)", draft.text(path), re.MULTILINE):
            if "match:" not in below:
                yield path, name
    for path in draft.glob("/etc/systemd/network/*.network"):
        for name in re.findall(rf"^Name=({_CARD})\s*$", draft.text(path), re.MULTILINE):
            yield path, name


def _in_section(text: str, section: str, pattern: str, put: str) -> str:
    """`text` with `pattern` replaced within each [section]."""
    parts = re.split(r"(?m)^(?=\[)", text)
    return "".join(
        re.sub(pattern, put, part, flags=re.MULTILINE) if part.startswith(f"[{section}]") else part for part in parts
    )


def _freed(draft: Draft, path: str, mended: str, why: str) -> Iterator[Finding]:
    """Nothing where the text is as it was."""
    if mended != draft.text(path):
        draft.write_text(path, mended, why)
        yield _bound(path)


def _bound(path: str) -> Finding:
    what = f"{path} binds the network to this machine's card, by name or by hardware address"
    return Finding("warn", what, repaired=True)
