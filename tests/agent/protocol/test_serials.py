"""The serial numbers of an instance's disks."""

from agent.protocol.serials import volume_serial


def test_it_is_what_the_protocol_says_and_fits_into_every_kind_of_disk() -> None:
    # printf 'srv-1\0/dev/sda' | sha256sum
    assert volume_serial("srv-1", "/dev/sda") == "us-ff0a0c7541dda6308"
    assert len(volume_serial("srv-1", "/dev/sda")) == 20


def test_it_tells_volumes_and_servers_apart() -> None:
    of = [volume_serial(server, path) for server in ("srv-1", "srv-2") for path in ("/dev/sda", "/dev/sdb")]
    assert len(set(of)) == 4
