# A fleet on machines that are there already, reached by SSH: programs, identities, configuration and services of each.
#
#   terraform apply -var-file=fleet.tfvars
#
# Cloud modules that make the machines hand their addresses to this one.
terraform {
  required_version = ">= 1.5"
  required_providers {
    null = { source = "hashicorp/null", version = "~> 3.2" }
  }
}

variable "cluster" {
  description = "The fleet's name: lower-case letters, digits and hyphens."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,31}$", var.cluster))
    error_message = "A fleet's name has at most 32 lower-case letters, digits and hyphens."
  }
}

variable "programs" {
  description = "A directory with atoll and the programs beside it: `cargo xtask programs --out …`."
  type        = string
}

variable "identities" {
  description = "A directory with ca.pem, and for each machine <name>.pem and <name>-key.pem: `atoll ca issue`."
  type        = string
}

variable "configuration" {
  description = "A directory with <name>-<role>.toml for each role of each machine."
  type        = string
}

variable "machines" {
  description = "The machines by name: where they are reached, as whom, and what for."
  type = map(object({
    address = string
    user    = optional(string, "root")
    roles   = set(string)
  }))
  validation {
    condition = alltrue([
      for machine in values(var.machines) : length(setsubtract(machine.roles, ["api", "edge", "orchestrator", "node"])) == 0
    ])
    error_message = "Roles are api, edge, orchestrator and node."
  }
}

locals {
  programs = sort(fileset(var.programs, "*"))
  # Whatever changes of it brings a machine up to date.
  release = sha256(join("", [for program in local.programs : filesha256("${var.programs}/${program}")]))
}

resource "null_resource" "machine" {
  for_each = var.machines

  triggers = {
    address = each.value.address
    roles   = join(",", sort(each.value.roles))
    release = local.release
    configuration = sha256(join("", [
      for role in sort(each.value.roles) : filesha256("${var.configuration}/${each.key}-${role}.toml")
    ]))
    certificate = filesha256("${var.identities}/${each.key}.pem")
  }

  connection {
    type = "ssh"
    host = each.value.address
    user = each.value.user
  }

  provisioner "remote-exec" {
    inline = ["install -d -m 0755 /etc/atoll /var/lib/atoll /usr/local/lib/atoll", "install -d -m 0700 /etc/atoll/tls"]
  }

  provisioner "file" {
    source      = "${var.programs}/"
    destination = "/usr/local/lib/atoll"
  }

  provisioner "file" {
    source      = "${var.identities}/ca.pem"
    destination = "/etc/atoll/tls/ca.pem"
  }

  provisioner "file" {
    source      = "${var.identities}/${each.key}.pem"
    destination = "/etc/atoll/tls/own.pem"
  }

  provisioner "file" {
    source      = "${var.identities}/${each.key}-key.pem"
    destination = "/etc/atoll/tls/own-key.pem"
  }

  provisioner "file" {
    source      = "${path.module}/../systemd/atoll@.service"
    destination = "/etc/systemd/system/atoll@.service"
  }

  provisioner "file" {
    content = join("\n", [
      for role in sort(each.value.roles) :
      "### ${role}\n${file("${var.configuration}/${each.key}-${role}.toml")}"
    ])
    destination = "/etc/atoll/all.toml"
  }

  # One file for each role, and the daemons in the order in which others need them. Sandboxes of a node live on meanwhile.
  provisioner "remote-exec" {
    inline = concat(
      [
        "set -eu",
        "chmod 0600 /etc/atoll/tls/own-key.pem",
        "chmod 0755 /usr/local/lib/atoll/*",
        "ln -sf /usr/local/lib/atoll/atoll /usr/bin/atoll",
        "awk '/^### /{file=\"/etc/atoll/\" $2 \".toml\"; printf \"\" > file; next} {print >> file}' /etc/atoll/all.toml",
        "rm /etc/atoll/all.toml && chmod 0600 /etc/atoll/*.toml",
        "systemctl daemon-reload",
      ],
      [
        for role in ["node", "orchestrator", "api", "edge"] :
        "systemctl enable atoll@${role} && systemctl restart atoll@${role}" if contains(each.value.roles, role)
      ],
    )
  }
}
