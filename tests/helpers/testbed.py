"""A cluster of several real Ray nodes on this machine, to be killed and cut off for real.

Each node is a `ray start` with its raylet. Where the machine allows it (Linux, root, iproute2), each lives in a network
namespace of its own with its own address, joined by a bridge: then killing a node is killing all of its processes, and
the network can be cut. Elsewhere the nodes share the loopback address, and `namespaces` is False.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.waiting import PATIENCE_S
from txclf import ray_cluster

BEDS = itertools.count()
TOKEN = secrets.token_hex(16)
METRICS = 8080
"""Port of the head's metrics, in its own namespace."""
STARTED, SLOW = b"Ray runtime started.", b"timed out during startup"
STARTS = 3
"""A node has half a minute to start, which no setting of Ray changes. On a busy machine it is started again."""
RAY = str(Path(sys.executable).with_name("ray"))


def namespaces_work() -> bool:
    """Return True if this process may create network namespaces; `TXCLF_TESTBED=loopback` disables them."""
    if os.environ.get("TXCLF_TESTBED") == "loopback":
        return False
    if sys.platform != "linux" or os.geteuid() or not shutil.which("ip"):
        return False
    probe = f"txprobe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], check=False, capture_output=True).returncode:
        return False
    made = subprocess.run(
        ["ip", "link", "add", probe[:13], "type", "bridge"], check=False, capture_output=True
    ).returncode
    subprocess.run(["ip", "link", "del", probe[:13]], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", probe], check=False, capture_output=True)
    return made == 0


@dataclass
class Node:
    """A node of the cluster."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    within: list[str]
    """Prefix of a command that runs it on this node."""


class Testbed:
    """Use as a context manager: everything it started is gone afterwards.

    `address` is the cluster's, to connect to from a process that `start` runs on the head node.
    """

    __test__ = False  # not a test, whatever its name

    def __init__(
        self, head_cpus: int, dashboard: bool = False, autoscaling: dict[str, dict[str, Any]] | None = None
    ) -> None:
        """Start the head. `autoscaling`: node types of Ray's autoscaler, which then starts nodes on this machine."""
        self.autoscaling = autoscaling
        self.with_dashboard = dashboard
        # Short, because the paths of Ray's sockets in it are limited in length.
        self.folder = Path(tempfile.mkdtemp(prefix="tx"))
        self.namespaces = namespaces_work()
        # The kernel takes its time to remove what an earlier bed of this process had.
        number = next(BEDS)
        self.prefix = f"tx{os.getpid() % 10000}{chr(ord('a') + number % 26)}"
        self.subnet = f"10.{os.getpid() % 200 + 20}.{(os.getpid() // 200 + number) % 250}"
        self.nodes: dict[str, Node] = {}
        self.count = 0
        if self.namespaces:
            self._ip("link", "add", self.prefix, "type", "bridge")
            self._ip("link", "set", self.prefix, "up")
        port = 6379 if self.namespaces else _free_port()
        self.address = f"{self.subnet}.1:{port}" if self.namespaces else f"127.0.0.1:{port}"
        # Bound to loopback, as it should be: who talks to it is on the head.
        self.dashboard = f"http://127.0.0.1:{8265 if self.namespaces else _free_port()}"
        try:
            self.head = self.add("head", head_cpus)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, name: str, cpus: int, hidden: Path | None = None) -> Node:
        """Start a node and wait until the cluster has it; the first is the head.

        `hidden`: a folder that this node has for itself, empty; needs `namespaces`.
        """
        self.count += 1
        address = f"{self.subnet}.{self.count}" if self.namespaces else "127.0.0.1"
        within = self._namespace(name, address) if self.namespaces else []
        if self.namespaces and self.nodes:
            # A temporary folder of its own: Ray cleans up there, and would take from under the others what they use.
            mine = self.folder / name
            mine.mkdir(exist_ok=True)
            mounts = f'mount --bind "{mine}" "{self.folder}/ray"'
            mounts += f' && mount -t tmpfs tmpfs "{hidden}"' if hidden else ""
            within += ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
        words = [RAY, "start", "--block", f"--node-ip-address={address}", f"--num-cpus={cpus}"]
        words += ["--object-store-memory=100000000", "--disable-usage-stats", f"--labels=name={name}"]
        if not self.nodes:
            words += ["--head", f"--port={self.address.rpartition(':')[2]}"]
            words += [f"--include-dashboard={'true' if self.with_dashboard else 'false'}"]
            if self.with_dashboard:
                words += [f"--dashboard-port={self.dashboard.rpartition(':')[2]}"]
                words += [f"--metrics-export-port={METRICS}"] if self.namespaces else []
            words += [f"--temp-dir={self.folder}/ray"]
            words += [f"--autoscaling-config={self._autoscaling_config(cpus)}"] if self.autoscaling else []
            if not self.namespaces:
                words += [f"--ray-client-server-port={_free_port()}"]
        else:
            words += [f"--address={self.address}"]
        for start in range(STARTS):
            with (self.folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [*within, *words], stdout=log, stderr=log, env=self._environment(), start_new_session=True
                )
            node = self.nodes[name] = Node(name, address, process, within)
            if self._has_started(node, start == STARTS - 1):
                break
            self.kill(node)
        return node

    def start(self, *words: str, **settings: Any) -> subprocess.Popen[str]:
        """Start a command on the head node."""
        return subprocess.Popen([*self.head.within, *words], env=environment(), text=True, **settings)

    def kill(self, node: Node) -> None:
        """SIGKILLs every process of a node at once."""
        for pid in self._processes(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.process.wait(timeout=PATIENCE_S)
        del self.nodes[node.name]

    def cut(self, node: Node) -> None:
        """Take a node off the network without notice; needs `namespaces`."""
        self._ip("link", "set", f"{self.prefix}{node.name}"[:15], "down")

    def close(self) -> None:
        """End all nodes and remove the namespaces."""
        for node in list(self.nodes.values()):
            self.kill(node)
        if self.namespaces:
            for name in subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True).stdout.split():
                if name.startswith(f"{self.prefix}-"):
                    self._ip("netns", "del", name)
            self._ip("link", "del", self.prefix)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _namespace(self, name: str, address: str) -> list[str]:
        space, here = f"{self.prefix}-{name}", f"{self.prefix}{name}"[:15]
        self._ip("netns", "add", space)
        self._ip("link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("link", "set", here, "master", self.prefix, "up")
        self._ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        self._ip("-n", space, "link", "set", "eth0", "up")
        self._ip("-n", space, "link", "set", "lo", "up")
        return ["ip", "netns", "exec", space]

    def _processes(self, node: Node) -> list[int]:
        if self.namespaces:
            words = ["ip", "netns", "pids", f"{self.prefix}-{node.name}"]
            return [
                int(pid) for pid in subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
            ]
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
        found = [node.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def _autoscaling_config(self, head_cpus: int) -> Path:
        """Write the configuration of an autoscaler whose provider starts nodes on this machine."""
        path = self.folder / "autoscaling.json"
        head: dict[str, Any] = {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0}
        names = ["initialization", "setup", "head_setup", "worker_setup"]
        commands: dict[str, list[str]] = {f"{name}_commands": [] for name in names}
        path.write_text(
            json.dumps(
                {
                    "cluster_name": "testbed",
                    "max_workers": 8,
                    "idle_timeout_minutes": 10,
                    "upscaling_speed": 1.0,
                    "docker": {},
                    "auth": {},
                    "file_mounts": {},
                    "cluster_synced_files": [],
                    "rsync_exclude": [],
                    "rsync_filter": [],
                    "file_mounts_sync_continuously": False,
                    "provider": {
                        "type": "fake_multinode",
                        "disable_node_updaters": True,
                        "disable_launch_config_check": True,
                        "use_node_id_as_ip": True,
                    },
                    "head_node_type": "ray.head.default",
                    "available_node_types": {**(self.autoscaling or {}), "ray.head.default": head},
                    "head_start_ray_commands": [],
                    "worker_start_ray_commands": [],
                    **commands,
                }
            )
        )
        return path

    def _has_started(self, node: Node, is_last: bool) -> bool:
        """Wait until `ray start` says that the cluster has the node; return False if it was too slow to start."""
        log, deadline = self.folder / f"{node.name}.log", time.monotonic() + 120
        while STARTED not in (said := log.read_bytes()):
            if node.process.poll() is not None and SLOW in said and not is_last:
                return False
            if node.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"node {node.name} did not start: {said.decode(errors='replace')[-2000:]}")
            time.sleep(0.1)
        return True

    def _environment(self) -> dict[str, str]:
        """Return the environment of the nodes: Ray is started by its path, without an activated environment."""
        path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != str(Path(RAY).parent))
        enabled = "1" if self.with_dashboard else "0"
        fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"} if self.autoscaling else {}
        own = {"PATH": path, "PYTHONUNBUFFERED": "1", "RAY_enable_metrics_collection": enabled}
        own["RAY_idle_worker_killing_time_threshold_ms"] = "600000"  # as the files in `cluster/` have it
        return {**environment(), **fake, **own}

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


def environment() -> dict[str, str]:
    """Return the environment of the drivers, which also holds for the nodes but for PATH."""
    quick = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "OMP_NUM_THREADS": "1",
        # Explicit, because a token file on this machine would enable it for the nodes only.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        # A node that is cut off counts as dead after some five seconds instead of thirty.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "5",
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Without those of a local Ray of the same tests: its workers have the priority of a node that starts.
    local = {*ray_cluster.SETTINGS, *ray_cluster.LOCAL_SETTINGS}
    outside = {name: value for name, value in os.environ.items() if name not in local}
    return {**outside, **quick, "RAY_ADDRESS": "", "PATH": path}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
