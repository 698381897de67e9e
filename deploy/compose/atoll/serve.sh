#!/bin/sh
set -eu
. /etc/atoll/conf/configure.sh
exec atoll serve "$1" --config "$(configure "$1")" --data-dir "/var/lib/atoll/$1"
