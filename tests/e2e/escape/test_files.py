"""Attempt 29: the files API, which reads and writes as root of the sandbox, and of nothing else."""

import time

import e2b
import httpx
import pytest

REFUSALS = (e2b.SandboxException, e2b.AuthenticationException, e2b.InvalidArgumentException)


def paths(file):
    """Ways to say where a file of the host is."""
    up = "../" * 30
    return [str(file), up + str(file).lstrip("/"), f"/home/user/{up}{file}", f"/proc/1/root{file}", f"/proc/self/root/{up}{file}", f"/proc/1/cwd/{up}{file}", f"/dev/fd/9{file}", f"/proc/self/fd/9/{file.name}", f"~root/{up}{file}", f"//{file}", f"/./{file}", str(file).replace("/", "/%2e%2e/", 1), f"file://{file}", f"C:\\{file}"]


@pytest.mark.parametrize("who", ["user", "root"])
def test_29_no_path_leads_to_a_file_of_the_host(attacker, host, who):
    for path in paths(host.file):
        for act in (lambda: attacker.files.read(path, user=who), lambda: str(attacker.files.list(path, user=who)), lambda: str(attacker.files.get_info(path, user=who)), lambda: str(attacker.files.list(path.rsplit("/", 1)[0], user=who))):
            try:
                assert host.secret not in act()
            except REFUSALS:
                pass
        try:
            attacker.files.write(path, "overwritten", user=who)
            attacker.files.remove(path, user=who)
        except REFUSALS:
            pass
    host.assert_untouched()


def test_29_links_are_the_sandboxs_own(attacker, host):
    attacker.shell(f"mkdir -p links; ln -sfn {host.dir} links/dir; ln -sfn {host.file} links/file; ln -sfn ../../../../../../../../..{host.file} links/up; ln -sfn /proc/1/root{host.file} links/proc; ln {host.file} links/hard")
    for name in ("file", "up", "proc", "dir/secret", "hard"):
        for who in ("user", "root"):
            try:
                assert host.secret not in attacker.files.read(f"/home/user/links/{name}", user=who)
            except REFUSALS:
                pass
            try:
                attacker.files.write(f"/home/user/links/{name}", "overwritten", user=who)
            except REFUSALS:
                pass
    try:
        attacker.files.rename("/home/user/links", str(host.dir / "moved"), user="root")
    except REFUSALS:
        pass
    host.assert_untouched()


def test_29_names_that_no_file_has_are_refused(attacker):
    for path in ("/tmp/a\0b", "\0", "/tmp/" + "x" * 300, "/tmp/" + "d/" * 3000 + "x"):
        with pytest.raises(REFUSALS):
            attacker.files.write(path, "x")
        with pytest.raises(REFUSALS):
            attacker.files.read(path)
    assert attacker.files.write("/tmp/plain", "x").name == "plain"


def test_29_things_that_are_no_files_are_not_written_and_keep_nobody_waiting(attacker):
    attacker.shell("rm -rf odd; mkdir odd; mkfifo odd/fifo; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"odd/socket\")'; mkdir odd/dir; ln -s fifo odd/link")
    for path in ("odd/fifo", "odd/socket", "odd/dir", "odd/link", "/dev/full", "/dev/tty", "/dev/ptmx", "/proc/self/mem", "/proc/kmsg", "/proc/1/mem", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern"):
        for who in ("user", "root"):
            with pytest.raises(REFUSALS):
                attacker.files.write(path if path[0] == "/" else f"/home/user/{path}", "x", user=who, request_timeout=20)
    for path in ("odd/fifo", "odd/socket", "odd/link", "/dev/tty", "/proc/1/mem"):
        with pytest.raises(REFUSALS):
            attacker.files.read(path if path[0] == "/" else f"/home/user/{path}", request_timeout=20)
    assert attacker.shell("stat -c %F odd/fifo odd/socket") == "fifo\nsocket\n"
    assert attacker.commands.run("echo here").stdout == "here\n"


def test_29_devices_without_an_end_do_not_fill_anything(attacker):
    """What is read from them is the client's to stop; envd holds no more than it sends."""
    url = attacker.sandbox.download_url("/dev/zero")
    try:
        with httpx.stream("GET", url, timeout=20) as answer:
            for count, _ in enumerate(answer.iter_bytes(1 << 20)):
                if count > 16:
                    break
    except httpx.HTTPError:
        pass
    assert int(attacker.shell("grep VmRSS /proc/1/status").split()[1]) < 64 * 1024
    assert attacker.commands.run("echo here").stdout == "here\n"


def test_29_watches_of_the_kernels_directories_are_bounded(attacker):
    for path in ("/proc", "/sys", "/proc/self/task", "/dev", "/"):
        try:
            handle = attacker.files.watch_dir(path, recursive=True, user="root", request_timeout=30)
            handle.get_new_events()
            handle.stop()
        except REFUSALS:
            pass
    assert attacker.commands.run("echo here").stdout == "here\n"


def ask(url, method="GET", **more):
    return httpx.request(method, url, timeout=20, **more).status_code


def test_29_a_signed_url_is_for_what_it_was_signed_for(attacker, neighbour, house):
    attacker.files.write("/home/user/shown", "shown")
    attacker.files.write("/home/user/hidden", "hidden")
    url = attacker.sandbox.download_url("/home/user/shown", user="user", use_signature_expiration=300)
    assert ask(url) == 200
    tampered = {
        "path": url.replace("shown", "hidden"),
        "user": url.replace("username=user", "username=root"),
        "expiry": url.replace("signature_expiration=", "signature_expiration=9"),
        "no expiry": "&".join(part for part in url.split("&") if not part.startswith("signature_expiration")),
        "signature": url.replace("signature=v1_", "signature=v1_A"),
        "no signature": "&".join(part for part in url.split("&") if not part.startswith("signature=")),
        "twice": url + "&path=/home/user/hidden",
        "before": url.replace("/files?", "/files?path=/home/user/hidden&"),
    }
    for what, changed in tampered.items():
        assert changed != url, what
        answer = httpx.get(changed, timeout=20)
        assert answer.status_code in (400, 401) or answer.text == "shown", (what, answer.text)
        assert answer.text != "hidden", what
    assert ask(url, "POST", content=b"x", headers={"content-type": "application/octet-stream"}) == 401
    assert attacker.files.read("/home/user/shown") == "shown"
    # As it is, at another sandbox: by header, and by host.
    other = neighbour.sandbox.sandbox_id
    assert ask(url, headers={"E2b-Sandbox-Id": other, "E2b-Sandbox-Port": "49983"}) == 401
    assert ask(url, headers={"Host": f"49983-{other}.x"}) == 401
    expired = attacker.sandbox.download_url("/home/user/shown", user="user", use_signature_expiration=1)
    time.sleep(2.5)
    assert ask(expired) == 401


def test_29_a_signed_url_ends_with_its_sandbox(house):
    sandbox = house.create()
    sandbox.files.write("/home/user/x", "x")
    url = sandbox.download_url("/home/user/x", use_signature_expiration=300)
    assert ask(url) == 200
    sandbox.kill()
    assert ask(url) in (401, 502)
