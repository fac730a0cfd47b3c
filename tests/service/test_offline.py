"""A point is proven with its manifest and the public key alone: by our command line, and by stock openssl."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.faults.harness import BINARIES
from tests.service.receiver.pushing import SERVER, Bench, Pusher, changed, make_image
from tests.service.receiver.verify.rot import document_of, flip, place_of


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Stopped once its points are made: nothing of it may be needed to prove them."""
    return Bench(tmp_path)


@pytest.fixture
def images() -> list[bytes]:
    first = make_image(12, seed=1)[:-65536] + b"\x07" * 65536
    return [first, changed(first, seed=2)]


@pytest.fixture
def points(bench: Bench, images: list[bytes]) -> list[str]:
    made = [Pusher(bench).push(image).id for image in images]
    bench.stop()
    return made


@pytest.fixture
def key(bench: Bench, tmp_path: Path) -> Path:
    path = tmp_path / "sign.pub"
    path.write_bytes(bench.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def offline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """In an empty environment: no service, no network, no settings."""
    command = [str(BINARIES / "understudy"), "verify", "--offline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})


def place(bench: Bench, point: str) -> Path:
    return bench.folder / "site" / SERVER.id / "volume-0" / f"{point}.qcow2"


def test_signature_and_volumes_are_proven_without_a_service(
    bench: Bench, points: list[str], images: list[bytes], key: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    for point, image in zip(points, images, strict=True):
        raw.write_bytes(image)
        for volume in (raw, place(bench, point)):
            manifest = document_of(bench, f"{point}.json")
            ran = offline(manifest, "--key", key, "--volume", f"0={volume}", "--json")
            assert ran.returncode == 0, ran.stderr
            document = json.loads(ran.stdout)
            assert (document["point"], document["signature"]) == (point, "valid")
            assert document["volumes_verified"] == [0]


def test_what_is_not_what_was_signed_is_refused(
    bench: Bench, points: list[str], images: list[bytes], key: Path, tmp_path: Path
) -> None:
    first, second = (document_of(bench, f"{point}.json") for point in points)
    other = offline(first, "--key", key, "--volume", f"0={place(bench, points[1])}")
    assert (other.returncode, "root" in other.stderr) == (1, True)
    flip(place(bench, points[0]), place_of(place(bench, points[0]), images[0][-65536:]))
    assert "root" in offline(first, "--key", key, "--volume", f"0={place(bench, points[0])}").stderr
    (tmp_path / "short").write_bytes(images[0][:-512])
    assert "bytes" in offline(first, "--key", key, "--volume", f"0={tmp_path / 'short'}").stderr
    flip(second, 100)
    assert offline(second, "--key", key).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-file", "--key", "KEY"], "cannot be read"),
        (["MANIFEST", "--key", "MANIFEST"], "no public key"),
        (["MANIFEST"], "--key"),
        (["MANIFEST", "--key", "KEY", "--volume", "x"], "N=IMAGE"),
        (["MANIFEST", "--key", "KEY", "--volume", "3=KEY"], "has no volume 3"),
        (["KEY", "--key", "KEY"], "cannot be read"),
    ],
)
def test_wrong_words_are_named(bench: Bench, points: list[str], key: Path, arguments: list[str], words: str) -> None:
    known = {"MANIFEST": str(document_of(bench, f"{points[0]}.json")), "KEY": str(key)}
    ran = offline(*[known.get(argument, argument) for argument in arguments])
    assert ran.returncode == 1
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


COMMANDS = """
python3 -c 'import json,sys; sys.stdout.write(json.load(open(sys.argv[1]))["manifest"])' "$1" > text
python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["signature"])' "$1" | base64 -d > signature
openssl pkeyutl -verify -pubin -inkey "$2" -rawin -in text -sigfile signature
"""


def test_openssl_alone_proves_the_signature_as_documented(
    bench: Bench, points: list[str], key: Path, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "verifying.md").read_text()
    assert COMMANDS.strip().replace('"$1"', "MANIFEST").replace('"$2"', "sign.pub") in page
    manifest = document_of(bench, f"{points[0]}.json")

    def check() -> subprocess.CompletedProcess[str]:
        command = ["sh", "-ec", COMMANDS, "sh", manifest, key]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    sound = check()
    assert (sound.returncode, "Success" in sound.stdout) == (0, True), sound.stderr
    manifest.write_text(manifest.read_text().replace("web01", "web02"))
    assert check().returncode != 0
