"""The obvious way to ingest, as a peer to compare with: one message, one HeadObject, one transaction, and the next.

Written as most would write it: aiokafka, aioboto3, the standard library's sqlite3; no dead letters, no tombstones, no
order. It is as durable as ours, and its offsets are committed a batch at a time, which is generous.
Options, in this order: port, Kafka, topic, group, SQLite file, HEAD or none, S3 endpoint, access key, secret key,
region, bucket.
"""

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aioboto3
from aiohttp import web
from aiokafka import AIOKafkaConsumer

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

PORT, KAFKA, TOPIC, GROUP, FILE, HEAD, ENDPOINT, ACCESS_KEY, SECRET_KEY, REGION, BUCKET = range(1, 12)


def opened() -> sqlite3.Connection:
    database = sqlite3.connect(sys.argv[FILE], check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE blobs (run TEXT, path TEXT, size INT, etag TEXT, value TEXT, PRIMARY KEY (run, path))"
    )
    return database


def record(database: sqlite3.Connection, event: dict[str, Any], head: Any) -> None:
    payload = event["payload"]
    row = (event["run_id"], payload["path"], head["ContentLength"], head["ETag"], json.dumps(payload))
    with database:
        database.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?)", row)


async def ingest(consumer: AIOKafkaConsumer, client: "S3Client") -> None:
    database = opened()
    while True:
        for messages in (await consumer.getmany(timeout_ms=1000)).values():
            for message in messages:
                event = json.loads(message.value)
                head: Any = {"ContentLength": event["payload"]["size"], "ETag": ""}
                if sys.argv[HEAD] == "HEAD":
                    head = await client.head_object(Bucket=sys.argv[BUCKET], Key=event["payload"]["key"])
                await asyncio.to_thread(record, database, event, head)
        await consumer.commit()


async def work(app: web.Application) -> AsyncIterator[None]:
    session = aioboto3.Session(sys.argv[ACCESS_KEY], sys.argv[SECRET_KEY], region_name=sys.argv[REGION])
    consumer = AIOKafkaConsumer(
        sys.argv[TOPIC],
        bootstrap_servers=sys.argv[KAFKA],
        group_id=sys.argv[GROUP],
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=500,
    )
    async with session.client("s3", endpoint_url=sys.argv[ENDPOINT]) as client, consumer:
        task = asyncio.create_task(ingest(consumer, client))
        yield
        task.cancel()


if __name__ == "__main__":
    application = web.Application()
    application.cleanup_ctx.append(work)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[PORT]), print=None, access_log=None)
