"""The ingest worker: the handler of the ingest topic's batches.

The law: dead letters and records come before the offset. A fault of a store, of the state or of the bus raises, so that
the partition waits; only what a message itself says can make a dead letter of it.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from storage_proxy.bus.dead_letters import bury, origin
from storage_proxy.bus.port import Batch, EventBus, Message
from storage_proxy.common.concurrency import map_bounded
from storage_proxy.common.errors import BucketNotFound, StorageError, StorageUnavailable
from storage_proxy.common.events import Poison, parse_blob_ref
from storage_proxy.common.steps import step
from storage_proxy.ingest.metrics import IngestMetrics
from storage_proxy.ingest.options import IngestOptions
from storage_proxy.ingest.places import Announced, Place
from storage_proxy.ingest.recording import DEAD, Decision, Heard, Recorder, Recording, Verdict, portions
from storage_proxy.ingest.verification import Seen, Verifier
from storage_proxy.state.records import Order
from storage_proxy.stores.buckets import Buckets

_ROUNDS = 8
"""So often a portion is decided anew, because its blobs change or its dead letters had to go first."""


@dataclass(slots=True)
class _Parsed:
    """A batch's messages apart: those that say something, and why the others do not. By their index."""

    heard: dict[int, Heard] = field(default_factory=dict)
    poison: dict[int, str] = field(default_factory=dict)


class IngestWorker:
    """Verifies and records the blobs that a topic announces. `handle` is the bus's `Handler`."""

    def __init__(
        self,
        bus: EventBus,
        verifier: Verifier,
        recorder: Recorder,
        buckets: Buckets,
        *,
        options: IngestOptions,
        metrics: IngestMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._verifier = verifier
        self._recorder = recorder
        self._buckets = buckets
        self._options = options
        self._metrics = metrics
        self._clock = clock

    async def handle(self, batch: Batch) -> int:
        """How many of the batch's messages are done: those before the first whose key is claimed by a clean-up."""
        began = self._clock()
        parsed = self._parse(batch.messages)
        indexes = list(parsed.heard)
        heard = await self._looked_at(list(parsed.heard.values()))
        end = len(batch.messages)
        recorded = 0
        for portion in portions(heard):
            done = await self._record(batch, portion, indexes[recorded : recorded + len(portion)])
            recorded += done
            if done < len(portion):
                end = indexes[recorded]
                break
        await self._bury(batch, {index: reason for index, reason in parsed.poison.items() if index < end})
        self._metrics.batch_seconds.observe(self._clock() - began)
        return end

    def _parse(self, messages: Sequence[Message]) -> _Parsed:
        parsed = _Parsed()
        for index, message in enumerate(messages):
            try:
                parsed.heard[index] = self._heard(message)
            except Poison as poison:
                parsed.poison[index] = poison.reason
        return parsed

    def _heard(self, message: Message) -> Heard:
        value = message.value or b""
        event = parse_blob_ref(value)
        place = Place(event.payload.bucket, event.run_id, event.payload.path)
        try:
            self._buckets.get(place.bucket)
        except BucketNotFound:
            # A replica that is told of fewer buckets than the others must neither lose the message nor keep its
            # partition waiting for ever: as a dead letter it is kept, seen, and replayed once the bucket is there.
            raise Poison("payload.bucket: is not configured") from None
        return Heard(place, Announced.by_event(event.payload), _order(message), None, nbytes=len(value))

    async def _looked_at(self, heard: Sequence[Heard]) -> Sequence[Heard]:
        """Each with what is there now: one look for all that are of one blob, as it is newer than each of them. Were
        there several, a blob that is written all the time would be another one for each message.
        """
        sizes: dict[Place, set[int | None]] = {}
        for each in heard:
            sizes.setdefault(each.place, set()).add(each.announced.size)
        seen = await map_bounded(self._options.parallel_requests, self._look, sizes.items())
        found = dict(zip(sizes, seen, strict=True))
        return [replace(each, seen=found[each.place]) for each in heard]

    async def _look(self, wanted: tuple[Place, Collection[int | None]]) -> Seen | None:
        place, sizes = wanted
        try:
            return await self._verifier.look(place, size=next(iter(sizes)) if len(sizes) == 1 else None)
        except StorageError:
            # A store that works may refuse one object for ever: one encrypted with its producer's key, an archived one.
            # It stays pending, for the reconciler; when it is the store that fails, this raises, and everything waits.
            await self._buckets.get(place.bucket).probe()
            return None

    async def _record(self, batch: Batch, portion: Sequence[Heard], indexes: Sequence[int]) -> int:
        """How many of the portion are recorded, their dead letters published before."""
        told: set[int] = set()
        for _ in range(_ROUNDS):
            recording = await self._recorder.record(portion, told=told)
            if recording.written:
                step("ingest-recorded")
                self._count(recording)
                return len(recording.decisions)
            dead = {
                index: decision.reason
                for index, decision in enumerate(recording.decisions)
                if decision.verdict in DEAD and index not in told
            }
            unsure = [each.verdict is Verdict.UNSURE for each in recording.decisions]
            if any(unsure):  # first: it may decide what else is dead
                portion = await self._again(portion, recording.decisions)
                continue
            await self._bury(batch, {indexes[index]: reason for index, reason in dead.items()})
            told.update(dead)
        raise StorageUnavailable("The blobs of a batch change all the time")

    async def _again(self, portion: Sequence[Heard], decisions: Sequence[Decision]) -> Sequence[Heard]:
        """The portion with another look at the blobs whose record was not what had been seen."""
        unsure = {index: each for index, each in enumerate(decisions) if each.verdict is Verdict.UNSURE}
        asked = [replace(portion[index], replaces=each.recorded_etag) for index, each in unsure.items()]
        looked = dict(zip(unsure, await self._looked_at(asked), strict=True))
        return [looked.get(index, heard) for index, heard in enumerate(portion)]

    async def _bury(self, batch: Batch, dead: dict[int, str]) -> None:
        """Publish dead letters: message indexes and their reasons."""
        if not dead:
            return
        await bury(self._bus, batch.topic, [(batch.messages[index], reason) for index, reason in dead.items()])
        step("ingest-dead-lettered")
        self._metrics.dead_letters.inc(len(dead))

    def _count(self, recording: Recording) -> None:
        for each in recording.decisions:
            self._metrics.messages.labels(each.verdict.value).inc()


def _order(message: Message) -> Order:
    """A replayed dead letter's is its first one; when the bus had taken it then is not known any more."""
    first = origin(message)
    return Order(message.partition, message.offset, int(message.timestamp * 1000)) if first is None else Order(*first)
