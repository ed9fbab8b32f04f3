"""The Expect header (RFC 9110 section 10.1.1): a client is told to send its body when a handler is about to read it.

The law: nobody is invited to send what will be refused unread, and an expectation is answered inside the middlewares.
"""

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

_EXPECTS_CONTINUE: web.RequestKey[bool] = web.RequestKey("expects_continue", bool)


def without_expect(message: RawRequestMessage) -> tuple[RawRequestMessage, bool]:
    """``message`` without its Expect header, which aiohttp answers before any middleware; whether it was 100-continue.

    Another expectation is ignored, as the section allows.
    """
    expectation = message.headers.get(hdrs.EXPECT)
    if expectation is None:
        return message, False
    headers = CIMultiDict(message.headers)
    headers.popall(hdrs.EXPECT)
    expects_continue = message.version >= HttpVersion11 and expectation.lower() == "100-continue"
    return message._replace(headers=CIMultiDictProxy(headers)), expects_continue


def remember(request: web.BaseRequest) -> None:
    """Note that the client of ``request`` waits for 100 before it sends its body."""
    request[_EXPECTS_CONTINUE] = True


async def send_continue(request: web.Request) -> None:
    """Invite the body, if the client waits for that."""
    if request.get(_EXPECTS_CONTINUE):
        request[_EXPECTS_CONTINUE] = False
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
