# Sourced by the others: writes the configuration of a role, $1, and says where it is.
configure() {
    role=$1
    name=$role
    [ "$role" = node ] && name=$(cat /etc/atoll/tls/node-id)
    own=$(hostname -i | cut -d' ' -f1)
    file=/tmp/atoll.toml
    cat > "$file" <<END
api_listen = "0.0.0.0:3000"
edge_listen = "0.0.0.0:3002"
# Only this machine's loopback leads to these ports: see compose.yaml.
insecure_listen = true

[blobs]
directory = "/var/lib/atoll/blobs"
builds = true

[cluster]
name = "compose"
rpc_listen = "$own:5008"
ca = "/etc/atoll/tls/ca.pem"
certificate = "/etc/atoll/tls/$name.pem"
key = "/etc/atoll/tls/$name-key.pem"
END
    if [ "$role" != node ]; then
        cat >> "$file" <<END

[cluster.redis]
url = "redis://redis"
END
    fi
    if [ "$role" = api ] || [ "$role" = orchestrator ]; then
        cat >> "$file" <<END

[cluster.database]
url = "postgres://atoll:$ATOLL_POSTGRES_PASSWORD@postgres/atoll?sslmode=disable"
END
    fi
    cat >> "$file" <<END

[[cluster.peers]]
role = "node"
id = "$(cat /etc/atoll/tls/node-id)"
address = "172.30.0.11:5008"

[[cluster.peers]]
role = "api"
address = "172.30.0.13:5008"
END
    echo "$file"
}
