"""What S3 answers, made up, and who asked it."""

from collections.abc import Mapping


def answer(body: str = "", status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Made-Up", f"content-length: {len(body.encode())}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def listing(*keys: str, truncated: bool = False, token: str = "") -> bytes:
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>&quot;e&quot;</ETag>"
        "<LastModified>2024-01-02T03:04:05.678Z</LastModified></Contents>"
        for key in keys
    )
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return answer(
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{following}{contents}</ListBucketResult>"
    )


def asked_by(request_headers: Mapping[str, str]) -> str:
    """Whether a request is ours or the SDK's: it names itself."""
    return "sdk" if "boto" in request_headers.get("user-agent", "").lower() else "us"
