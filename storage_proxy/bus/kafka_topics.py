"""Which topics there are on a Kafka cluster; a missing one is made, where that is allowed."""

import asyncio
from collections.abc import Mapping

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    NoError,
    PolicyViolationError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from storage_proxy.bus.dead_letters import is_dead_letter_topic
from storage_proxy.bus.kafka_background import Background
from storage_proxy.bus.kafka_errors import translated
from storage_proxy.bus.kafka_options import MAX_MESSAGE_BYTES, KafkaOptions, client_options
from storage_proxy.common.errors import BusUnavailable

# Refused to us is not refused to the operator: the topic may be there, or may be made by hand.
_REFUSALS = (ClusterAuthorizationFailedError, PolicyViolationError, TopicAuthorizationFailedError)
_REPLICAS = 3
_CONFIGURATION = {
    # The broker's clock: a message's time says how far a group is, and what may go. Else a producer could forge it.
    "message.timestamp.type": "LogAppendTime",
    # Messages of one key say different things: a compacted topic would keep the last blob of each run.
    "cleanup.policy": "delete",
}
_LOOK_SECONDS = 0.05


class KafkaTopics:
    """The topics that are known to exist."""

    def __init__(self, options: KafkaOptions, background: Background) -> None:
        self._options = options
        self._background = background
        self._known: set[str] = set()
        self._looking: dict[str, asyncio.Task[int]] = {}

    async def ensure(self, name: str) -> None:
        """Return when the topic is there, at once when it was. Raises `BusUnavailable` when it cannot be made."""
        if name in self._known:
            return
        if name not in self._looking:  # one look for all who need the topic at once
            self._looking[name] = self._background.begin(self._find_or_make(name))
            self._looking[name].add_done_callback(lambda _: self._looking.pop(name))
        async with translated(f"looking for topic {name}", seconds=self._options.request_timeout):
            await asyncio.shield(self._looking[name])
        self._known.add(name)

    async def partitions(self, name: str) -> int:
        """How many partitions the topic has now: an operator may have given it more. Raises like `ensure`."""
        async with translated(f"looking for topic {name}", seconds=self._options.request_timeout):
            partitions = await self._background.finish(self._find_or_make(name))
        self._known.add(name)
        return partitions

    def forget(self, name: str) -> None:
        """Look for the topic the next time: it may be gone."""
        self._known.discard(name)

    async def _find_or_make(self, name: str) -> int:
        deadline = asyncio.get_running_loop().time() + self._options.request_timeout
        admin = AIOKafkaAdminClient(**client_options(self._options))
        try:
            await admin.start()
            if name not in await _partitions_by_topic(admin):
                await self._make(admin, name)
            while not (partitions := (await _partitions_by_topic(admin)).get(name)):
                if asyncio.get_running_loop().time() > deadline:
                    raise BusUnavailable(f"Topic {name} has no leader")
                await asyncio.sleep(_LOOK_SECONDS)
        except AttributeError as error:  # of the controller, which aiokafka takes for granted
            raise BusUnavailable("Kafka has no controller yet") from error
        else:
            return partitions
        finally:
            await admin.close()

    async def _make(self, admin: AIOKafkaAdminClient, name: str) -> None:
        replicas = self._options.topic_replication
        if replicas is None:
            replicas = min(_REPLICAS, len((await admin.describe_cluster())["brokers"]))
        topic = NewTopic(name, self._options.topic_partitions, replicas, topic_configs=_configuration(name))
        answer = await admin.create_topics([topic])
        for _, code, *_ in answer.topic_errors:
            error = for_code(code)
            if error in _REFUSALS:
                raise BusUnavailable(f"Topic {name} does not exist, and Kafka does not let this program make it")
            if error not in (NoError, TopicAlreadyExistsError):
                raise error(name)


def _configuration(name: str) -> dict[str, str]:
    configuration = dict(_CONFIGURATION)
    if is_dead_letter_topic(name):
        # Each finds room, and stays until somebody has looked at it.
        configuration |= {"max.message.bytes": str(MAX_MESSAGE_BYTES), "retention.ms": "-1"}
    return configuration


async def _partitions_by_topic(admin: AIOKafkaAdminClient) -> Mapping[str, int]:
    """The topics that may be seen; 0 partitions where one has no leader yet."""
    # All of them: to ask for one by name would make it, with the broker's defaults, where brokers do that.
    topics = await admin.describe_topics()
    return {
        topic["topic"]: 0 if any(each["leader"] < 0 for each in topic["partitions"]) else len(topic["partitions"])
        for topic in topics
    }
