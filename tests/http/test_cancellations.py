"""Downloads cancelled at random moments, over real HTTP and from a real S3 server. 10,000 of them: `make soak`."""

from tests.support.cancellations import crowd
from tests.support.s3 import S3Bucket


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(s3_bucket: S3Bucket) -> None:
    async with crowd(s3_bucket) as clients:
        seen = await clients.leave(300, seed=5)
    assert seen.left == {}
    assert seen.within > 100
