"""Real sockets: who may listen on an address that a service has reserved."""

import socket

import pytest

from storage_proxy.common.service.listener import Listener
from storage_proxy.common.service.reservations import reserved


async def sharing(address: str) -> Listener:
    listener = Listener("test", address)
    listener.shares_address = True
    await listener.start()
    return listener


async def test_several_listeners_share_a_reserved_address_and_nobody_else_gets_it() -> None:
    with reserved("127.0.0.1:0") as address:
        assert not address.endswith(":0")
        listeners = [await sharing(address), await sharing(address)]
        try:
            with pytest.raises(OSError, match="in use"):
                await Listener("other", address).start()
            with pytest.raises(OSError, match="in use"), reserved(address):
                pass
        finally:
            for listener in listeners:
                await listener.aclose()


async def test_an_address_on_which_somebody_listens_cannot_be_reserved() -> None:
    with reserved("127.0.0.1:0") as free:
        pass
    listener = await sharing(free)
    try:
        with pytest.raises(OSError, match="in use"), reserved(free):
            pass
    finally:
        await listener.aclose()


def test_a_reservation_takes_no_connection() -> None:
    with reserved("127.0.0.1:0") as address, pytest.raises(ConnectionRefusedError):
        host, port = address.split(":")
        socket.create_connection((host, int(port)))


def test_an_ipv6_address_stays_one() -> None:
    try:
        with reserved("[::1]:0") as address:
            assert address.startswith("[::1]:")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error.strerror}")
