import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.errors import BadMessage
from agent.protocol.messages import BeginRequest, CommitRequest, Hello, VolumeDeclaration, from_json, to_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
volume = VolumeDeclaration(path="/dev/sda", size_bytes=1 << 30, block_bytes=65536)


def test_a_message_arrives_as_it_was_sent() -> None:
    sent = BeginRequest(machine_id="m", volumes=[volume], supersedes=None)
    assert from_json(BeginRequest, json.loads(json.dumps(to_json(sent)))) == sent


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert from_json(VolumeDeclaration, {**to_json(volume), "colour": "red"}) == volume


def test_a_missing_field_is_named() -> None:
    with pytest.raises(BadMessage, match=r"BeginRequest\.machine_id is missing"):
        from_json(BeginRequest, {"volumes": []})


def test_a_field_of_the_wrong_type_is_named_with_its_place() -> None:
    document = {"machine_id": "m", "volumes": [{**to_json(volume), "size_bytes": "big"}]}
    with pytest.raises(BadMessage, match=r"volumes\[0\]\.size_bytes should be int, and is str"):
        from_json(BeginRequest, document)


def test_true_is_not_a_number() -> None:
    with pytest.raises(BadMessage):
        from_json(VolumeDeclaration, {"path": "p", "size_bytes": True, "block_bytes": 4096})


def test_a_whole_number_serves_where_a_fraction_may_stand() -> None:
    commit = from_json(
        CommitRequest, {"roots": [], "consistency": "crash", "completeness": "scanned", "age_seconds": 2}
    )
    assert commit.age_seconds == 2.0


@given(json_values)
def test_no_document_gets_more_than_a_bad_message_out_of_the_parser(document: object) -> None:
    for cls in (BeginRequest, CommitRequest, Hello):
        with contextlib.suppress(BadMessage):
            from_json(cls, document)
