"""The settings of an S3 bucket, and boto3, which turns them into an endpoint, a region and credentials.

No other module uses boto3. What requests need of it is found out once, when a bucket starts, except credentials that
expire. It is imported only then, as the import takes a quarter of the start of a daemon that has no S3 bucket.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from twisted_storaged.buckets.s3.blocking import Address, BlockingPool
from twisted_storaged.buckets.s3.client import CredentialSource, DataPlane, Location, Transports
from twisted_storaged.buckets.s3.connection_pool import ConnectionPool
from twisted_storaged.buckets.s3.read_ahead import SEGMENT, SegmentBudget
from twisted_storaged.buckets.s3.responses import Retries
from twisted_storaged.protocol.http1 import NotConnected
from twisted_storaged.protocol.sigv4 import Credentials, Signer
from twisted_storaged.runtime.buffers import DeliveryBudget
from twisted_storaged.runtime.concurrency import Run

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from botocore.config import Config

#: Seconds for connecting, or for a blocked send; and for the next bytes of a response.
CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60
DEFAULT_REAP_INTERVAL = 3600
DEFAULT_DEADLINE = 120
DEFAULT_ABANDONED_AFTER = 86400

#: Bytes that the ranges of all GETs may take while they are fetched and sent.
READ_AHEAD_BUDGET = 48 << 20
#: Ranges that one GET may have at a time: ten that are fetched while one is sent.
READ_AHEAD_WIDTH = 11

_ANY_KEY = "k"
_END = b"-----END CERTIFICATE-----"

#: Values of the setting `conditional_writes`.
ConditionalWrites = Literal["auto", "all", "put_object", "none"]


@dataclass(frozen=True)
class S3Settings:
    """Where an S3 bucket is, and how it is used. None leaves a choice to boto3's environment, files and chains."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    use_path_style: bool | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    #: Which conditional writes the engine supports: see `probe.CAPABILITIES_BY_SETTING`.
    conditional_writes: ConditionalWrites = "auto"
    #: How often a GET is resumed after its response broke off.
    get_resumes: int = 3
    #: Whether whole reads are verified: if possible (None), always, or never; see `verification.Verifier`.
    verify_reads: bool | None = None
    #: Whether the engine lists keys in byte order, as AWS does, so that a page in another order is an error.
    lists_in_order: bool = True


