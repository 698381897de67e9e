# Rendered by `atoll deploy nomad`: changes are lost when it is rendered again.
job "atoll-node" {
  type        = "system"
  datacenters = ["*"]
  node_pool   = "default"

  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "10s"
    healthy_deadline = "5m"
  }

  group "node" {
    network {
      port "admin" {
      }

      port "rpc" {
        static = 5008
      }
    }

    service {
      name     = "atoll-node-health"
      provider = "consul"
      port     = "admin"
      address  = "127.0.0.1"

      check {
        type     = "http"
        path     = "/health/ready"
        interval = "5s"
        timeout  = "2s"
      }
    }

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    task "node" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      config {
        command = "/usr/local/bin/atoll"
        args    = ["serve", "node", "--config", "/etc/atoll/atoll.toml", "--data-dir", "/var/lib/atoll", "--admin-listen", "127.0.0.1:${NOMAD_PORT_admin}"]
      }

      env {
        ATOLL_LOG_JSON = "true"
      }

      resources {
        cpu    = 1000
        memory = 1024
      }
    }
  }
}
