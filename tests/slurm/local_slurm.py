"""A real SLURM on this one machine, for tests and for trying a sweep: controller, accounting, two nodes.

python tests/slurm/local_slurm.py install              (Debian packages, as root)
python tests/slurm/local_slurm.py start [FOLDER]       (prints the line that makes it this shell's SLURM)
python tests/slurm/local_slurm.py stop FOLDER

Everything lives in one fresh folder; nothing of a SLURM that the machine may already have is touched.
The two nodes, n1 and n2, claim 4 CPUs and 2 GPUs each; the GPUs are character devices that nothing
computes on. Partition `low` is the default, `high` preempts it, by requeueing after a grace time.
"""

from __future__ import annotations

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json

PACKAGES = (
    "munge",
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurmdbd",
    "slurm-wlm-mysql-plugin",
    "mariadb-server",
)
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")
NODES = ("n1", "n2")
CPUS_PER_NODE = 4
GPUS_PER_NODE = 2
GRACE_S = 30
# The address of a Unix socket holds 107 characters; the longest name here is /db/mysql.sock.
LONGEST_FOLDER = 80


class SlurmUnavailableError(Exception):
    """No SLURM can be installed or started on this machine; the message says why."""


def missing_programs() -> list[str]:
    """The programs that a local SLURM needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]


def install() -> None:
    """Install SLURM, its accounting and their database from Debian's packages.

    Raises:
        SlurmUnavailableError: no root, no apt-get, or apt-get fails; with its last line.
    """
    if not missing_programs():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SlurmUnavailableError(
            "installing SLURM needs root and apt-get (Debian or a relative)"
        )
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Packages that are installed must not start the machine's own daemons: an init script that may
    # not run says so and the installation goes on.
    for words in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(
            words, env=quiet, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode and words[1] == "install":
            lines = (done.stderr or done.stdout).strip().split("\n")
            raise SlurmUnavailableError(f"apt-get cannot install SLURM: {lines[-1]}")
    if lacking := missing_programs():
        raise SlurmUnavailableError(f"still missing after the installation: {', '.join(lacking)}")


def _search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on just now; all are held open while the others are drawn."""
    held = []
    try:
        for _ in range(count):
            held.append(socket.socket())
            held[-1].bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _runs(pid: int) -> bool:
    """Whether the process is there and no zombie (one whose parent does not wait for it)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status


@dataclass
class LocalSlurm:
    """One running SLURM.

    Attributes:
        folder: holds its configuration, state, logs and sockets.
        pids: of the daemons, in the order in which they were started.
    """

    folder: Path
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What the environment of a SLURM command needs so that it talks to this SLURM."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _search_path()}

    @property
    def _environment(self) -> dict[str, str]:
        # A job's own SLURM_* variables would mislead the daemons and the commands alike.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, **self.environment, "MYSQL_UNIX_PORT": str(self.folder / "db/mysql.sock")}

    def run(self, *words: str, timeout_s: float = 30) -> str:
        """Run a SLURM command, give its output.

        Raises:
            SlurmUnavailableError: it fails or does not end in time.
        """
        try:
            done = subprocess.run(
                words,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SlurmUnavailableError(f"{words[0]}: {error}") from None
        if done.returncode:
            raise SlurmUnavailableError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def _works(self, *words: str) -> Callable[[], bool]:
        def check() -> bool:
            try:
                self.run(*words, timeout_s=10)
            except SlurmUnavailableError:
                return False
            return True

        return check

    def _launch(self, name: str, words: Sequence[str], ready: Callable[[], bool]) -> None:
        """Start a daemon in its own session and wait until it answers."""
        log = self.folder / "log" / f"{name}.log"
        with log.open("a") as output:
            process = subprocess.Popen(
                words,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pids[name] = process.pid
        write_json(self.folder / "pids.json", self.pids)
        deadline = time.monotonic() + 60
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().split("\n")[-1]
                raise SlurmUnavailableError(f"{name} does not start: {last} (see {log})")
            time.sleep(0.05)

    def start(self) -> None:
        """Start all daemons, each when the one that it needs answers.

        Raises:
            SlurmUnavailableError: one of them does not start; those before it are stopped again.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        if lacking := missing_programs():
            raise SlurmUnavailableError(
                f"not installed: {', '.join(lacking)}; run `python tests/slurm/local_slurm.py install`"
            )
        if os.geteuid() != 0:
            raise SlurmUnavailableError("starting SLURM's daemons needs root")
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise SlurmUnavailableError(
                f"{self.folder}: too long for socket paths, allowed: {LONGEST_FOLDER} characters"
            )
        self._write_configuration()
        path = self.folder
        socket_file, database = path / "munge/munge.sock", path / "db"
        self._launch(
            "munged",
            [
                *("munged", "-F", "--force"),
                f"--socket={socket_file}",
                f"--key-file={path / 'munge/key'}",
                f"--pid-file={path / 'munge/pid'}",
                f"--seed-file={path / 'munge/seed'}",
                f"--log-file={path / 'log/munge.log'}",
            ],
            self._works("munge", "-n", "-S", str(socket_file)),
        )
        self.run(
            *("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={database}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
            timeout_s=120,
        )
        self._launch(
            "mariadbd",
            [
                *("mariadbd", "--no-defaults", "--user=root", "--skip-networking"),
                f"--datadir={database}",
                f"--socket={database / 'mysql.sock'}",
                f"--pid-file={database / 'pid'}",
                *("--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=2"),
                *("--innodb-lock-wait-timeout=900", "--innodb-flush-method=nosync"),
            ],
            (database / "mysql.sock").exists,
        )
        self._launch(
            "slurmdbd", ["slurmdbd", "-D"], self._works("sacctmgr", "-n", "list", "cluster")
        )
        self.start_controller()
        for node in NODES:
            self._launch(
                node,
                ["slurmd", "-D", "-N", node, "-f", str(path / "slurm.conf")],
                lambda: True,
            )
        self._wait_for(lambda: self.run("sinfo", "-h", "-N", "-o", "%N %t").count(" idle") >= 2)

    def start_controller(self) -> None:
        """Start slurmctld (again)."""
        self._launch(
            "slurmctld",
            ["slurmctld", "-D", "-f", str(self.folder / "slurm.conf")],
            self._works("scontrol", "ping"),
        )

    def stop_controller(self) -> None:
        """Stop slurmctld; its state is on disk."""
        self._stop_one("slurmctld")

    def _wait_for(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise SlurmUnavailableError(f"the nodes do not come up (see {self.folder / 'log'})")
            time.sleep(0.1)

    def _stop_one(self, name: str) -> None:
        pid = self.pids.pop(name, None)
        if pid is None or not _runs(pid):
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while _runs(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.05)

    def stop(self) -> None:
        """Cancel what runs and stop every daemon, the last one first."""
        if "slurmctld" in self.pids and _runs(self.pids["slurmctld"]):
            try:
                self.run("scancel", "--full", "-u", "root", timeout_s=10)
                self._wait_for(lambda: not self.run("squeue", "-h").strip(), timeout_s=20)
            except SlurmUnavailableError:
                pass
        for name in reversed(list(self.pids)):
            self._stop_one(name)
        (self.folder / "pids.json").unlink(missing_ok=True)

    def _write_configuration(self) -> None:
        path = self.folder
        for name in ("munge", "db", "log", "state", "dev", *NODES):
            (path / name).mkdir(parents=True, exist_ok=True)
        # munged insists that others can reach its socket but cannot write beside it.
        path.chmod(0o755)
        (path / "munge").chmod(0o755)
        key = path / "munge/key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        controller, database, *node_ports = _free_ports(2 + len(NODES))
        for number in range(GPUS_PER_NODE):
            device = path / f"dev/nvidia{number}"
            if not device.exists():
                try:
                    os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
                except OSError as error:
                    raise SlurmUnavailableError(f"{device}: {error.strerror}") from None
        (path / "gres.conf").write_text(
            f"Name=gpu File={path / 'dev'}/nvidia[0-{GPUS_PER_NODE - 1}]\n"
        )
        socket_file = path / "munge/munge.sock"
        self._write_keys(
            "slurmdbd.conf",
            {
                "AuthType": "auth/munge",
                "AuthInfo": f"socket={socket_file}",
                "CommunicationParameters": "NoInAddrAny",
                "DbdHost": "localhost",
                "DbdAddr": "127.0.0.1",
                "DbdPort": database,
                "SlurmUser": "root",
                "PidFile": path / "slurmdbd.pid",
                "LogFile": path / "log/slurmdbd.log",
                "StorageType": "accounting_storage/mysql",
                "StorageHost": "localhost",
                "StorageUser": "root",
                "StorageLoc": "slurm_acct",
            },
        )
        self._write_keys(
            "slurm.conf",
            {
                "ClusterName": "local",
                "SlurmctldHost": "localhost(127.0.0.1)",
                "SlurmctldPort": controller,
                "SlurmUser": "root",
                "SlurmdUser": "root",
                "AuthType": "auth/munge",
                "AuthInfo": f"socket={socket_file},cred_expire=5",
                "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
                "StateSaveLocation": path / "state",
                "SlurmdSpoolDir": path / "%n",
                "SlurmctldPidFile": path / "slurmctld.pid",
                "SlurmdPidFile": path / "%n.pid",
                "SlurmctldLogFile": path / "log/slurmctld-own.log",
                "SlurmdLogFile": path / "log/%n-own.log",
                "ProctrackType": "proctrack/linuxproc",
                "TaskPlugin": "task/none",
                "SwitchType": "switch/none",
                "MpiDefault": "none",
                "SelectType": "select/cons_tres",
                "SelectTypeParameters": "CR_CPU",
                "JobAcctGatherType": "jobacct_gather/none",
                "AccountingStorageType": "accounting_storage/slurmdbd",
                "AccountingStorageHost": "127.0.0.1",
                "AccountingStoragePort": database,
                "AccountingStoragePass": socket_file,
                "SchedulerParameters": (
                    "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1"
                ),
                "PreemptType": "preempt/partition_prio",
                "PreemptMode": "REQUEUE",
                "SlurmctldParameters": "preempt_send_user_signal",
                "SlurmdParameters": "config_overrides",
                "EnforcePartLimits": "ALL",
                "JobRequeue": 1,
                "ReturnToService": 2,
                "KillWait": 5,
                "MinJobAge": 300,
                "GresTypes": "gpu",
            },
            [
                *(
                    f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
                    f"CPUs={CPUS_PER_NODE} RealMemory=8000 Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN"
                    for node, port in zip(NODES, node_ports, strict=True)
                ),
                f"PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 "
                f"PreemptMode=REQUEUE GraceTime={GRACE_S}",
                "PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF",
            ],
        )

    def _write_keys(self, name: str, keys: Mapping[str, object], more: Sequence[str] = ()) -> None:
        lines = [f"{key}={value}" for key, value in keys.items()]
        (self.folder / name).write_text("\n".join([*lines, *more]) + "\n")
        (self.folder / name).chmod(0o600)


def running_in(folder: Path) -> LocalSlurm:
    """The SLURM that was started in `folder`.

    Raises:
        InputError: none was.
    """
    try:
        return LocalSlurm(folder, json.loads((folder / "pids.json").read_text()))
    except (OSError, ValueError):
        raise InputError(f"folder: no SLURM was started in {folder} (no pids.json)") from None


@dataclass(frozen=True)
class Arguments:
    """Install, start or stop a real SLURM on this one machine."""

    action: Literal["install", "start", "stop"] = flag(help="what to do", positional=True)
    folder: Path | None = flag(None, help="its folder; start makes a new one in /tmp by default")


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if words is None else words)
    if len(given) == 2 and not given[1].startswith("-"):
        given.insert(1, "--folder")
    arguments = parse_config(Arguments, given)
    try:
        if arguments.action == "install":
            install()
        elif arguments.action == "stop":
            if arguments.folder is None:
                raise InputError("folder: stop needs the folder that start printed")
            running_in(arguments.folder).stop()
        else:
            folder = arguments.folder or Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
            slurm = LocalSlurm(folder.resolve())
            slurm.start()
            print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}")
            print(f"# stop it: python tests/slurm/local_slurm.py stop {folder}", file=sys.stderr)
    except SlurmUnavailableError as error:
        raise InputError(str(error)) from None


if __name__ == "__main__":
    run_script(main)
