import asyncio
import sys

from benchmarks.kernel import cpu_seconds_each, cpu_seconds_since, family, memory, peak_memory

CHILD = """
import time
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
print("done", flush=True)
input()
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


async def test_a_server_is_measured_together_with_its_descendants() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    before = cpu_seconds_each(process.pid)
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"done\n"
        assert len(family(process.pid)) == 2
        assert cpu_seconds_since(process.pid, before) >= 0.2
        assert peak_memory(process.pid) >= memory(process.pid) > 0
        process.stdin.write(b"\n")
        assert await process.wait() == 0
