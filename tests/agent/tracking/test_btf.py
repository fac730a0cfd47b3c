import struct
from collections.abc import Sequence

import pytest

from agent.tracking.btf import KERNEL_BTF, Btf

INT, POINTER, STRUCT, UNION, TYPEDEF, FUNCTION_TYPE = 1, 2, 4, 5, 8, 13


class Blob:
    """Builds BTF; each method returns the new type's id."""

    def __init__(self) -> None:
        self.types, self.names, self.count = b"", b"\0", 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return len(self.names) - len(text) - 1

    def add(self, kind: int, name: str, members: int, of: int, rest: bytes = b"", flag: int = 0) -> int:
        self.types += struct.pack("<III", self.name(name), flag << 31 | kind << 24 | members, of) + rest
        self.count += 1
        return self.count

    def integer(self, name: str) -> int:
        return self.add(INT, name, 0, 4, struct.pack("<I", 32))

    def structure(self, name: str, members: Sequence[tuple[str, int, int]], kind: int = STRUCT, flag: int = 0) -> int:
        rest = b"".join(struct.pack("<III", self.name(member), of, bits) for member, of, bits in members)
        return self.add(kind, name, len(members), 64, rest, flag)

    def build(self) -> bytes:
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.names))
        return header + self.types + self.names


@pytest.fixture
def blob() -> Blob:
    return Blob()


def test_members_are_found_at_their_offsets_also_within_unnamed_parts(blob: Blob) -> None:
    number = blob.integer("int")
    inner = blob.structure("", [("deep", number, 32)])
    either = blob.structure("", [("one", number, 0), ("", inner, 64)], kind=UNION)
    blob.structure("request", [("first", number, 0), ("", either, 128), ("last", number, 320)])
    btf = Btf(blob.build())
    assert [btf.member_offset("request", name) for name in ("first", "one", "deep", "last")] == [0, 16, 28, 40]


def test_a_member_that_is_not_there_is_none(blob: Blob) -> None:
    blob.structure("request", [("first", blob.integer("int"), 0)])
    assert Btf(blob.build()).member_offset("request", "rq_disk") is None


def test_offsets_beside_bit_fields_are_read_without_the_fields_width(blob: Blob) -> None:
    number = blob.integer("int")
    blob.structure("bits", [("flag", number, 3 << 24 | 5), ("plain", number, 64)], flag=1)
    btf = Btf(blob.build())
    assert btf.member_offset("bits", "plain") == 8
    with pytest.raises(LookupError, match="bit field"):
        btf.member_offset("bits", "flag")


def test_two_structures_of_one_name_must_agree(blob: Blob) -> None:
    number = blob.integer("int")
    blob.structure("request", [("same", number, 0), ("moved", number, 32)])
    blob.structure("request", [("same", number, 0), ("moved", number, 64)])
    btf = Btf(blob.build())
    assert btf.member_offset("request", "same") == 0
    with pytest.raises(LookupError, match="differ in moved"):
        btf.member_offset("request", "moved")


def test_a_name_that_ends_like_another_is_not_mistaken_for_it(blob: Blob) -> None:
    number = blob.integer("int")
    blob.structure("old_request", [("bio", number, 32)])
    blob.structure("request", [("bio", number, 64)])
    assert Btf(blob.build()).member_offset("request", "bio") == 8


def test_parameters_of_a_function_name_the_structures_they_point_to(blob: Blob) -> None:
    number = blob.integer("int")
    request = blob.structure("request", [("bio", number, 0)])
    pointer = blob.add(POINTER, "", 0, request)
    anything = blob.add(POINTER, "", 0, 0)
    parameters = b"".join(struct.pack("<II", 0, of) for of in (anything, pointer, number))
    function = blob.add(FUNCTION_TYPE, "", 3, 0, parameters)
    blob.add(TYPEDEF, "btf_trace_done", 0, blob.add(POINTER, "", 0, function))
    btf = Btf(blob.build())
    assert btf.parameters("btf_trace_done") == [None, "request", None]
    with pytest.raises(LookupError, match="btf_trace_gone"):
        btf.parameters("btf_trace_gone")


def test_a_structure_that_is_not_there_is_an_error_that_names_it(blob: Blob) -> None:
    with pytest.raises(LookupError, match="gendisk"):
        Btf(blob.build()).member_offset("gendisk", "major")


@pytest.mark.parametrize("length", [0, 10, 24, 40])
def test_bytes_that_are_cut_short_are_refused(blob: Blob, length: int) -> None:
    blob.structure("request", [("bio", blob.integer("int"), 0)])
    with pytest.raises(ValueError, match="BTF"):
        Btf(blob.build()[:length])


def test_bytes_that_are_no_btf_are_refused() -> None:
    with pytest.raises(ValueError, match="not BTF"):
        Btf(bytes(100))


def test_a_kind_of_type_that_came_later_is_refused_rather_than_misread(blob: Blob) -> None:
    blob.add(25, "future", 0, 0)
    with pytest.raises(ValueError, match="unknown kind 25"):
        Btf(blob.build())


@pytest.mark.skipif(not KERNEL_BTF.exists(), reason="this kernel has no BTF")
def test_the_running_kernels_own_description_is_read() -> None:
    btf = Btf.of_kernel()
    assert btf.member_offset("list_head", "next") == 0
    assert btf.member_offset("list_head", "prev") == 8
    assert btf.member_offset("gendisk", "first_minor") == 4
    assert btf.parameters("btf_trace_block_rq_complete")[1] == "request"
