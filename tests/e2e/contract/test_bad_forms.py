"""Uploads that are no uploads: bad forms, bad headers, bad targets. None of them leaves a file."""

import gzip

import pytest
from raw import EDGE, ask

pytestmark = pytest.mark.usefixtures("unchanged")

FORM = "multipart/form-data; boundary=b"
RAW = "application/octet-stream"


def part(content, disposition='form-data; name="file"; filename="/tmp/bad-form"', headers=""):
    return f"--b\r\nContent-Disposition: {disposition}\r\n{headers}\r\n".encode() + content + b"\r\n"


END = b"--b--\r\n"


def upload(inside, body, told=FORM, target="/files", more=()):
    return ask(EDGE, "POST", target, {**inside, "Content-Type": told, **dict(more)}, body)


def refused(answer, *words):
    assert answer.status == 400 and answer.json["code"] == 400, answer
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    for word in words:
        assert word in answer.json["message"], answer
    assert len(answer.body) < 8000


@pytest.mark.parametrize(
    "told",
    ["multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary=""', "multipart/form-data; boundary=c", "multipart/"],
)
def test_a_form_without_its_boundary_is_refused(inside, told):
    refused(upload(inside, part(b"x") + END, told), "form")


@pytest.mark.parametrize("told", ["text/plain", "", "application/json", "x" * 5000, "application/x-www-form-urlencoded"])
def test_another_type_than_a_form_or_bytes_is_refused(inside, told):
    refused(upload(inside, b"x", told, "/files?path=/tmp/bad-form"), "content type")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"--b",
        b"--b\r\n",
        b"--b\r\nContent-Disposition",
        b"--b\r\nContent-Disposition: form-data; name=file\r\n",
        b"--b\nContent-Disposition: form-data; name=file\n\nx\n--b--",
        b"--c\r\n\r\nx\r\n--c--\r\n",
        b"\x00" * 100_000,
        b"--b\r\n" + b"A" * 3_000_000,
    ],
)
def test_a_form_that_breaks_off_or_never_begins_is_refused(inside, body):
    refused(upload(inside, body), "form")


def test_a_part_that_breaks_off_leaves_nothing(inside):
    refused(upload(inside, part(b"x" * 1_000_000)[:-2]), "form")


def test_headers_of_a_part_have_a_bound(inside):
    refused(upload(inside, part(b"x", headers="A: " + "x" * 3_000_000 + "\r\n") + END), "too long")
    many = "".join(f"A{n}: b\r\n" for n in range(2000))
    answer = upload(inside, part(b"x", headers=many) + END)
    refused(answer)


@pytest.mark.parametrize("disposition", ['form-data; name="file"', 'form-data; name="file"; filename=""', "form-data; name=file; filename*=utf-8''"])
def test_a_file_without_a_name_is_refused(inside, disposition):
    refused(upload(inside, part(b"x", disposition) + END), "filename")


@pytest.mark.parametrize("disposition", ["form-data", 'form-data; name="other"; filename="/tmp/bad-form"', "", ";;;==", 'form-data; name="fi'])
def test_a_part_that_is_no_file_is_passed_over(inside, disposition):
    answer = upload(inside, part(b"x", disposition) + END)
    assert answer.status == 200 and answer.json == [], answer


def test_a_form_within_a_form_is_content(inside):
    inner = b"--inner\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/tmp/inner\"\r\n\r\nx\r\n--inner--\r\n"
    answer = upload(inside, part(inner, 'form-data; name="other"', "Content-Type: multipart/mixed; boundary=inner\r\n") + END)
    assert answer.status == 200 and answer.json == [], answer


@pytest.mark.parametrize("name", ["/tmp/a\0b", "~nobody-has-this/x", "/tmp/" + "x" * 300, "/" + "x/" * 3000, "/tmp", "/"])
def test_a_name_that_no_file_can_have_is_refused(inside, name):
    quoted = "".join(letter if letter.isalnum() or letter in "/~-" else f"%{ord(letter):02x}" for letter in name)
    refused(upload(inside, b"x", RAW, f"/files?path={quoted}"))


def test_bytes_without_a_path_are_refused(inside):
    refused(upload(inside, b"x", RAW), "path")


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "x" * 1000])
def test_an_unknown_encoding_is_refused(inside, encoding):
    refused(upload(inside, b"x", RAW, "/files?path=/tmp/bad-form", {"Content-Encoding": encoding}), "Content-Encoding")


@pytest.mark.parametrize("body", [b"x", b"\x1f\x8b", gzip.compress(b"x" * 1000)[:-5]])
def test_a_body_that_is_no_gzip_is_refused(inside, body):
    refused(upload(inside, body, RAW, "/files?path=/tmp/bad-form", {"Content-Encoding": "gzip"}), "gzip")


@pytest.mark.parametrize("key, value", [("k" * 247, "v"), ("k", "v" * 4090), ("k", "\xff"), ("", "v")])
def test_notes_beside_a_file_have_bounds(inside, key, value):
    refused(upload(inside, b"x", RAW, "/files?path=/tmp/bad-form", {f"X-Metadata-{key}": value}), "metadata")


def test_a_user_that_does_not_exist_is_refused(inside):
    for target in ("/files?path=/tmp/bad-form&username=nobody-has-this", "/files?path=/tmp/bad-form&username=%ff"):
        answer = upload(inside, b"x", RAW, target)
        assert answer.status == 401 and "username" in answer.json["message"], answer


@pytest.mark.parametrize("range", ["bytes=9-1", "bytes=x", "bytes=-", "bytes=99999999999999999999-", "lines=1-2", "bytes=0-1,3-4"])
def test_a_range_that_is_none_is_passed_over_or_refused(inside, range):
    answer = ask(EDGE, "GET", "/files?path=/etc/hosts", {**inside, "Range": range})
    assert answer.status in (200, 206, 416), answer


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"source_paths":[],"destination":"/tmp/x"}', b'{"source_paths":"x","destination":1}', b'{"source_paths":["/etc"],"destination":"/tmp/bad-form"}', b"[" * 50_000]
)
def test_files_are_composed_of_files_alone(inside, body):
    refused(upload(inside, body, "application/json", "/files/compose"))
