"""Ten thousand references, shuffled: exactly the right records, on every engine."""

import time
from pathlib import Path

from tests.support.fake_fdb_cluster import FakeCluster
from tests.support.ingest_scenario import Scenario, ingest
from tests.support.state import fake_client, fake_store, sqlite_store


async def test_shuffled_references_with_poison_duplicates_and_late_uploads_come_to_the_right_records(
    tmp_path: Path,
) -> None:
    """On a real SQLite file; some publications of dead letters fail, so batches are delivered again."""
    async with sqlite_store(tmp_path / "state.db") as store:
        await ingest(store, Scenario())


async def test_the_same_on_a_cluster_whose_requests_fail_at_random() -> None:
    """The simulated FoundationDB client: 1007, 1020, and 1021 that did commit and that did not."""
    cluster = FakeCluster(time.monotonic)
    with fake_client(cluster) as client:
        async with fake_store(client) as store:
            cluster.faults.rate = 0.0005
            cluster.faults.script("commit", 1020, 1021)
            cluster.faults.script("commit", 1021, committed=True)
            scenario = Scenario(references=1_500, runs=10)
            await ingest(store, scenario)
