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

from storage_proxy.bus.kafka_background import Background
from storage_proxy.bus.kafka_errors import translated
from storage_proxy.bus.kafka_options import KafkaOptions, client_options
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
    """The topics that are known to exist, with their number of partitions."""

    def __init__(self, options: KafkaOptions, background: Background) -> None:
        self._options = options
        self._background = background
        self._known: dict[str, int] = {}

    async def ensure(self, name: str) -> int:
        """How many partitions the topic has. Raises `BusUnavailable` when it is not there and cannot be made."""
        if name not in self._known:
            async with translated(f"looking for topic {name}", seconds=self._options.request_timeout):
                self._known[name] = await self._background.finish(self._find_or_make(name))
        return self._known[name]

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
            return partitions
        finally:
            await admin.close()

    async def _make(self, admin: AIOKafkaAdminClient, name: str) -> None:
        replicas = self._options.topic_replication
        if replicas is None:
            replicas = min(_REPLICAS, len((await admin.describe_cluster())["brokers"]))
        topic = NewTopic(name, self._options.topic_partitions, replicas, topic_configs=_CONFIGURATION)
        answer = await admin.create_topics([topic])
        for _, code, *_ in answer.topic_errors:
            error = for_code(code)
            if error in _REFUSALS:
                raise BusUnavailable(f"Topic {name} does not exist, and Kafka does not let this program make it")
            if error not in (NoError, TopicAlreadyExistsError):
                raise error(name)


async def _partitions_by_topic(admin: AIOKafkaAdminClient) -> Mapping[str, int]:
    """The topics that may be seen; 0 partitions where one has no leader yet."""
    # All of them: to ask for one by name would make it, with the broker's defaults, where brokers do that.
    topics = await admin.describe_topics()
    return {
        topic["topic"]: 0 if any(each["leader"] < 0 for each in topic["partitions"]) else len(topic["partitions"])
        for topic in topics
    }
