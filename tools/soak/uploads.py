"""Uploads that are wrong or cut: refused, or as if they had never been. And runs deleted while they are read."""

import asyncio
import random
import signal
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage_proxy.common.concurrency import cancel_and_wait
from tests.support.deployment import Backing, Deployment, deployed
from tests.support.producers import Producer, producing
from tests.support.programs import run
from tools.soak.faults import judge
from tools.soak.files import until_longer
from tools.soak.record import Record, Scale, mib

_SEED = 16
_BROKEN_EXITS = frozenset({18, 52, 56, 92})
"""Of curl: a body shorter than its length, no answer, a failed receive, a broken stream."""


async def wrong_uploads(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """curl PUTs what was not announced; external producers announce what is not there."""
    rng = random.Random(_SEED)
    record.did(
        "curl puts a wrong body, and one of a wrong length, to presigned URLs, and a second body to one; messages "
        "announce objects with a size or CRC-32 that are not theirs."
    )
    async with deployed(backing, directory) as deployment, producing(deployment, rng) as producer:
        body = rng.randbytes(5000)
        wrong = bytes([body[0] ^ 1]) + body[1:]
        for name, told, sent, code in (
            ("wrong body for its CRC-32", ("crc32", "size"), wrong, "BadDigest"),
            ("wrong body for its CRC-32, no size", ("crc32",), wrong, "BadDigest"),
            ("one byte more than its size", ("size",), body + b"x", "SignatureDoesNotMatch"),
            ("one byte less than its size", ("size",), body[:-1], "SignatureDoesNotMatch"),
        ):
            prepared = await _prepare(producer, f"{name}.bin", body, told)
            status, answer = await _curl_put(directory, prepared, sent)
            record.saw(name, f"{status}, {_code_of(answer)}", holds=status >= 400 and code in answer)
            status, _ = await _curl_put(directory, prepared, body)
            record.saw(f"{name}: then the right one", status, holds=status == 200)
            status, answer = await _curl_put(directory, prepared, rng.randbytes(5000) if told == ("size",) else body)
            record.saw(f"{name}: then a second one", f"{status}, {_code_of(answer)}", holds=status == 412)
            producer.promise("run", f"{name}.bin", body)
        for _ in range(scale.of(50, 6)):
            await producer.poison("run", kinds=(3, 4))
        await judge(deployment, producer, record)
        await _stays_invisible(deployment, producer, record, directory)


async def _stays_invisible(deployment: Deployment, producer: Producer, record: Record, directory: Path) -> None:
    """What was rejected, by every way there is to it."""
    rejected = producer.ledger.rejected["run"]
    listed = {blob["path"]: blob for blob in await producer.blobs("run", state="verified")}
    record.saw("rejected blobs in the listing", len(rejected & listed.keys()), holds=not rejected & listed.keys())
    statuses: Counter[int] = Counter()
    for path in rejected:
        status, _ = await producer.api("POST", "/v1/tokens/blob", {"bucket": "media", "key": f"runs/run/{path}"})
        statuses[status] += 1
    record.saw("links to them", f"{dict(statuses)}", holds=set(statuses) == {404})
    minted = await deployment.service.mint("archive", {"bucket": "media", "run_id": "run"})
    archive = directory / "run.zip"
    await run("curl", "-sSf", "-o", str(archive), minted["url"])
    with zipfile.ZipFile(archive) as opened:
        names = set(opened.namelist())
    record.saw("entries of the run's archive", len(names), holds=names == listed.keys())
    asked = {"bucket": "media", "entries": [{"key": f"runs/run/{path}"} for path in rejected], "on_missing": "fail"}
    status, _ = await producer.api("POST", "/v1/tokens/archive", asked)
    record.saw("an archive of them by key", status, holds=status == 404)


async def cut_uploads(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """Uploads through the proxy are cut at any byte, and by the proxy's death, beside a reader."""
    rng, cuts = random.Random(_SEED), scale.of(200, 6)
    size = 12 << 20  # more than one part of a multipart upload
    record.did(
        f"{cuts} uploads of {mib(size)} through the proxy to S3, and as many to a local bucket, cut at a random byte "
        f"(seed {_SEED}), every fourth by SIGKILL of the proxy; a reader looks all the time."
    )
    async with deployed(backing, directory, local=True) as deployment, producing(deployment, rng) as producer:
        body = rng.randbytes(size)
        for bucket in ("media", "files"):
            seen: Counter[str] = Counter()
            watching = asyncio.create_task(_watch(deployment, producer, bucket, directory, seen))
            left: list[str] = []
            for number in range(cuts):
                cut = rng.choice([0, 1, size - 1, rng.randrange(size), rng.randrange(size)])
                await _cut_upload(deployment, producer, bucket, f"{number}.bin", body, cut, kill=number % 4 == 3)
                left += await _there(deployment, producer, bucket, directory)
            record.saw(f"{bucket}: objects that a cut upload left", len(left), holds=not left)
            prepared = await _prepare(producer, "whole.bin", body, ("size",), bucket=bucket, run_id=bucket, via="proxy")
            status, _ = await _curl_put(directory, prepared, body)
            record.saw(f"{bucket}: a whole one afterwards", status, holds=status == 201)
            while not seen["whole"]:  # noqa: ASYNC110 the reader does not tell
                await asyncio.sleep(0.05)
            await cancel_and_wait(watching)
            parts = {what: count for what, count in seen.items() if what not in ("nothing", "whole")}
            record.saw(f"{bucket}: looks of the reader", dict(seen), holds=not parts)


async def _cut_upload(
    deployment: Deployment, producer: Producer, bucket: str, path: str, body: bytes, cut: int, *, kill: bool
) -> None:
    prepared = await _prepare(producer, path, body, ("size",), bucket=bucket, run_id=bucket, via="proxy")
    parts = urlsplit(prepared["url"])
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    proxy = deployment.service.proxies[0]
    try:
        writer.write(head.encode() + body[:cut])
        await writer.drain()
        if kill:
            await proxy.stop(signal.SIGKILL)
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    if kill:
        await proxy.start()


async def _there(deployment: Deployment, producer: Producer, bucket: str, directory: Path) -> list[str]:
    """The objects beneath runs/."""
    if bucket == "media":
        return list(await producer.objects(f"runs/{bucket}/"))
    found = await asyncio.to_thread(lambda: list((directory / "files" / "runs").rglob("*.bin")))
    return [path.name for path in found]


async def _watch(deployment: Deployment, producer: Producer, bucket: str, directory: Path, seen: Counter[str]) -> None:
    """What a reader meets: nothing, or a whole blob."""
    while True:
        for blob in await _listed(producer, bucket):
            seen["whole" if blob["path"] == "whole.bin" and blob["size"] == 12 << 20 else f"part: {blob['path']}"] += 1
        for name in await _there(deployment, producer, bucket, directory):
            seen["whole" if name.endswith("whole.bin") else f"object: {name}"] += 1
        seen["nothing"] += 1
        await asyncio.sleep(0.02)


async def _listed(producer: Producer, run_id: str) -> list[dict[str, Any]]:
    status, page = await producer.api("GET", f"/v1/runs/{run_id}/blobs?state=verified&limit=500")
    return page["blobs"] if status == 200 else []


async def deleted_while_downloaded(backing: Backing, scale: Scale, record: Record, directory: Path) -> None:
    """A run is deleted during downloads of its archive: each is whole, or cut so that curl says so."""
    rng, rounds, size = random.Random(_SEED), scale.of(20, 2), 12 << 20
    record.did(
        f"{rounds} runs of 3 blobs of {mib(size)} in each of S3 and a local bucket; the run is deleted at a random "
        f"moment (seed {_SEED}) of two downloads of its archive, a slow and a fast one."
    )
    async with deployed(backing, directory, local=True) as deployment, producing(deployment, rng) as producer:
        for bucket in ("media", "files"):
            outcomes: Counter[str] = Counter()
            for number in range(rounds):
                await _delete_during(deployment, producer, rng, bucket, f"{bucket}-{number}", size, directory, outcomes)
            told = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(outcomes.items()))
            record.saw(f"{bucket}: downloads", told, holds=set(outcomes) <= {"whole", "aborted"})
        # A blob that stays, so that there is something to judge beside the deleted runs.
        await producer.upload("stays", "blob.bin", producer.body())
        await judge(deployment, producer, record, swept=not scale.quick)


async def _delete_during(
    deployment: Deployment,
    producer: Producer,
    rng: random.Random,
    bucket: str,
    run_id: str,
    size: int,
    directory: Path,
    outcomes: Counter[str],
) -> None:
    blobs = {f"{index}.bin": rng.randbytes(size) for index in range(3)}
    for path, body in blobs.items():
        prepared = await _prepare(producer, path, body, ("size", "crc32"), bucket=bucket, run_id=run_id, via="proxy")
        status, answer = await _curl_put(directory, prepared, body)
        assert status == 201, answer
    minted = await deployment.service.mint("archive", {"bucket": bucket, "run_id": run_id})
    paths = [directory / f"{run_id}-{rate}.zip" for rate in ("20M", "60M")]
    fetching = [
        asyncio.create_task(run("curl", "-sSf", "--limit-rate", rate, "-o", str(archive), minted["url"]))
        for rate, archive in zip(("20M", "60M"), paths, strict=True)
    ]
    await until_longer(paths, rng.randrange(2 * size))
    await producer.delete(run_id)
    for archive, task in zip(paths, fetching, strict=True):
        code, printed = await task
        outcomes[_outcome(archive, code, blobs, minted["size"], printed)] += 1
        archive.unlink()
    code, printed = await run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", minted["url"])
    if printed not in ("404", "410"):
        outcomes[f"answered {printed} after the deletion"] += 1


def _outcome(path: Path, code: int, blobs: Mapping[str, bytes], size: int, printed: str) -> str:
    if code in _BROKEN_EXITS:
        return "aborted"
    if code != 0 or path.stat().st_size != size:
        return f"curl exits {code} {printed.strip()}"
    with zipfile.ZipFile(path) as opened:
        held = {name: zlib.crc32(opened.read(name)) for name in opened.namelist()}
    return "whole" if held == {name: zlib.crc32(body) for name, body in blobs.items()} else "not the blobs"


async def _prepare(
    producer: Producer,
    path: str,
    body: bytes,
    told: tuple[str, ...],
    *,
    bucket: str = "media",
    run_id: str = "run",
    **more: str,
) -> dict[str, Any]:
    facts = {"size": len(body), "crc32": f"{zlib.crc32(body):08x}"}
    order = {"run_id": run_id, "path": path, "bucket": bucket, **{each: facts[each] for each in told}, **more}
    status, prepared = await producer.api("POST", "/v1/uploads", {**order, "expires_in": 40})
    assert status == 201, prepared
    return dict(prepared)


async def _curl_put(directory: Path, prepared: Mapping[str, Any], body: bytes) -> tuple[int, str]:
    """Put ``body`` with the headers that were given, except its length, which is curl's own: status and answer."""
    sent = directory / "sent.bin"
    await asyncio.to_thread(sent.write_bytes, body)
    headers = [f"{name}: {value}" for name, value in prepared["headers"].items() if name.lower() != "content-length"]
    options = [option for header in headers for option in ("-H", header)]
    _, printed = await run("curl", "-sS", "-T", str(sent), *options, "-w", "\n%{http_code}", prepared["url"])
    answer, _, status = printed.rpartition("\n")
    return int(status), answer


def _code_of(answer: str) -> str:
    """The code of S3's XML."""
    return answer.partition("<Code>")[2].partition("</Code>")[0] or "no code"
