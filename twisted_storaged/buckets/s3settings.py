"""Where a bucket of S3 is, and the client of boto3 that knows how to get there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from botocore.client import BaseClient

#: Seconds for a connection, or a blocked send; and for the next bytes of an answer.
CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60


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
    conditional_writes: str = "auto"
    #: How often a GET that broke off goes on where it was.
    get_resumes: int = 3


def make_client(settings: S3Settings) -> tuple[BaseClient, Any]:
    """The client that a bucket's threads share (clients are thread-safe, sessions are not), and its credentials.

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
    client = session.client("s3", endpoint_url=settings.endpoint, region_name=region, config=_client_config(settings))
    return client, credentials


def _client_config(settings: S3Settings) -> Config:
    style = {None: "auto", True: "path", False: "virtual"}[settings.use_path_style]
    return Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard"},
        tcp_keepalive=True,
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style},
    )
