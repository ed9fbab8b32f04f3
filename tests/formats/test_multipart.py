"""Multipart framing, read by the standard library."""

import email
from email import policy

from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.formats.multipart import closing, form_data, part_head

BOUNDARY = "nobody-guesses-this"


def parsed(parts: list[tuple[dict[str, str], bytes]]) -> list[tuple[dict[str, str], bytes]]:
    body = b"".join(part_head(BOUNDARY, headers, first=not i) + content for i, (headers, content) in enumerate(parts))
    head = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body + closing(BOUNDARY), policy=policy.HTTP)
    return [(dict(part.items()), part.get_payload(decode=True)) for part in message.iter_parts()]  # type: ignore[misc]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_parts_are_read_as_they_were_written(contents: list[bytes]) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Transfer-Encoding": "binary"}
    # The standard library ends lines of a text as it likes; what it must not do is lose a byte of another kind.
    contents = [content.replace(b"\r", b"_").replace(b"\n", b"_") for content in contents]
    assert [content for _, content in parsed([(headers, content) for content in contents])] == contents


def test_a_name_cannot_end_its_header() -> None:
    ((headers, content),) = parsed([({"Content-Disposition": form_data("0", 'a"b\r\nX-Evil: 1')}, b"x")])
    assert headers == {"Content-Disposition": 'form-data; name="0"; filename="a%22b__X-Evil: 1"'}
    assert content == b"x"
