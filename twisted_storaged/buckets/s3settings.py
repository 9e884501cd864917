"""Where a bucket of S3 is, and the client of boto3 that knows how to get there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import boto3
from botocore.config import Config

from twisted_storaged.buckets.budget import DeliveryBudget
from twisted_storaged.s3.readahead import SEGMENT
from twisted_storaged.s3.segments import SegmentBudget

if TYPE_CHECKING:
    from botocore.client import BaseClient

#: Seconds for a connection, or a blocked send; and for the next bytes of an answer.
CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60
DEFAULT_REAP_INTERVAL = 3600
DEFAULT_DEADLINE = 120
DEFAULT_ABANDONED_AFTER = 86400

#: Bytes that the ranges of all GETs may take: those that are fetched, and those that are sent.
READ_AHEAD_BUDGET = 48 << 20
#: Ranges that one GET may have of them, where there is room: ten that are fetched while one is sent.
READ_AHEAD_WIDTH = 11

#: What the setting of this name may be.
ConditionalWrites = Literal["auto", "all", "put_object", "none"]


@dataclass(frozen=True)
class S3Settings:
    """Where an S3 bucket is. None leaves a choice to boto3: its environment, files, and credential chain."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    use_path_style: bool | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    #: Which conditional writes it may be asked for: see `s3conditions.CLAIMS`.
    conditional_writes: ConditionalWrites = "auto"
    #: How often a GET that broke off goes on where it was.
    get_resumes: int = 3
    #: Whether whole reads are verified: see `s3verify.Verifier`.
    verify_reads: bool | None = None
    #: Whether its engine lists keys in the order of their bytes, as AWS does: then a page that is not is an error.
    lists_in_order: bool = True


def _segments() -> SegmentBudget:
    return SegmentBudget(READ_AHEAD_BUDGET // SEGMENT, READ_AHEAD_WIDTH)


@dataclass(frozen=True)
class Upkeep:
    """What holds for all buckets of S3.

    Attributes:
        state: the folder of the upload journal.
        reap_interval: seconds between two looks at what was left behind.
        deadline: seconds that S3 has for one request, with all its tries.
        abandoned_after: seconds after which an upload without any part is not being sent by anybody, on whatever host.
        delivering: the memory for bytes on their way to clients, which is that of all buckets.
        ahead: the memory for ranges that are fetched ahead.
    """

    state: Path
    reap_interval: float = DEFAULT_REAP_INTERVAL
    deadline: float = DEFAULT_DEADLINE
    abandoned_after: float = DEFAULT_ABANDONED_AFTER
    delivering: DeliveryBudget = field(default_factory=DeliveryBudget, compare=False)
    ahead: SegmentBudget = field(default_factory=_segments, compare=False)


def make_client(settings: S3Settings, deadline: float) -> tuple[BaseClient, Any]:
    """A client, which knows how to get to the bucket, and its credentials.

    One that hangs for half the `deadline`, in seconds, is given up, so that there is time for another try.

    Raises:
        ValueError: there are no credentials anywhere.
        BotoCoreError: boto3 cannot make sense of the settings.
    """
    session = boto3.session.Session(
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        region_name=settings.region,
    )
    # Found here, they are the client's too, and refresh themselves there for as long as it lives.
    credentials = session.get_credentials()
    if credentials is None:
        raise ValueError("no credentials: not in the secrets file, not in the configuration, not in boto3's own chain")
    region = session.region_name or "us-east-1"
    client = session.client(
        "s3", endpoint_url=settings.endpoint, region_name=region, config=_client_config(settings, deadline)
    )
    return client, credentials


def _client_config(settings: S3Settings, deadline: float) -> Config:
    style = {None: "auto", True: "path", False: "virtual"}[settings.use_path_style]
    return Config(
        connect_timeout=min(CONNECT_TIMEOUT, deadline / 2),
        read_timeout=min(READ_TIMEOUT, deadline / 2),
        retries={"mode": "standard"},
        tcp_keepalive=True,
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style},
    )
