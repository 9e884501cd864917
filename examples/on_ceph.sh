#!/bin/bash
# on_ceph.sh [EXAMPLE [PORT]]    Starts a Ceph cluster on this machine, creates a bucket, runs an example on it (default:
# flights_and_vectors.py), and stops the cluster. Ceph uses the ports PORT..PORT+59 (default: 22100), storaged any free
# port. PYTHON (default: python) names the interpreter, in which the extra `examples` must be installed.
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

# with-engine.sh has set S3_ENDPOINT, S3_REGION, S3_ACCESS_KEY and S3_SECRET_KEY.
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
