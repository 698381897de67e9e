#!/bin/sh
# The authority of this fleet, where there is none yet, and certificates of a month for its processes. Run again, they are renewed.
set -eu
cd /etc/atoll/tls
[ -e ca-key.pem ] || atoll ca init --dir . --cluster compose
for role in api orchestrator edge; do
    atoll ca issue --dir . --role $role --name $role --ttl 30days
done
node=$(atoll node-id --data-dir /var/lib/atoll/node)
atoll ca issue --dir . --role node --name "$node" --ttl 30days
echo "$node" > node-id
