"""The house by its domain alone: TLS, wildcard names, HTTP/2."""

import os
import subprocess

from e2b import Sandbox


def curl(*arguments):
    return subprocess.run(["curl", "-sS", "-m", "10", *arguments], capture_output=True, text=True)


def test_names_below_the_domain_lead_to_sandboxes_and_their_ports():
    assert "E2B_API_URL" not in os.environ and "E2B_SANDBOX_URL" not in os.environ
    sandbox = Sandbox.create(timeout=60)
    try:
        sandbox.commands.run("python3 -m http.server 8000", background=True, cwd="/etc/skel")
        host = sandbox.get_host(8000)
        assert host == f"8000-{sandbox.sandbox_id}.{os.environ['E2B_DOMAIN']}"
        done = curl("--retry", "20", "--retry-all-errors", "--retry-delay", "0", "--fail", f"https://{host}/", "-o", "/dev/null", "-w", "%{http_version} %{http_code}")
        assert done.stdout.endswith("2 200"), done
    finally:
        sandbox.kill()


def test_both_names_of_the_house_show_a_certificate_of_its_authority():
    for name in (f"api.{os.environ['E2B_DOMAIN']}/health", f"49983-i00000000000000000000.{os.environ['E2B_DOMAIN']}/health"):
        assert curl(f"https://{name}", "-o", "/dev/null").returncode == 0, name