def _segments() -> SegmentBudget:
    return SegmentBudget(READ_AHEAD_BUDGET // SEGMENT, READ_AHEAD_WIDTH)


@dataclass(frozen=True)
class Upkeep:
    """What all S3 buckets share.

    Attributes:
        state: the folder of the upload journal.
        reap_interval: seconds between two searches for orphaned uploads.
        deadline: seconds for one request to S3, all attempts together.
        abandoned_after: seconds after which an upload without parts counts as abandoned by whichever host created it.
        delivering: the memory for bytes on their way to clients, shared with the other kinds of buckets.
        ahead: the memory for ranges that are read ahead.
    """

    state: Path
    reap_interval: float = DEFAULT_REAP_INTERVAL
    deadline: float = DEFAULT_DEADLINE
    abandoned_after: float = DEFAULT_ABANDONED_AFTER
    delivering: DeliveryBudget = field(default_factory=DeliveryBudget, compare=False)
    ahead: SegmentBudget = field(default_factory=_segments, compare=False)


def connect(settings: S3Settings, run: Run, retries: Retries) -> tuple[DataPlane, str]:
    """Make the data plane of a bucket; returns it and the bucket's URL.

    Raises:
        ValueError: there are no credentials, or boto3 refuses the settings.
    """
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 (see the docstring of this module)

    try:
        client, credentials = make_client(settings, retries.deadline)
        objects = make_data_plane(client, credentials, settings.bucket, run, retries)
    except BotoCoreError as error:
        raise ValueError(str(error)) from error
    return objects, f"{client.meta.endpoint_url}/{settings.bucket}"


def make_client(settings: S3Settings, deadline: float) -> tuple[BaseClient, Any]:
    """Make a boto3 client for the bucket; returns it and its credentials.

    Its timeouts are at most half the `deadline`, in seconds, so that there is time for another attempt.

    Raises:
        ValueError: boto3 finds no credentials.
        BotoCoreError: boto3 refuses the settings.
    """
    import boto3  # noqa: PLC0415 (see the docstring of this module)

    session = boto3.session.Session(
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        region_name=settings.region,
    )
    # The session keeps them, so that the client gets the same object, with its refreshes.
    credentials = session.get_credentials()
    if credentials is None:
        raise ValueError("no credentials: not in the secrets file, not in the configuration, not in boto3's own chain")
    region = session.region_name or "us-east-1"
    client = session.client(
        "s3", endpoint_url=settings.endpoint, region_name=region, config=_client_config(settings, deadline)
    )
    return client, credentials


def ask_bucket(settings: S3Settings, deadline: float) -> None:
    """List at most one key of a bucket, blocking, to see whether it can be used.

    Raises:
        ValueError: it cannot, or did not answer in time; str() says why.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 (see the docstring of this module)

    try:
        client, _ = make_client(settings, deadline)
        client.list_objects_v2(Bucket=settings.bucket, Prefix=settings.prefix, MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        raise ValueError(str(error)) from error


def _client_config(settings: S3Settings, deadline: float) -> Config:
    from botocore.config import Config  # noqa: PLC0415 (see the docstring of this module)

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


def make_data_plane(client: Any, credentials: Any, bucket: str, run: Run, retries: Retries) -> DataPlane:
    """Make the data plane of one bucket, with the endpoint, region, addressing style and timeouts of a boto3 client.

    They are taken from a URL that boto3 presigns, as its rules for endpoints are many.
    """
    parameters = {"Bucket": bucket, "Key": _ANY_KEY}
    url = urlsplit(client.generate_presigned_url("get_object", Params=parameters))
    region = parse_qs(url.query)["X-Amz-Credential"][0].split("/")[2]
    config = client.meta.config
    address = _address(url.scheme, url.hostname or "", url.port)
    transports = Transports(
        ConnectionPool(_endpoint(address, retries.clock, config.connect_timeout), retries.clock, config.read_timeout),
        BlockingPool(address, config.connect_timeout, config.read_timeout),
        run,
    )
    location = Location(url.netloc, url.path.removesuffix(_ANY_KEY))
    return DataPlane(location, Signer(region), credential_source(credentials, run), transports, retries)


def credential_source(credentials: Any, run: Run) -> CredentialSource:
    """Make the source of credentials from botocore's, which are refreshed in a thread, as that may be a request."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 (see the docstring of this module)

    frozen = credentials.get_frozen_credentials

    async def refresh() -> Credentials:
        try:
            refreshed: Credentials = await run(frozen)
        except (BotoCoreError, ClientError, RuntimeError) as error:
            # botocore raises RuntimeError if new credentials have already expired.
            raise NotConnected(f"no credentials for S3: {type(error).__name__}: {error}") from error
        return refreshed

    # botocore's own functions, which return tuples with the fields of `Credentials`: each request calls them.
    return CredentialSource(frozen, refresh, getattr(credentials, "refresh_needed", None))


def _address(scheme: str, host: str, port: int | None) -> Address:
    if scheme == "http":
        return Address(host, port or 80)
    return Address(host, port or 443, ssl.create_default_context(cafile=_trusted()))


def _endpoint(address: Address, reactor: Any, connect_timeout: float) -> IStreamClientEndpoint:
    plain = HostnameEndpoint(reactor, address.host, address.port, timeout=connect_timeout)
    if address.tls is None:
        return plain
    trust = trustRootFromCertificates(_certificates(_trusted()))
    options = optionsForClientTLS(address.host, trustRoot=trust)
    endpoint: IStreamClientEndpoint = wrapClientTLS(options, plain)
    return endpoint


def _trusted() -> str:
    """The file of trusted certificates: as for boto3, that in AWS_CA_BUNDLE, or else Mozilla's list."""
    from botocore.httpsession import where  # noqa: PLC0415 (see the docstring of this module)

    return os.environ.get("AWS_CA_BUNDLE") or str(where())


def _certificates(path: str) -> list[Certificate]:
    blocks = Path(path).read_bytes().split(_END)[:-1]
    return [Certificate.loadPEM(block + _END) for block in blocks]
