"""One QEMU process: how it is called, started, found again and ended. It outlives the service."""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from agent.protocol.errors import SiteError, ToolMissing
from recovery.sites.contract import Devices, InstanceSpec, NetworkMode
from recovery.sites.local import png, qmp
from recovery.sites.local.accel import KVM
from recovery.sites.local.tools import await_exit, command_line, kill, last_line, processes, tool

QEMU = "qemu-system-x86_64"
CONSOLE = "console.log"
_LOG = "qemu.log"  # from when QEMU has read its arguments
_START_LOG = "start.log"  # until then
_MONITOR = "qmp.sock"
_PID = "pid"
_START_SECONDS = 60.0
_EXIT_SECONDS = 2.0
_FIRMWARE_FOLDER = Path("/usr/share/OVMF")
_FIRMWARE = (("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd"))
_CARDS = {Devices.VIRTIO: "virtio-net-pci", Devices.AHCI: "e1000e"}
_AHCI_PORTS = 6


class Machine:
    """The QEMU process of one instance; all its files are in the instance's folder (absolute)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def volume(self, index: int) -> Path:
        return self.folder / f"volume-{index}.qcow2"

    @property
    def was_started(self) -> bool:
        return (self.folder / CONSOLE).exists()

    def pid(self) -> int | None:
        """Of the running process; the command line tells it from another that got the same pid."""
        try:
            pid = int((self.folder / _PID).read_text())
        except (FileNotFoundError, ValueError):
            return None
        arguments = command_line(pid)
        if not arguments:
            await_exit(pid, _EXIT_SECONDS)
        return pid if self._is_ours(arguments) else None

    def start(self, spec: InstanceSpec, host_ports: Mapping[int, int], accel: str) -> None:
        """Start it in the background. Raises SiteError with QEMU's own words if it does not come up, ToolMissing."""
        command = self._command(spec, host_ports, accel)
        (self.folder / _LOG).unlink(missing_ok=True)
        with open(self.folder / _START_LOG, "wb") as log:
            try:
                # QEMU's own -daemonize: its parent returns when all is set up, or failed
                returned = subprocess.run(
                    command,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=_START_SECONDS,
                    check=False,
                    start_new_session=True,
                ).returncode
            except subprocess.TimeoutExpired:
                self.kill()
                raise SiteError(f"instance {spec.instance_id} did not start in {_START_SECONDS:.0f} s") from None
        if returned != 0:
            reason = self.last_words() or f"exit code {returned}"
            raise SiteError(f"instance {spec.instance_id} did not start: {reason}")

    def kill(self) -> None:
        """Every process of this instance, also one that has not written its pid file yet; returns when it is gone."""
        for pid, arguments in processes():
            if self._is_ours(arguments):
                kill(pid, arguments)

    def power_down(self) -> None:
        """Press the power button. Raises SiteError."""
        qmp.execute(self.folder / _MONITOR, "system_powerdown")

    def screenshot(self) -> bytes:
        """What its screen shows, as PNG. Raises SiteError, OSError."""
        picture = self.folder / f"screen-{secrets.token_hex(4)}.ppm"
        try:
            qmp.execute(self.folder / _MONITOR, "screendump", filename=str(picture))
            return png.from_ppm(picture.read_bytes())
        except ValueError as error:
            raise SiteError(f"QEMU's picture of {self.folder.name} cannot be read: {error}") from error
        finally:
            picture.unlink(missing_ok=True)

    def holds_connection(self, port: int) -> bool:
        """Is there one to this port of the guest's that got an answer from the guest? Raises SiteError."""
        line = "info usernet"
        table = qmp.execute(self.folder / _MONITOR, "human-monitor-command", **{"command-line": line})
        rows = [row.split() for row in table.splitlines()]
        # protocol and state, descriptor, the near end's address and port, the guest's address and port, two queues
        return any(row[0] == "TCP[ESTABLISHED]" and row[5] == str(port) for row in rows if len(row) == 8)

    def write_out_metadata(self, index: int) -> None:
        """What it holds in memory of a volume's qcow2 tables goes to the file, so that others can read them."""
        qmp.execute(
            self.folder / _MONITOR, "human-monitor-command", **{"command-line": f"qemu-io {_node(index)} flush"}
        )

    def last_words(self) -> str:
        """The last line that QEMU wrote about itself since it was started."""
        for name in (_LOG, _START_LOG):
            try:
                words = last_line((self.folder / name).read_text(errors="replace"))
            except FileNotFoundError:
                continue
            if words:
                return words.removeprefix(f"{QEMU}: ")
        return ""

    def _is_ours(self, arguments: list[str]) -> bool:
        return bool(arguments) and Path(arguments[0]).name == QEMU and str(self.folder / _PID) in arguments

    def _command(self, spec: InstanceSpec, host_ports: Mapping[int, int], accel: str) -> list[str]:
        command = [tool(QEMU), "-nodefaults", "-no-user-config", "-name", spec.instance_id, "-uuid", spec.machine_id]
        command += ["-machine", "q35", "-accel", KVM if accel == KVM else "tcg,thread=multi"]
        command += ["-cpu", "host" if accel == KVM else "max"]
        command += ["-smp", str(spec.cpus), "-m", f"{spec.memory_mib}M"]
        command += ["-display", "none", "-vga", "std", "-device", "virtio-rng-pci"]
        if spec.uefi:
            command += self._firmware()
        for index in range(len(spec.points)):
            node = {
                "driver": "qcow2",
                "node-name": _node(index),
                "discard": "unmap",
                "file": {"driver": "file", "filename": str(self.volume(index)), "discard": "unmap"},
            }
            command += ["-blockdev", json.dumps(node)]
            serial = f",serial={spec.serials[index]}" if index < len(spec.serials) else ""
            command += _disk(spec.devices, index, f"drive={_node(index)},bootindex={index + 1}{serial}")
        network = "user,id=net0" + _addressing(spec.address)
        if spec.network is NetworkMode.ISOLATED:
            network += ",restrict=on"
        guest = spec.address.partition("/")[0] if spec.address else ""
        for guest_port, host_port in sorted(host_ports.items()):
            network += f",hostfwd=tcp:127.0.0.1:{host_port}-{guest}:{guest_port}"
        command += ["-netdev", network, "-device", f"{_CARDS[spec.devices]},netdev=net0"]
        command += ["-chardev", f"file,id=console,path={CONSOLE},append=on", "-serial", "chardev:console"]
        command += ["-qmp", f"unix:{_MONITOR},server=on,wait=off"]
        # without -D nothing would be left of what QEMU says once it is in the background
        return [*command, "-pidfile", str(self.folder / _PID), "-D", str(self.folder / _LOG), "-daemonize"]

    def _firmware(self) -> list[str]:
        """UEFI with variables of the instance's own."""
        code, template = _firmware_files()
        variables = self.folder / "uefi-variables.fd"
        if not variables.exists():
            variables.write_bytes(template.read_bytes())
        drives = []
        for node, path, read_only in (("code", code, True), ("variables", variables, False)):
            file = {"driver": "file", "filename": str(path)}
            blockdev = {"driver": "raw", "node-name": node, "read-only": read_only, "file": file}
            drives += ["-blockdev", json.dumps(blockdev)]
        return [*drives, "-machine", "pflash0=code,pflash1=variables"]


