"""Files: reading, writing, listing, watching, signed URLs."""

import gzip
import io
import os
import time
import urllib.error
import urllib.request

import pytest
from conftest import eventually
from e2b import (
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
)
from ports import tls_context


def test_what_is_written_is_read(sandbox):
    info = sandbox.files.write("/tmp/a.txt", "Hällo")
    assert (info.name, info.path) == ("a.txt", "/tmp/a.txt")
    assert sandbox.files.read("/tmp/a.txt") == "Hällo"
    sandbox.files.write("/tmp/a.txt", "short")
    assert sandbox.files.read("/tmp/a.txt") == "short"


@pytest.mark.parametrize("size", [0, 1, 65_537, 5_000_000])
def test_bytes_survive_whole(sandbox, size):
    data = os.urandom(size)
    sandbox.files.write("/tmp/blob", data)
    assert bytes(sandbox.files.read("/tmp/blob", format="bytes")) == data
    assert b"".join(sandbox.files.read("/tmp/blob", format="stream")) == data
    sandbox.files.write("/tmp/stream", io.BytesIO(data))
    assert bytes(sandbox.files.read("/tmp/stream", format="bytes")) == data


def test_gzip_travels_both_ways(sandbox):
    text = "compress me " * 10_000
    sandbox.files.write("/tmp/zipped", text, gzip=True)
    assert sandbox.files.read("/tmp/zipped", gzip=True) == text
    assert sandbox.files.read("/tmp/zipped") == text


def test_many_files_are_written_at_once(sandbox):
    written = sandbox.files.write_files([{"path": f"/tmp/many/{i}.txt", "data": str(i)} for i in range(10)])
    assert [info.path for info in written] == [f"/tmp/many/{i}.txt" for i in range(10)]
    assert sandbox.files.read("/tmp/many/7.txt") == "7"
    assert sandbox.files.write_files([]) == []


def test_relative_paths_are_the_users(sandbox):
    assert sandbox.files.write("notes/x.txt", "x").path == "/home/user/notes/x.txt"
    assert sandbox.files.read("~/notes/x.txt") == "x"
    assert sandbox.commands.run("stat -c '%U %a' notes notes/x.txt").stdout == "user 755\nuser 644\n"
    assert sandbox.files.write("x.txt", "r", user="root").path == "/root/x.txt"


def test_a_file_that_is_not_there_or_not_a_file(sandbox):
    with pytest.raises((FileNotFoundException, NotFoundException), match="does not exist"):
        sandbox.files.read("/tmp/nowhere")
    with pytest.raises((InvalidArgumentException, SandboxException), match="is a directory"):
        sandbox.files.read("/tmp")
    with pytest.raises((InvalidArgumentException, SandboxException), match="is a directory"):
        sandbox.files.write("/tmp", "x")
    assert not sandbox.files.exists("/tmp/nowhere")
    sandbox.files.remove("/tmp/nowhere")


def test_directories_are_made_listed_and_removed(sandbox):
    assert sandbox.files.make_dir("/tmp/d/e/f") is True
    assert sandbox.files.make_dir("/tmp/d/e/f") is False
    sandbox.files.write("/tmp/d/one", "1")
    entries = sandbox.files.list("/tmp/d")
    assert [(entry.name, entry.type) for entry in entries] == [("e", FileType.DIR), ("one", FileType.FILE)]
    assert [entry.path for entry in sandbox.files.list("/tmp/d", depth=3)] == ["/tmp/d/e", "/tmp/d/e/f", "/tmp/d/one"]
    with pytest.raises((FileNotFoundException, NotFoundException)):
        sandbox.files.list("/tmp/nowhere")
    with pytest.raises((InvalidArgumentException, SandboxException), match="not a directory"):
        sandbox.files.list("/tmp/d/one")
    sandbox.files.remove("/tmp/d")
    assert not sandbox.files.exists("/tmp/d")


def test_entries_are_described(sandbox):
    sandbox.files.write("/tmp/info", "12345")
    sandbox.commands.run("chmod 640 /tmp/info; ln -sf /tmp/info /tmp/link; ln -sf /nowhere /tmp/broken")
    info = sandbox.files.get_info("/tmp/info")
    assert (info.name, info.size, info.mode, info.owner, info.group) == ("info", 5, 0o640, "user", "user")
    assert info.permissions == "-rw-r-----"
    assert abs(info.modified_time.timestamp() - time.time()) < 60
    link = sandbox.files.get_info("/tmp/link")
    assert link.symlink_target == "/tmp/info"
    assert sandbox.files.get_info("/tmp/broken").path == "/tmp/broken"
    with pytest.raises((FileNotFoundException, NotFoundException)):
        sandbox.files.get_info("/tmp/nowhere")


def test_files_are_renamed_over_others(sandbox):
    sandbox.files.write("/tmp/from", "new")
    sandbox.files.write("/tmp/to", "old")
    assert sandbox.files.rename("/tmp/from", "/tmp/to").path == "/tmp/to"
    assert sandbox.files.read("/tmp/to") == "new"
    assert not sandbox.files.exists("/tmp/from")
    with pytest.raises((FileNotFoundException, NotFoundException)):
        sandbox.files.rename("/tmp/from", "/tmp/elsewhere")


