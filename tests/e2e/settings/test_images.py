"""Templates out of images in a registry, driven by the official SDK."""

import json
import os
import re
import subprocess

import pytest
from e2b import BuildException, Sandbox, Template
from house import House
from registry import Registry, small_root, tar_of


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    yield registry
    registry.close()


@pytest.fixture(scope="module")
def house(registry):
    if os.geteuid() != 0:
        pytest.skip("the container runtime needs root")
    house = House()
    (house.dir / "atoll.toml").write_text(f'[images]\nothers = "deny"\n\n[images.registries."{registry.address}"]\n\n[images.registries."hub.test"]\nmirrors = ["http://{registry.address}"]\n')
    yield house.start()
    house.down()


def build(house, template, name, lines=None):
    return Template.build(template, name, on_build_logs=lambda entry: lines is not None and lines.append(entry.message), **{k: v for k, v in house.connection.items() if k != "retries"})


def made(house, name):
    return Sandbox.create(name, timeout=120, **house.connection)


def test_an_image_becomes_a_template(house, registry):
    above = tar_of({"etc": None, "etc/.wh.release": "", "etc/second": "second layer\n", "opt": None, "opt/tool": "#!/bin/bash\necho tool"})
    config = {"Env": ["PATH=/opt:/usr/local/bin:/usr/bin:/bin", "FROM_IMAGE=yes"], "WorkingDir": "/opt"}
    digest = registry.push("small", "1", [small_root(), above], config)
    lines = []
    template = Template().from_image(f"{registry.address}/small:1").run_cmd("id -un > /tmp/who; echo $FROM_IMAGE >> /tmp/who")
    build(house, template, "small", lines)
    with made(house, "small") as sandbox:
        run = lambda command: sandbox.commands.run(command).stdout.strip()  # noqa: E731
        assert run("cat /tmp/who /etc/second; ls /etc/release 2>/dev/null || echo gone") == "user\nyes\nsecond layer\ngone"
        assert run("stat -c '%U %a' /home/user; sudo id -u") == "user 755\n0"
        sandbox.files.write("/home/user/a", "b")
        assert sandbox.files.read("/home/user/a") == "b"
    # By digest, and by the mirror of another name: the same image, so nothing is built again.
    for reference in [f"{registry.address}/small@{digest}", "hub.test/small:1"]:
        lines.clear()
        again = Template().from_image(reference).run_cmd("id -un > /tmp/who; echo $FROM_IMAGE >> /tmp/who")
        build(house, again, "small-again", lines)
        assert any("CACHED" in line for line in lines), lines


def test_base_is_built_again_from_an_image(house, registry):
    registry.push("small", "base", [small_root(), tar_of({"etc": None, "etc/mark": "from the image"})])
    build(house, Template().from_image(f"{registry.address}/small:base"), "base")
    with made(house, "base") as sandbox:
        assert sandbox.commands.run("cat /etc/mark").stdout == "from the image"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("{registry}/nothing-like-this:1", "nothing-like-this"),
        ("{registry}/small:nothing", "nothing"),
        ("registry.invalid/small:1", "registry.invalid"),
        ("{registry}/other:1", "arm64|architecture"),
        ("{registry}/no-shell:1", "bash"),
    ],
    ids=["no_image", "no_tag", "registry_that_is_not_allowed", "another_architecture", "no_shell"],
)
def test_an_image_that_is_not_to_be_had_is_an_error_that_says_why(house, registry, reference, words):
    registry.push("small", "1", [small_root()])
    registry.push("other", "1", [small_root()], architecture="arm64")
    registry.push("no-shell", "1", [tar_of({"etc": None, "etc/x": "x"})])
    with pytest.raises(BuildException, match=words):
        build(house, Template().from_image(reference.format(registry=registry.address)).run_cmd("true"), "broken")


def test_an_image_without_a_shell_is_refused_without_any_step(house, registry):
    registry.push("no-shell", "1", [tar_of({"etc": None, "etc/x": "x"})])
    with pytest.raises(BuildException, match="no command can be run.*/bin/bash"):
        build(house, Template().from_image(f"{registry.address}/no-shell:1"), "no-shell")


def test_a_layer_that_leads_out_is_refused(house, registry):
    registry.push("small", "hostile", [small_root(), tar_of({"../../../../tmp/atoll-escaped": "x"})])
    with pytest.raises(BuildException):
        build(house, Template().from_image(f"{registry.address}/small:hostile").run_cmd("true"), "hostile")
    assert not os.path.exists("/tmp/atoll-escaped")


def told(house):
    """The environment of a command line that is to drive the house."""
    return house.env | {"E2B_API_URL": house.connection["api_url"], "E2B_SANDBOX_URL": house.connection["sandbox_url"], "E2B_API_KEY": house.connection["api_key"]}


@pytest.mark.parametrize("line", ["e2b", "atoll"])
def test_a_dockerfile_is_built_by_either_command_line(house, registry, tmp_path, line):
    registry.push("small", "docker", [small_root()])
    (tmp_path / "hello.txt").write_text("hello from the context\n")
    (tmp_path / "Dockerfile").write_text(f"FROM {registry.address}/small:docker\nENV GREETING=hi\nCOPY hello.txt /opt/hello.txt\nRUN echo ran > /tmp/ran\n")
    if line == "e2b":
        program = [os.environ["ATOLL_NODE"], f"{os.environ['ATOLL_JS']}/node_modules/@e2b/cli/dist/index.js"]
        words = ["template", "create", f"by-{line}", "--path", str(tmp_path), "--cpu-count", "1", "--memory-mb", "512", "--cmd", "sleep 300", "--ready-cmd", "true"]
    else:
        program = [house.program]
        words = ["template", "build", f"by-{line}", "-f", str(tmp_path / "Dockerfile"), "--context", str(tmp_path), "--cpu", "1", "--memory", "512"]
    done = subprocess.run([*program, *words], env=told(house), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done
    with made(house, f"by-{line}") as sandbox:
        assert sandbox.commands.run("cat /opt/hello.txt /tmp/ran; echo $GREETING").stdout == "hello from the context\nran\nhi\n"
        assert sandbox.get_info().memory_mb == 512


def test_an_exported_sandbox_is_an_image_that_templates_are_built_from(house, registry, tmp_path):
    def atoll(*words, expect=0):
        env = told(house)
        done = subprocess.run([house.program, *words, "--json"], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == expect, done
        return json.loads(done.stdout) if expect == 0 else done.stderr

    registry.push("small", "exported", [small_root()])
    build(house, Template().from_image(f"{registry.address}/small:exported").set_envs({"GREETING": "hello"}), "to-export")
    archive, image = str(tmp_path / "sandbox.tar"), "exported/small:1"
    with made(house, "to-export") as sandbox:
        sandbox.commands.run("mkdir -p /opt/a && echo content > /opt/a/one && echo -n > /opt/a/empty && rm /etc/release", user="root")
        assert re.fullmatch("sha256:[0-9a-f]{64}", atoll("sandbox", "export", sandbox.sandbox_id, "-o", archive, "--name", image)["digest"])
    imported = atoll("image", "import", archive)["name"]
    assert imported.endswith(image) and imported in [known["name"] for known in atoll("image", "list")]
    build(house, Template().from_image(image).run_cmd("cat /opt/a/one > /tmp/seen"), "again")
    with made(house, "again") as sandbox:
        assert sandbox.commands.run("cat /tmp/seen; ls /etc/release 2>/dev/null || echo gone; echo $GREETING; id -un").stdout == "content\ngone\nhello\nuser\n"
    atoll("image", "forget", imported)
    assert imported in atoll("image", "forget", imported, expect=1)
