"""A sandbox is a machine like others: packages, Python, names, an identity."""

import os

import pytest

PACKAGE = """Package: atoll-hello
Version: 1
Architecture: all
Maintainer: nobody <nobody@example.com>
Description: says hello
"""
#: Makes a wheel by hand: building one would take what no index gives.
WHEEL = """
import zipfile
info = "atoll_hello-1.dist-info"
files = {
    "atoll_hello.py": "def greet():\\n    return 'hello'\\n",
    f"{info}/METADATA": "Metadata-Version: 2.1\\nName: atoll-hello\\nVersion: 1\\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
}
files[f"{info}/RECORD"] = "".join(f"{name},,\\n" for name in [*files, f"{info}/RECORD"])
with zipfile.ZipFile("/tmp/wheels/atoll_hello-1-py3-none-any.whl", "w") as wheel:
    for name, text in files.items():
        wheel.writestr(name, text)
"""


def has(sandbox, program):
    return sandbox.commands.run(f"command -v {program} || true").stdout != ""


def test_packages_are_installed_from_an_archive(fresh):
    sandbox = fresh()
    if not has(sandbox, "apt-get"):
        pytest.skip("this machine's /usr has no apt-get")
    sandbox.files.write("/tmp/package/DEBIAN/control", PACKAGE)
    sandbox.files.write("/tmp/package/usr/bin/atoll-hello", "#!/bin/sh\necho hello\n")
    sandbox.commands.run("chmod 755 /tmp/package/usr/bin/atoll-hello && mkdir /tmp/archive && dpkg-deb --root-owner-group -b /tmp/package /tmp/archive/atoll-hello_1_all.deb")
    facts = sandbox.commands.run("cd /tmp/archive && stat -c %s *.deb && sha256sum *.deb").stdout.split()
    sandbox.files.write("/tmp/archive/Packages", f"{PACKAGE}Filename: ./atoll-hello_1_all.deb\nSize: {facts[0]}\nSHA256: {facts[1]}\n")
    sandbox.files.write("/tmp/only.list", "deb [trusted=yes] file:/tmp/archive ./\n")
    apt = "sudo apt-get -o Dir::Etc::sourcelist=/tmp/only.list -o Dir::Etc::sourceparts=-"
    sandbox.commands.run(f"{apt} update && {apt} install -y atoll-hello", timeout=120)
    assert sandbox.commands.run("atoll-hello").stdout == "hello\n"
    assert sandbox.commands.run("dpkg-query -W -f '${Status}' atoll-hello").stdout == "install ok installed"
    sandbox.commands.run("sudo apt-get remove -y atoll-hello && ! command -v atoll-hello", timeout=120)
    assert not os.path.exists("/usr/bin/atoll-hello")


def test_users_can_be_added(fresh):
    sandbox = fresh()
    sandbox.commands.run("sudo useradd --create-home somebody")
    assert sandbox.commands.run("id -un; pwd", user="somebody", cwd="/home/somebody").stdout == "somebody\n/home/somebody\n"


def test_python_packages_are_installed_for_the_user(fresh):
    sandbox = fresh()
    if not has(sandbox, "pip"):
        pytest.skip("this machine's /usr has no pip")
    sandbox.files.write("/tmp/make.py", WHEEL)
    sandbox.commands.run("mkdir /tmp/wheels && python3 /tmp/make.py")
    sandbox.commands.run("pip install --user --no-index --find-links /tmp/wheels atoll-hello", timeout=120)
    assert sandbox.commands.run("python3 -c 'import atoll_hello; print(atoll_hello.greet())'").stdout == "hello\n"
    assert sandbox.commands.run("python -c 'print(1)'").stdout == "1\n"


def test_two_machines_are_two_machines(fresh):
    one, other = fresh(), fresh()
    for file in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        ids = {sandbox.commands.run(f"cat {file}").stdout.strip() for sandbox in (one, other)} | {open(file).read().strip()}
        assert len(ids) == 3 and all(len(name) >= 32 for name in ids), ids


def test_a_machine_keeps_its_identity_through_a_reboot(fresh):
    sandbox = fresh()
    before = sandbox.files.read("/etc/machine-id")
    boot = sandbox.commands.run("cat /proc/sys/kernel/random/boot_id").stdout
    sandbox.pause(mode="filesystem")
    sandbox = sandbox.connect()
    assert sandbox.files.read("/etc/machine-id") == before
    assert sandbox.commands.run("cat /proc/sys/kernel/random/boot_id").stdout != boot


@pytest.mark.parametrize("line", [
    "ln -sf /dev/zero /etc/machine-id; ln -sf /dev/zero /etc/resolv.conf",
    "rm -f /etc/machine-id /etc/resolv.conf; mkfifo /etc/machine-id /etc/resolv.conf",
    "rm -f /etc/machine-id /etc/resolv.conf; truncate -s 900G /etc/machine-id /etc/resolv.conf",
])
def test_what_lies_in_wait_for_a_reboot_is_replaced(fresh, line):
    sandbox = fresh()
    sandbox.commands.run(line, user="root")
    sandbox.pause(mode="filesystem")
    sandbox = sandbox.connect()
    assert sandbox.commands.run("stat -c '%F %s' /etc/machine-id; stat -c %F /etc/resolv.conf").stdout == "regular file 33\nregular file\n"


@pytest.mark.needs("sharedKernel")
def test_the_disk_and_shared_memory_are_the_machines_own(fresh):
    sandbox = fresh()
    mounts = sandbox.commands.run("cat /proc/self/mountinfo").stdout
    overlays = [line for line in mounts.splitlines() if " - overlay " in line]
    assert overlays and all("index=on" in line and "nfs_export=on" in line for line in overlays)
    assert int(sandbox.commands.run("df --output=size -B1 /dev/shm | tail -1").stdout) == 2 << 30
