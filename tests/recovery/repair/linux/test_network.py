"""Networks that came up on one card only."""

from __future__ import annotations

from pathlib import Path

import pytest

from recovery.repair.draft import Draft
from recovery.repair.linux import network
from recovery.repair.record import Finding
from tests.recovery.repair.folder import FolderFiles, after, system

LINK = "/etc/systemd/network/00-understudy.link"


def repaired(
    tmp_path: Path, texts: dict[str, str], family: str = "debian"
) -> tuple[list[Finding], dict[str, str | None]]:
    draft = Draft(FolderFiles(tmp_path, texts))
    return list(network.repair(draft, system(family=family))), after(draft.changes())


def test_rules_that_keep_names_for_cards_are_set_aside(tmp_path: Path) -> None:
    path = "/etc/udev/rules.d/70-persistent-net.rules"
    rule = 'SUBSYSTEM=="net", ATTR{address}=="52:54:00:12:34:56", NAME="eth0"\n'
    findings, changed = repaired(tmp_path, {path: rule})
    assert changed == {path: None}
    assert [finding.level for finding in findings] == ["warn"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/network/interfaces", "auto lo\niface lo inet loopback\nallow-hotplug ens3\niface ens3 inet dhcp\n"),
        ("/etc/network/interfaces.d/lan", "auto enp1s0\niface enp1s0 inet static\n  address 10.0.0.7/24\n"),
        ("/etc/netplan/01.yaml", "network:\n  ethernets:\n    ens160:\n      dhcp4: true\n"),
        ("/etc/systemd/network/10.network", "[Match]\nName=eno1\n[Network]\nDHCP=yes\n"),
    ],
)
def test_the_name_that_a_configuration_waits_for_is_given_to_the_card_there_is(
    tmp_path: Path, path: str, text: str
) -> None:
    findings, changed = repaired(tmp_path, {path: text})
    assert list(changed) == [LINK]
    name = next(name for name in ("ens3", "enp1s0", "ens160", "eno1") if name in text)
    assert str(changed[LINK]).endswith(f"[Match]\nPath=*\n\n[Link]\nName={name}\n")
    assert all(finding.repaired for finding in findings)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/network/interfaces", "auto lo\niface lo inet loopback\n"),
        ("/etc/systemd/network/80-dhcp.network", "[Match]\nType=ether\nName=en* eth*\n\n[Network]\nDHCP=ipv4\n"),
        (
            "/etc/netplan/50.yaml",
            'network:\n  ethernets:\n    any:\n      match:\n        name: "e*"\n      dhcp4: true\n',
        ),
        (
            "/etc/NetworkManager/system-connections/a.nmconnection",
            "[connection]\nid=a\ntype=ethernet\n[ipv4]\nmethod=auto\n",
        ),
        ("/etc/NetworkManager/system-connections/b", "[connection]\ntype=bridge\ninterface-name=br0\n"),
    ],
)
def test_a_network_that_takes_any_card_is_left_alone(tmp_path: Path, path: str, text: str) -> None:
    assert repaired(tmp_path, {path: text}) == ([], {})


def test_old_names_that_the_kernel_is_told_to_keep_are_left_alone(tmp_path: Path) -> None:
    texts = {
        "/etc/network/interfaces": "auto eth0\niface eth0 inet dhcp\n",
        "/boot/grub/grub.cfg": "linux /vmlinuz net.ifnames=0 root=UUID=x\n",
    }
    assert repaired(tmp_path, texts) == ([], {})


def test_hardware_addresses_are_matched_no_more(tmp_path: Path) -> None:
    networkd = "/etc/systemd/network/10-a.network"
    plan = "network:\n  ethernets:\n    lan:\n      match:\n        {}\n      set-name: lan\n"
    _, changed = repaired(
        tmp_path,
        {
            networkd: "[Match]\nMACAddress=52:54:00:12:34:56\n[Link]\nMACAddress=00:11:22:33:44:55\n",
            "/etc/netplan/a.yaml": plan.format("macaddress: 52:54:00:1:2:3"),
        },
    )
    assert changed == {
        networkd: "[Match]\nName=en* eth*\n[Link]\nMACAddress=00:11:22:33:44:55\n",
        "/etc/netplan/a.yaml": plan.format('name: "e*"'),
    }


def test_profiles_of_the_red_hat_family_apply_to_any_card_without_a_new_file(tmp_path: Path) -> None:
    profile = "/etc/NetworkManager/system-connections/ens3.nmconnection"
    old = "/etc/sysconfig/network-scripts/ifcfg-ens3"
    _, changed = repaired(
        tmp_path,
        {
            profile: "[connection]\nid=ens3\ntype=ethernet\ninterface-name=ens3\n\n"
            "[ethernet]\nmac-address=52:54:00:12:34:56\n\n[ipv4]\naddress1=10.0.0.7/24\nmethod=manual\n",
            old: 'TYPE=Ethernet\nNAME=ens3\nDEVICE="ens3"\nHWADDR=52:54:00:12:34:56\nONBOOT=yes\n',
        },
        family="rhel",
    )
    assert changed == {
        profile: "[connection]\nid=ens3\ntype=ethernet\n\n[ethernet]\n\n[ipv4]\naddress1=10.0.0.7/24\nmethod=manual\n",
        old: "TYPE=Ethernet\nNAME=ens3\nONBOOT=yes\n",
    }
