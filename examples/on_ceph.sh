#!/bin/bash
# on_ceph.sh [EXAMPLE [PORT]]    start a Ceph on this machine, make a bucket, run an example (flights_and_vectors.py) on
# it, and stop all of it. Takes PORT..PORT+59 for Ceph (22100) and any free port for storaged. PYTHON (python) has what
# the README asks for.
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)
engines=$examples/../tests/engines

if [ "${1:-}" != --inside ]; then
  folder=$(mktemp -d /tmp/storaged-ceph.XXXXXX)
  trap 'rm -rf "$folder"' EXIT
  OSDS=1 STORE=memstore OSD_GB=4 "$engines/with-engine.sh" "$engines/ceph.sh" "$folder/ceph" "${2:-22100}" \
    -- "$0" --inside "$folder" "${1:-flights_and_vectors.py}"
  exit
fi

# From here on with-engine.sh has told where Ceph is: S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY.
folder=$2
cat > "$folder/storaged.toml" <<TOML
[storaged]
state = "$folder"

[s3]
bucket = "example"
endpoint = "$S3_ENDPOINT"
region = "$S3_REGION"
use_path_style = true
TOML
# The daemon refuses a secrets file that others can read.
(umask 077; cat > "$folder/secrets.toml") <<TOML
[s3]
access_key_id = "$S3_ACCESS_KEY"
secret_access_key = "$S3_SECRET_KEY"
TOML
"${PYTHON:-python}" - <<'PY'
import os
import boto3

keys = {"aws_access_key_id": os.environ["S3_ACCESS_KEY"], "aws_secret_access_key": os.environ["S3_SECRET_KEY"]}
s3 = boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT"], region_name=os.environ["S3_REGION"], **keys)
s3.create_bucket(Bucket="example")
PY
"${PYTHON:-python}" "$examples/$3" --config "$folder/storaged.toml" --secrets "$folder/secrets.toml"