def _disk(devices: Devices, index: int, settings: str) -> list[str]:
    if devices is Devices.VIRTIO:
        return ["-device", f"virtio-blk-pci,{settings}"]
    controller, port = divmod(index, _AHCI_PORTS)
    # the machine has one controller of its own, whose ports are called ide.0 and so on
    added = ["-device", f"ich9-ahci,id=ahci{controller}"] if controller and not port else []
    bus = f"ahci{controller}.{port}" if controller else f"ide.{port}"
    return [*added, "-device", f"ide-hd,bus={bus},{settings}"]


def check_machine(spec: InstanceSpec) -> None:
    """Could a machine like this be started here? Raises SiteError, ToolMissing."""
    tool(QEMU)
    _addressing(spec.address)
    if spec.uefi:
        _firmware_files()


def _firmware_files() -> tuple[Path, Path]:
    """Its code, and its variables as they are at first."""
    for names in _FIRMWARE:
        code, variables = (_FIRMWARE_FOLDER / name for name in names)
        if code.exists() and variables.exists():
            return code, variables
    raise ToolMissing("the UEFI firmware for guests is not installed", "install it: apt-get install ovmf")


def _addressing(address: str | None) -> str:
    """QEMU's words for a network of its own in which the guest gets this address by DHCP. Raises SiteError."""
    if address is None:
        return ""
    try:
        guest = ipaddress.IPv4Interface(address)
        others = (str(host) for host in guest.network.hosts() if host != guest.ip)
        # the first address is what most networks have their gateway at
        return f",net={guest.network},host={next(others)},dns={next(others)},dhcpstart={guest.ip}"
    except (ValueError, StopIteration):
        raise SiteError(
            f"site local cannot give a guest the address {address}", "use IPv4 and a prefix length of up to 29, or dhcp"
        ) from None


def is_used(port: int) -> bool:
    """Does somebody listen on this TCP port of loopback?"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def free_port() -> int:
    """A TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def available_memory_mib() -> int:
    """What this machine can still give to processes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise SiteError("/proc/meminfo does not say how much memory is available")


def _node(index: int) -> str:
    return f"volume{index}"
