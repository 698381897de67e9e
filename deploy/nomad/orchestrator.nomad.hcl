# Rendered by `atoll deploy nomad`: changes are lost when it is rendered again.
job "atoll-orchestrator" {
  type        = "service"
  datacenters = ["*"]
  node_pool   = "default"

  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "10s"
    healthy_deadline  = "5m"
    progress_deadline = "10m"
    auto_revert       = true
    auto_promote      = true
    canary            = 1
  }

  group "orchestrator" {
    count = 2

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    network {
      port "admin" {
      }
    }

    service {
      name     = "atoll-orchestrator-health"
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

    task "orchestrator" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      config {
        command = "/usr/local/bin/atoll"
        args    = ["serve", "orchestrator", "--config", "/etc/atoll/atoll.toml", "--data-dir", "${NOMAD_TASK_DIR}/data", "--admin-listen", "127.0.0.1:${NOMAD_PORT_admin}"]
      }

      env {
        ATOLL_LOG_JSON = "true"
      }

      resources {
        cpu    = 500
        memory = 512
      }
    }
  }
}
