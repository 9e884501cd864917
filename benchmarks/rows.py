"""The rows of the table, as data: loads, peers, figures, and the bars that storaged is to reach.

A speed is that of one machine, so that most bars are ratios of storaged to a peer, from the figures of REFERENCE. The
bar for boto3 without a gateway is 1. Memory, the pace of a slow network and lists have absolute bars, in LIMITS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from figures import FIGURES
from loads import GiB, Load, MiB
from place import FAR_MB

KiB = 1 << 10

LARGE = ("GB/s", "CPU-s/GiB")
SMALL = ("requests/s", "CPU µs", "p99 ms")

#: The nginx of REFERENCE for small objects. With large buffers it is twice as fast at 100 KiB.
NGINX = "nginx, its own buffers"

#: Storaged with `verify_reads = false`, which shows what the verification of a GET costs.
UNVERIFIED = "storaged, unverified"

#: The figures of each row on one machine, in the row's order: the target of storaged, and what peers reached.
REFERENCE: Mapping[str, Mapping[str, Sequence[float]]] = {
    "put": {"storaged": (1.6, 0.55), "rclone": (0.25, 6.7), "nginx": (2.05, 0.38)},
    "put-4": {"storaged": (3.3, 0.55), "rclone": (0.6, 6.3), "nginx": (3.4, 0.55)},
    "get": {"storaged": (1.8, 0.45), "rclone": (1.3, 0.76), "nginx": (2.0, 0.37)},
    "get-4": {"storaged": (3.8, 0.48), "rclone": (2.75, 0.68), "nginx": (4.2, 0.40)},
    "put-4k": {"storaged": (9000, 110, 5), "rclone": (3200, 507, 14), NGINX: (30150, 26, 1)},
    "get-4k": {"storaged": (10000, 100, 4), "rclone": (4840, 312, 12), NGINX: (34080, 25, 1)},
    "put-100k": {"storaged": (6500, 150, 6), "rclone": (1120, 1520, 30), NGINX: (6690, 141, 4)},
    "get-100k": {"storaged": (6500, 150, 5), "rclone": (3890, 375, 14), NGINX: (7460, 126, 4)},
    # The embedded bucket's are ratios already.
    "embedded-put": {"storaged": (0.8,), "dd oflag=direct": (1,), "cp + fsync": (1,)},
    "embedded-put-4k": {"storaged": (5,), "fsync each": (1,)},
    "embedded-get": {"storaged": (0.8,), "nginx": (1,)},
}

#: Absolute bars of storaged, by row and figure.
LIMITS: Mapping[str, Mapping[str, float]] = {
    "list": {"lists/s": 20},
    "memory": {"peak MiB": 200},
    "far-put": {"GB/s": 4 * FAR_MB / 1000, "peak MiB": 200},
    "far-get": {"GB/s": 4 * FAR_MB / 1000, "peak MiB": 200},
    "embedded-list": {"keys/s": 200_000},
}


@dataclass(frozen=True)
class Bar:
    """The value that a figure of storaged is to reach: a ratio to that of a peer, or absolute if there is no peer."""

    figure: str
    value: float
    peer: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table: each of its peers runs its loads at its place."""

    name: str
    title: str
    place: str
    loads: list[Load]
    figures: Sequence[str]
    peers: Sequence[str]
    bars: Sequence[Bar] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bars", [*self._ratios(), *self._limits()])

    def _ratios(self) -> Iterator[Bar]:
        reference = REFERENCE.get(self.name, {})
        for peer in self.peers:
            for position, figure in enumerate(self.figures):
                if peer in reference and position < len(reference[peer]):
                    yield Bar(figure, reference["storaged"][position] / reference[peer][position], peer)
                elif peer == "boto3" and self.place == "s3":
                    yield Bar(figure, 1, peer)

    def _limits(self) -> Iterator[Bar]:
        for figure, value in LIMITS.get(self.name, {}).items():
            yield Bar(figure, value)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the loads: bytes of bodies, seconds of small requests, and keys of lists."""

    large: int = GiB
    half: int = GiB // 2
    seconds: float = 3
    keys: int = 10_000
    many_keys: int = 1_000_000


FULL = Sizes()
#: Sizes of --smoke, which only shows that everything works.
SMOKE = Sizes(32 * MiB, 16 * MiB, 0.1, 1000, 5000)
#: Rows that differ from others in numbers only, which --smoke leaves out.
ALIKE = {"put-4", "get-4", "put-100k", "get-100k"}

EVERYBODY = ("storaged", "rclone", "nginx", "boto3")


def all_rows(sizes: Sizes) -> list[Row]:
    """All rows of the table."""
    return [*_large(sizes), *_small(sizes), *_others(sizes), *_far(sizes), *_embedded(sizes), *_tls(sizes)]


def _large(sizes: Sizes) -> Iterator[Row]:
    for verb in ("put", "get"):
        one, four = _body(verb, sizes.large), _body(verb, sizes.half, 4)
        peers = [*EVERYBODY, *_also(verb)]
        yield Row(verb, f"{verb.upper()} {_size(one)}", "s3", [one], LARGE, peers)
        yield Row(f"{verb}-4", f"{verb.upper()} 4 x {_size(four)} at once", "s3", [four], LARGE, peers)


def _small(sizes: Sizes) -> Iterator[Row]:
    for size in (4, 100):
        for verb in ("put", "get"):
            load = _requests(verb, size * KiB, sizes.seconds)
            title = f"{verb.upper()} {size} KiB, 16 connections"
            yield Row(f"{verb}-{size}k", title, "s3", [load], SMALL, [*EVERYBODY, NGINX, *_also(verb)])


def _others(sizes: Sizes) -> Iterator[Row]:
    listed = _list(f"list{sizes.keys}/", sizes.keys, sizes.seconds)
    yield Row("list", f"list of {sizes.keys:,} keys", "s3", [listed], ["lists/s"], ["storaged", "boto3"])
    loads = [_body(verb, sizes.large, 4) for verb in ("put", "get")]
    title = f"4 x {_size(loads[0])} PUT and GET"
    yield Row("memory", title, "s3", loads, ["peak MiB"], ["storaged", "rclone", "nginx"])


def _far(sizes: Sizes) -> Iterator[Row]:
    for verb in ("put", "get"):
        load = _body(verb, sizes.large)
        figures = ["GB/s", "peak MiB"]
        yield Row(f"far-{verb}", f"{verb.upper()} {_size(load)}", "far", [load], figures, ["storaged", "boto3"])


def _embedded(sizes: Sizes) -> Iterator[Row]:
    put, get = (_body(verb, sizes.large) for verb in ("put", "get"))
    small = _requests("put", 4 * KiB, sizes.seconds)
    title, disk = f"PUT {_size(put)}", ["storaged", "dd oflag=direct", "cp + fsync"]
    yield Row("embedded-put", title, "embedded", [put], LARGE, disk)
    title = "PUT 4 KiB, 16 connections"
    yield Row("embedded-put-4k", title, "embedded", [small], SMALL, ["storaged", "fsync each"])
    yield Row("embedded-get", f"GET {_size(get)}", "embedded", [get], LARGE, ["storaged", "nginx"])
    listed = _list("list/", sizes.many_keys, 0)
    yield Row("embedded-list", f"list of {sizes.many_keys:,} keys", "embedded", [listed], ["keys/s"], ["storaged"])


def _tls(sizes: Sizes) -> Iterator[Row]:
    for place, peers in (("tls-in", ["storaged", "nginx"]), ("tls-out", ["storaged", "nginx", "boto3"])):
        for verb in ("put", "get"):
            load = _body(verb, sizes.large)
            also = _also(verb) if place == "tls-out" else []
            yield Row(f"{place}-{verb}", f"{verb.upper()} {_size(load)}", place, [load], LARGE, [*peers, *also])


def _also(verb: str) -> list[str]:
    return [UNVERIFIED] if verb == "get" else []


def _body(verb: str, size: int, connections: int = 1) -> Load:
    # The limit of a body is 4 GiB under this prefix.
    return Load(verb, f"_vectors/{size}-%d", size, connections)


def _requests(verb: str, size: int, seconds: float) -> Load:
    # PUTs get many keys; GETs get few, as these must be put before.
    return Load(verb, f"small/{size}-%d-%n", size, 16, 0, seconds, 1000 if verb == "put" else 16)


def _list(prefix: str, keys: int, seconds: float) -> Load:
    return Load("list", prefix, keys, 1, 0 if seconds else 1, seconds)


def _size(load: Load) -> str:
    return f"{load.size // GiB} GiB" if load.size % GiB == 0 else f"{load.size // MiB} MiB"


assert all(figure in FIGURES for row in all_rows(FULL) for figure in row.figures)
