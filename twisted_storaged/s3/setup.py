"""From a boto3 client to a data plane: where requests go, and what they are signed with, is boto3's to say."""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import where
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from twisted_storaged.buckets.threads import Run
from twisted_storaged.s3.blocking import Address, BlockingPool
from twisted_storaged.s3.client import DataPlane, Location, Transports
from twisted_storaged.s3.pool import Pool
from twisted_storaged.s3.retries import Retries
from twisted_storaged.s3.signing import Keys, Signer
from twisted_storaged.s3.wire import NotConnected

_ANY_KEY = "k"
_END = b"-----END CERTIFICATE-----"


def make_data_plane(client: Any, credentials: Any, bucket: str, run: Run, retries: Retries) -> DataPlane:
    """The data plane of one bucket, with the endpoint, region, style and timeouts of a boto3 client.

    boto3's rules for endpoints are many; a URL that it presigns shows what they come to.
    """
    parameters = {"Bucket": bucket, "Key": _ANY_KEY}
    url = urlsplit(client.generate_presigned_url("get_object", Params=parameters))
    region = parse_qs(url.query)["X-Amz-Credential"][0].split("/")[2]
    config = client.meta.config
    address = _address(url.scheme, url.hostname or "", url.port)
    transports = Transports(
        Pool(_endpoint(address, retries.clock, config.connect_timeout), retries.clock, config.read_timeout),
        BlockingPool(address, config.connect_timeout, config.read_timeout),
        run,
    )
    location = Location(url.netloc, url.path.removesuffix(_ANY_KEY))
    return DataPlane(location, Signer(region), current_keys(credentials, run), transports, retries)


def current_keys(credentials: Any, run: Run) -> Callable[[], Awaitable[Keys]]:
    """The keys as of now, from botocore's credentials. Where they must be fetched anew, a thread does that."""
    get = credentials.get_frozen_credentials
    needs_refresh = getattr(credentials, "refresh_needed", lambda: False)

    async def keys() -> Keys:
        try:
            frozen = await run(get) if needs_refresh() else get()
        except (BotoCoreError, ClientError, RuntimeError) as error:
            # RuntimeError is botocore's word for credentials that are expired when they come.
            raise NotConnected(f"no credentials for S3: {type(error).__name__}: {error}") from error
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    return keys


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
    """Whom to trust: as boto3, what AWS_CA_BUNDLE names, else Mozilla's list."""
    return os.environ.get("AWS_CA_BUNDLE") or str(where())


def _certificates(path: str) -> list[Certificate]:
    blocks = Path(path).read_bytes().split(_END)[:-1]
    return [Certificate.loadPEM(block + _END) for block in blocks]
