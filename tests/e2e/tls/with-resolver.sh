#!/bin/sh
# Runs a command in which every name below the house's domain resolves to the house: a resolver on loopback, named
# by an /etc/resolv.conf of this mount namespace alone. The house's certificate authority is trusted beside the
# system's.
set -eu
dir=$(mktemp -d)
trap 'kill "$resolver" 2>/dev/null; rm -rf "$dir"' EXIT
python3 "$(dirname "$0")/resolver.py" "$ATOLL_RESOLVER_ADDRESS" "$E2B_DOMAIN" &
resolver=$!
echo "nameserver $ATOLL_RESOLVER_ADDRESS" > "$dir/resolv.conf"
mount --bind "$dir/resolv.conf" "$(readlink -f /etc/resolv.conf)"
cat /etc/ssl/certs/ca-certificates.crt "$("$ATOLL_BIN" tls --path)" > "$dir/trusted.crt"
for name in SSL_CERT_FILE CURL_CA_BUNDLE REQUESTS_CA_BUNDLE NODE_EXTRA_CA_CERTS; do
    export "$name=$dir/trusted.crt"
done
"$@"
