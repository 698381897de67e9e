#!/bin/sh
# The schema, and, once, a key: `docker compose logs migrate` shows it.
set -eu
. /etc/atoll/conf/configure.sh
file=$(configure api)
atoll migrate --config "$file"
atoll bootstrap --config "$file" --name compose
