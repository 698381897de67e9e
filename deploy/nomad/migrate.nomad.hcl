# Rendered by `atoll deploy nomad`: changes are lost when it is rendered again.
job "atoll-migrate" {
  type        = "batch"
  datacenters = ["*"]
  node_pool   = "default"

  group "migrate" {
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "migrate" {
      driver = "raw_exec"

      config {
        command = "/usr/local/bin/atoll"
        args    = ["migrate", "--config", "/etc/atoll/atoll.toml"]
      }

      resources {
        cpu    = 500
        memory = 256
      }
    }
  }
}
