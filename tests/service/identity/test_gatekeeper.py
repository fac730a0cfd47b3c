"""Who a request comes from."""

from __future__ import annotations

import ssl
from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request

from agent.protocol.errors import AuthError
from service.identity.gatekeeper import Gatekeeper


def test_a_request_whose_connection_has_broken_meanwhile_has_no_identity() -> None:
    broken = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="service")
    transport = Mock(**{"get_extra_info.return_value": broken})
    with pytest.raises(AuthError):
        Gatekeeper(Mock(), Mock(), Mock()).serial_of(
            make_mocked_request("POST", "/agent/v1/hello", transport=transport)
        )
