"""Tries what the units take away, and writes what came of each attempt to $STATE_DIRECTORY/probe.json."""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

STATE = Path(os.environ["STATE_DIRECTORY"])
CLONE_NEWUSER = 0x10000000
LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises OSError if it returns -1."""
    if getattr(LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def connect(address: str) -> None:
    """Open a connection to a port that nobody listens on. Raises OSError."""
    with socket.socket() as one:
        one.settimeout(3)
        one.connect((address, 9))


def set_uid_bit() -> None:
    """Make a file that runs as its owner."""
    path = STATE / "suid"
    path.touch()
    try:
        path.chmod(0o4755)
    finally:
        path.unlink()


ATTEMPTS: dict[str, Callable[[], object]] = {
    "connect to this host": lambda: connect("127.0.0.1"),
    "connect to another host": lambda: connect(sys.argv[1]),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "writable code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "write /etc": lambda: Path("/etc/probe").touch(),
    "write the program": lambda: Path("/opt/storaged/probe").touch(),
    "write /proc/sys": lambda: Path("/proc/sys/kernel/hostname").write_text("probe", "ascii"),
    "read a home": lambda: os.listdir("/root"),
    "new namespace": lambda: call("unshare", CLONE_NEWUSER),
    "personality": lambda: call("personality", 0x0008),
    "set-user-id": set_uid_bit,
    "chown": lambda: os.chown(STATE, os.getuid(), os.getgid()),
    "nice": lambda: os.nice(1),
    "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "ptrace": lambda: call("ptrace", 16, os.getppid(), 0, 0),
    "hostname": lambda: socket.sethostname("probe"),
    "kernel log": lambda: os.open("/dev/kmsg", os.O_RDONLY),
    "see other processes": lambda: os.stat("/proc/1"),
    "raise the core limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
    "the boot id": lambda: Path("/proc/sys/kernel/random/boot_id").read_text("ascii"),
    "memory files": lambda: os.close(os.memfd_create("probe")),
    "unix sockets": socket.socketpair,
    "a child process": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
}


def main() -> None:
    """Make all attempts."""
    outcomes = {}
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
            outcomes[name] = "allowed"
        except ValueError:
            # Python's, for a limit that may not be raised.
            outcomes[name] = "not allowed"
        except TimeoutError:
            outcomes[name] = "no answer"
        except OSError as error:
            outcomes[name] = errno.errorcode[error.errno or 0]
    (STATE / "probe.json").write_text(json.dumps(outcomes), "utf-8")


if __name__ == "__main__":
    main()
