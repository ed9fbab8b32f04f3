"""Addresses that several processes of one service listen on together.

The law: the address is refused to everybody but those processes, and stays theirs while none of them listens.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from storage_proxy.common.service.settings import parse_listen


@contextmanager
def reserved(listen: str) -> Iterator[str]:
    """Hold ``listen``; the address with its actual port, for sockets with SO_REUSEPORT of the same user.

    The sockets held here are bound and do not listen, so the kernel gives them no connection. They ask for SO_REUSEPORT
    only once they are bound: where somebody listens already, also with that option, binding fails.

    Raises OSError when the address cannot be had.
    """
    host, port = parse_listen(listen)
    with ExitStack() as stack:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            held = stack.enter_context(socket.socket(family, kind, protocol))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            held.bind((address[0], port, *address[2:]))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = held.getsockname()[1]  # of one name with several addresses all have the same
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
