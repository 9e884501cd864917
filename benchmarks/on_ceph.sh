#!/usr/bin/env bash
# on_ceph.sh [OPTION…]    start a Ceph on this machine, measure on it what can be measured on any S3, and stop it. The
# options are compare.py's: --only put,get, --runs 3. Takes PORT..PORT+59 for Ceph (22200) and PORT+60.. for the rest.
# PYTHON (python) has what compare.py asks for.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
engines=$here/../tests/engines
port=${PORT:-22200}
folder=$(mktemp -d "${TMPDIR:-/tmp}/storaged-ceph.XXXXXX")
trap 'rm -rf "$folder"' EXIT
# What is overwritten stays on the disk until Ceph collects it, which is hours later: there must be room.
OSDS=1 OSD_GB=${OSD_GB:-24} "$engines/with-engine.sh" "$engines/ceph.sh" "$folder/ceph" "$port" -- \
  "${PYTHON:-python}" "$here/compare.py" --s3 --runs 1 --only put,get,put-4k,get-4k,put-100k,get-100k \
  --port $((port + 60)) --out "$here/build/ceph" "$@"