def test_metadata_is_kept_with_a_file_and_replaced_whole(sandbox):
    sandbox.files.write("/tmp/meta", "x", metadata={"author": "ann", "tag": "one"})
    assert sandbox.files.get_info("/tmp/meta").metadata == {"author": "ann", "tag": "one"}
    sandbox.files.write("/tmp/meta", "y", metadata={"tag": "two"})
    assert sandbox.files.get_info("/tmp/meta").metadata == {"tag": "two"}


def test_a_watch_tells_what_happens(sandbox):
    sandbox.files.make_dir("/tmp/watched")
    watch = sandbox.files.watch_dir("/tmp/watched")
    sandbox.files.write("/tmp/watched/a", "1")
    sandbox.files.rename("/tmp/watched/a", "/tmp/watched/b")
    sandbox.files.remove("/tmp/watched/b")
    seen = []

    def all_seen():
        seen.extend((event.type, event.name) for event in watch.get_new_events())
        wanted = {
            (FilesystemEventType.CREATE, "a"),
            (FilesystemEventType.WRITE, "a"),
            (FilesystemEventType.RENAME, "a"),
            (FilesystemEventType.CREATE, "b"),
            (FilesystemEventType.REMOVE, "b"),
        }
        return wanted <= set(seen)

    eventually(all_seen, "the events to be seen")
    watch.stop()
    with pytest.raises((NotFoundException, SandboxException)):
        watch.get_new_events()


def test_a_recursive_watch_follows_new_directories(sandbox):
    sandbox.files.make_dir("/tmp/deep")
    watch = sandbox.files.watch_dir("/tmp/deep", recursive=True, include_entry=True)
    sandbox.files.make_dir("/tmp/deep/sub")
    eventually(lambda: any(event.name == "sub" for event in watch.get_new_events()), "the new directory to be seen")
    sandbox.files.write("/tmp/deep/sub/file", "x")

    def seen():
        return [event for event in watch.get_new_events() if event.name == "sub/file" and event.entry]

    assert eventually(seen, "the file below to be seen")[0].entry.path == "/tmp/deep/sub/file"
    watch.stop()
    with pytest.raises((FileNotFoundException, NotFoundException)):
        sandbox.files.watch_dir("/tmp/nowhere")


def fetch(url, data=None, headers=None, method=None):
    request = urllib.request.Request(url, data=data, headers=headers or {}, method=method)
    with urllib.request.urlopen(request, timeout=30, context=tls_context()) as answer:
        return answer.read()


def test_signed_urls_need_no_header(sandbox):
    sandbox.files.write("/tmp/signed +.txt", "by url")
    assert fetch(sandbox.download_url("/tmp/signed +.txt")) == b"by url"
    assert fetch(sandbox.download_url("/tmp/signed +.txt", use_signature_expiration=60)) == b"by url"
    with pytest.raises(urllib.error.HTTPError) as expired:
        fetch(sandbox.download_url("/tmp/signed +.txt", use_signature_expiration=-60))
    assert expired.value.code == 401
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="up.txt"\r\n\r\nuploaded\r\n--b--\r\n'
    fetch(sandbox.upload_url("/tmp/up.txt"), body, {"Content-Type": "multipart/form-data; boundary=b"}, "POST")
    assert sandbox.files.read("/tmp/up.txt") == "uploaded"


def test_a_signature_for_one_file_opens_no_other(sandbox):
    url = sandbox.download_url("/tmp/signed +.txt").replace("signed", "a")
    with pytest.raises(urllib.error.HTTPError):
        fetch(url)


def test_a_full_disk_is_an_error_inside_and_nothing_more(fresh):
    sandbox = fresh()
    sandbox.commands.run("fallocate -l $(df -Pk /tmp | awk 'END {print $4 - 4096}')K /tmp/fill && dd if=/dev/zero of=/tmp/fill3 bs=1M 2>/dev/null || true; sync", timeout=0)
    free = int(sandbox.commands.run("df -Pk /tmp | tail -1 | awk '{print $4}'").stdout)
    if free > 1024:
        sandbox.commands.run(f"fallocate -l {free - 256}K /tmp/fill2 || true")
    with pytest.raises(Exception, match="(?i)space"):
        sandbox.files.write("/tmp/more", b"x" * 4_000_000)
    sandbox.commands.run("rm -f /tmp/fill /tmp/fill2 /tmp/fill3")
    sandbox.files.write("/tmp/more", b"x" * 4_000_000)


def test_gzip_answers_are_valid_gzip(sandbox):
    sandbox.files.write("/tmp/plain", "z" * 10_000)
    request = urllib.request.Request(sandbox.download_url("/tmp/plain"), headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=30, context=tls_context()) as answer:
        body = answer.read()
        assert answer.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == b"z" * 10_000
