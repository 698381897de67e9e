"""A registry, on loopback where nothing else is said, and images that are made of this machine's own programs."""

import gzip
import hashlib
import io
import json
import pathlib
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.request

#: What an image needs so that steps run in it, and what tests call.
PROGRAMS = ["bash", "cat", "ls", "id", "mkdir", "rm", "echo", "stat", "sleep", "test", "env"]


class Registry:
    """Debian's docker-registry, with its files in a directory that goes with it."""

    def __init__(self, host="127.0.0.1"):
        program = shutil.which("docker-registry") or shutil.which("registry")
        assert program, "docker-registry is not installed: apt-get install docker-registry"
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="atoll-registry-"))
        with socket.socket() as probe:
            probe.bind((host, 0))
            self.address = f"{host}:{probe.getsockname()[1]}"
        config = self.dir / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.dir}/files}}}}\nhttp: {{addr: '{self.address}'}}\n"
        )
        self.process = subprocess.Popen([program, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while True:
            try:
                return self.ask("GET", "/v2/").close()
            except OSError:
                assert time.monotonic() < until, "the registry did not come up"
                time.sleep(0.05)

    def ask(self, method, path, data=None, kind="application/octet-stream"):
        url = path if path.startswith("http") else f"http://{self.address}{path}"
        return urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": kind}, method=method))

    def push_blob(self, name, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with self.ask("POST", f"/v2/{name}/blobs/uploads/", b"") as answer:
            place = answer.headers["Location"]
        self.ask("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", data).close()
        return {"digest": digest, "size": len(data)}

    def push(self, name, tag, layers, config=None, architecture="amd64"):
        """An image of layers, each the bytes of a tar, the lowest first; returns its digest."""
        told = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]},
        }
        pushed = [self.push_blob(name, gzip.compress(layer, 1)) for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json"} | self.push_blob(name, json.dumps(told).encode()),
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"} | layer for layer in pushed],
        }
        data = json.dumps(manifest).encode()
        self.ask("PUT", f"/v2/{name}/manifests/{tag}", data, manifest["mediaType"]).close()
        return "sha256:" + hashlib.sha256(data).hexdigest()

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.dir)


def tar_of(files):
    """A tar of files by name: bytes or str are a file's content, None a directory, a pathlib.Path a copy of it."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
                continue
            data = content.read_bytes() if isinstance(content, pathlib.Path) else content if isinstance(content, bytes) else content.encode()
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return whole.getvalue()


def small_root():
    """A root with a shell and a few programs of this machine, and the libraries that they want."""
    files = {name: None for name in ["etc", "tmp", "usr", "usr/bin", "bin", "lib", "lib64", "root", "var", "opt"]}
    for program in PROGRAMS:
        path = pathlib.Path(shutil.which(program)).resolve()
        files[f"bin/{program}"] = path
        for library in re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], capture_output=True, text=True).stdout):
            files[library.lstrip("/")] = pathlib.Path(library).resolve()
    for name in [*files]:
        for parent in pathlib.PurePath(name).parents:
            files.setdefault(str(parent), None)
    files.pop(".", None)
    files["etc/release"] = "small"
    return tar_of(dict(sorted(files.items())))
