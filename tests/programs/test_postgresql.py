"""PostgreSQL with all that it has on the mount: data, sockets and dynamic shared memory; killed, and recovered."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.programs import finish, kill_all, run, started
from tests.support.tenants import wait_until

USER = "nobody"
SETTINGS = {
    "listen_addresses": "",
    "shared_memory_type": "mmap",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "16MB",
    "max_connections": "20",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "parallel_setup_cost": "0",
    "parallel_tuple_cost": "0",
    "min_parallel_table_scan_size": "0",
}


class Cluster:
    """A database cluster in a directory."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.programs = programs
        self.directory = directory
        self.data = directory / "data"

    def run(self, program: str, *arguments: str, seconds: float = 60) -> str:
        environment = {
            "HOME": str(self.directory),
            "PGHOST": str(self.directory),
            "PGDATABASE": "postgres",
            "PGUSER": USER,
        }
        return run(
            self.programs / program, *arguments, cwd=self.directory, user=USER, environment=environment, seconds=seconds
        )

    def query(self, sql: str) -> str:
        return self.run("psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql).strip()

    @contextmanager
    def server(self) -> Iterator[int]:
        """A running server; killed at the end, with its children, if it still runs then. Its process id."""
        settings = [f"-c{name}={value}" for name, value in SETTINGS.items()]
        log = self.directory / "log"
        command = f'exec "$0" "$@" >>{log} 2>&1'
        postgres = [self.programs / "postgres", "-D", self.data, "-k", self.directory, *settings]
        with started("/bin/sh", "-c", command, *postgres, cwd=self.directory, user=USER) as process:

            def ready() -> bool:
                assert process.poll() is None, log.read_text()[-3000:]
                return finish(self.programs / "pg_isready", "-q", "-h", self.directory, user=USER)[0] == 0

            wait_until(ready, "PostgreSQL answers", 40)
            yield process.pid

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "stop")


@pytest.fixture
def cluster(place: Path) -> Cluster:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("postgresql is not installed")
    directory = place / "pg"
    directory.mkdir()
    shutil.chown(directory, USER, "nogroup")
    made = Cluster(programs[-1].parent, directory)
    made.run("initdb", "-D", str(made.data), "-A", "trust", "-E", "UTF8", "--locale=C", "--data-checksums")
    return made


def test_postgresql_works_crashes_and_recovers(cluster: Cluster) -> None:
    with cluster.server() as server:
        cluster.run("pgbench", "-q", "-i", "-s", "1")
        cluster.run("pgbench", "-T", "2", "-c", "4", "-j", "2", "--random-seed=1")
        plan = cluster.query("explain (analyze) select count(*), sum(length(filler)) from pgbench_accounts")
        assert "Workers Launched: 2" in plan, "parallel workers share memory through pg_dynshmem"
        assert list((cluster.data / "pg_dynshmem").iterdir())
        before = int(cluster.query("select count(*) from pgbench_history"))
        with started(
            cluster.programs / "pgbench", "-n", "-T", "30", "-c", "4", "-h", cluster.directory, "postgres", user=USER
        ):
            wait_until(lambda: int(cluster.query("select count(*) from pgbench_history")) > before + 50, "it works", 20)
            kill_all(server)
    with cluster.server():
        sums = cluster.query(
            "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),"
            " (select sum(tbalance) from pgbench_tellers), (select sum(delta) from pgbench_history)"
        )
        assert len(set(sums.split("|"))) == 1, "every transaction happened as a whole or not at all"
        assert int(cluster.query("select count(*) from pgbench_history")) > before + 50
        cluster.run("pg_amcheck", "--install-missing", "--heapallindexed", "postgres")
        cluster.query("vacuum full")
        cluster.stop()
    log = (cluster.directory / "log").read_text()
    assert "was not properly shut down; automatic recovery in progress" in log
    cluster.run("pg_checksums", "--check", "-D", str(cluster.data))
