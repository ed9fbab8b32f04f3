"""Bytes from our own reader to clients that are slower than it: each buffer is filled again only once it has left.

The server behind is made up and sends as fast as it can; connections, loops and TLS are real. Where a transport queues
a view without copying it, as uvloop and Python 3.12 do, a buffer that is filled too early reaches the client wrong.
"""

import asyncio
import random
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry

from storage_proxy.common.service.middleware import REQUEST_ID
from storage_proxy.downloads.bodies import Body, Progress
from storage_proxy.downloads.metrics import DownloadMetrics
from storage_proxy.downloads.sources import Chunk
from storage_proxy.http.transfers import Download, Transfers
from tests.support.upstream import Client, client, head, upstream

SIZE = 4 << 20
CONTENTS = {f"/bucket/{name}".encode(): random.Random(name).randbytes(SIZE) for name in "abcd"}

Loop = Callable[[], asyncio.AbstractEventLoop]


def loops() -> list[object]:
    found: list[object] = [pytest.param(asyncio.new_event_loop, id="asyncio")]
    try:
        import uvloop
    except ImportError:
        return found
    return [*found, pytest.param(uvloop.new_event_loop, id="uvloop")]


@pytest.mark.parametrize("budget", [128 << 20, 1 << 20], ids=["large buffers", "small buffers"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("new_loop", loops())
def test_slow_clients_receive_every_byte_as_it_was(new_loop: Loop, secure: bool, budget: int, tmp_path: Path) -> None:
    serving, trust = contexts(tmp_path) if secure else (None, None)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(slow_clients(serving, trust, budget))


async def slow_clients(serving: ssl.SSLContext | None, trust: ssl.SSLContext | None, budget: int) -> None:
    async def fast(request: bytes, writer: asyncio.StreamWriter) -> bool:
        content = CONTENTS[request.split()[1]]
        writer.write(head(SIZE) + content)
        await writer.drain()
        return True

    async with upstream(fast, tls=serving) as server, client(server.port, trust=trust, budget=budget) as ours:
        port, runner = await proxy(ours)
        try:
            async with asyncio.timeout(60):
                # The same names again: buffers of the first are used for the second.
                paces = [("a", 0.0), ("b", 0.001), ("c", 0.0005), ("d", 0.003), ("b", 0.0)]
                sums = await asyncio.gather(*(asyncio.to_thread(slowly, port, name, pace) for name, pace in paces))
        finally:
            await runner.cleanup()
        assert sums == [sha256(CONTENTS[f"/bucket/{name}".encode()]).hexdigest() for name, _ in paces]


async def proxy(ours: Client) -> tuple[int, web.AppRunner]:
    """Sends what it reads as downloads are sent."""
    transfers = Transfers(DownloadMetrics(CollectorRegistry()), stall_seconds=30)

    async def answer(request: web.Request) -> web.StreamResponse:
        async def chunks(progress: Progress) -> AsyncGenerator[Chunk, None]:
            reader = await ours.gets.open(request.match_info["name"], 0, SIZE, None)
            assert reader is not None
            try:
                while chunk := await reader.read():
                    progress.has_content = True
                    yield chunk
            finally:
                await reader.aclose()

        request[REQUEST_ID] = "r"
        response = web.StreamResponse()
        response.content_length = SIZE
        await transfers.send(request, response, Body(chunks), Download("blob", "j", 1))
        return response

    app = web.Application()
    app.router.add_get("/{name}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    return listening.getsockname()[1], runner


def slowly(port: int, name: str, pause: float) -> str:
    """The sha256 of a body that is read 64 KiB at a time into a small socket, with a pause after each."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 10)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        connection.sendall(f"GET /{name} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".encode())
        received = bytearray()
        while piece := connection.recv(64 << 10):
            received += piece
            time.sleep(pause)
    body = received.partition(b"\r\n\r\n")[2]
    assert len(body) == SIZE
    return sha256(body).hexdigest()


def contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server at 127.0.0.1 with a certificate of its own, and for who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = directory / "certificate.pem", directory / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(public, private)
    return serving, ssl.create_default_context(cafile=str(public))
