"""Templates: built by steps, cached, tagged, published and deleted, with either SDK."""

import hashlib
import time
import urllib.request
import uuid

import pytest
from conftest import got, until
from e2b import AsyncSandbox, AsyncTemplate, BuildException, Sandbox, Template, wait_for_file, wait_for_port
from houses import call, forget


@pytest.fixture
def built(sdk):
    """The template class of the SDK in turn."""
    return Template if sdk is Sandbox else AsyncTemplate


@pytest.fixture
def name():
    """A name of its own, whose template is gone after the test."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    yield name
    forget(name)


def context(tmp_path, **files):
    for path, text in files.items():
        target = tmp_path / path.replace("__", "/").replace("_dot_", ".")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return tmp_path


async def build(built, template, name, **options):
    lines = []
    info = await got(built.build(template, name, on_build_logs=lambda entry: lines.append(entry.message), **options))
    return info, lines


async def output(sandbox, command, **options):
    return (await got(sandbox.commands.run(command, **options))).stdout.strip()


async def test_a_template_is_built_by_steps_and_its_sandboxes_begin_behind_them(sdk, built, make, name, tmp_path):
    context(tmp_path, app__main_dot_py="print('hello')", app__lib__x_dot_txt="x", app__lib__y_dot_txt="y")
    (tmp_path / "app" / "link").symlink_to("main.py")
    template = (
        built(file_context_path=tmp_path)
        .from_template("base")
        .set_envs({"GREETING": "hello world", "TWICE": "$HOME/x"})
        .copy("app", "/srv/app", user="root", mode=0o755)
        .copy("app/lib/*.txt", "texts/")
        .run_cmd("echo $GREETING > greeting.txt")
        .run_cmd(["mkdir -p /data", "echo root > /data/who"], user="root")
        .make_dir("/opt/made", mode=0o700, user="root")
        .make_symlink("/srv/app/main.py", "/opt/main", user="root")
        .rename("greeting.txt", "renamed.txt")
        .set_workdir("/srv/app")
        .run_cmd("pwd > /tmp/where && id -un > /tmp/who")
    )
    info, lines = await build(built, template, name, cpu_count=1, memory_mb=512)
    assert info.template_id and info.build_id
    assert any("RUN" in line for line in lines), lines
    sandbox = await make(name)
    assert await output(sandbox, "python3 main.py; pwd") == "hello\n/srv/app"
    assert await output(sandbox, "cat /home/user/renamed.txt") == "hello world"
    assert await output(sandbox, "echo $GREETING; echo $TWICE") == "hello world\n/root/x"
    assert await output(sandbox, "cat /tmp/where /tmp/who") == "/srv/app\nuser"
    assert await output(sandbox, "cat /data/who; stat -c %U:%a /data/who") == "root\nroot:644"
    assert await output(sandbox, "ls /home/user/texts; stat -c %U /home/user/texts/x.txt") == "x.txt\ny.txt\nuser"
    assert await output(sandbox, "readlink /srv/app/link; stat -c '%a %U' /srv/app/lib/x.txt") == "main.py\n755 root"
    assert await output(sandbox, "stat -c %a /opt/made; readlink /opt/main") == "700\n/srv/app/main.py"
    told = await got(sandbox.get_info())
    assert (told.cpu_count, told.memory_mb) == (1, 512)
    other = await make(name)
    await got(sandbox.files.write("/srv/only-here", "x"))
    assert await output(other, "test -e /srv/only-here || echo not there") == "not there"


async def test_what_was_built_before_is_not_built_again(built, make, name):
    nonce = uuid.uuid4().hex

    def template(last):
        return built().from_template("base").run_cmd(f"echo {nonce} > /tmp/first && date +%s%N > /tmp/when").run_cmd(f"echo {last} > /tmp/last")

    await build(built, template("one"), name)
    first = await output(await make(name), "cat /tmp/when")
    _, lines = await build(built, template("two"), name)
    assert any("CACHED" in line for line in lines), lines
    second = await make(name)
    assert await output(second, "cat /tmp/when /tmp/last") == f"{first}\ntwo"
    await build(built, template("two"), name, skip_cache=True)
    third = await make(name)
    assert await output(third, "cat /tmp/when") != first


async def test_a_start_command_runs_in_every_sandbox(built, make, name):
    template = (
        built()
        .from_template("base")
        .run_cmd("mkdir -p /srv/www && echo served > /srv/www/index.html", user="root")
        .set_workdir("/srv/www")
        .set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
    )
    await build(built, template, name)
    for sandbox in [await make(name), await make(name)]:
        await until(lambda sandbox=sandbox: answers(sandbox), "the server answers")


async def answers(sandbox):
    result = await got(sandbox.commands.run("curl -s -m 1 http://127.0.0.1:8000/ || true"))
    return result.stdout.strip() == "served"


async def test_a_template_is_built_on_another(built, make, name):
    await build(built, built().from_template("base").set_envs({"A": "1"}).run_cmd("echo one > /tmp/one; rm -f /etc/motd", user="root"), name)
    above = f"{name}-above"
    try:
        template = built().from_template(name).run_cmd("cat /tmp/one > /tmp/two && rm /tmp/one && echo $A >> /tmp/two", user="root")
        await build(built, template, above)
        sandbox = await make(above)
        assert await output(sandbox, "cat /tmp/two; test -e /tmp/one || echo gone; echo $A") == "one\n1\ngone\n1"
    finally:
        forget(above)


async def test_a_step_that_fails_is_named(built, name):
    template = built().from_template("base").run_cmd("true").run_cmd("echo going down >&2; exit 7")
    lines = []
    with pytest.raises(BuildException, match="7") as failed:
        await got(built.build(template, name, on_build_logs=lambda entry: lines.append(entry.message)))
    assert any("going down" in line for line in lines), lines
    assert "test_templates.py" in "".join(str(part) for part in failed.traceback), "the SDK leads to the line of the step"
    assert await got(built.exists(name)) is False or call("GET", f"/templates/{name}", expect=(200, 404))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda template: template.set_start_cmd("exit 3", wait_for_port(1)), "3"),
        (lambda template: template.copy("nothing-like-this/*", "/srv/"), "nothing-like-this"),
    ],
    ids=["start_command_that_exits", "copy_of_nothing"],
)
async def test_a_build_that_cannot_work_says_why(built, name, tmp_path, step, words):
    with pytest.raises(Exception, match=words):
        await got(built.build(step(built(file_context_path=tmp_path).from_template("base")), name))


def test_an_upload_that_is_no_archive_is_asked_for_again(name):
    files = hashlib.sha256(name.encode()).hexdigest()
    made = call("POST", "/v3/templates", {"name": name})
    link = lambda: call("GET", f"/templates/{made['templateID']}/files/{files}")  # noqa: E731
    assert link()["present"] is False
    put = urllib.request.Request(link()["url"], data=b"no archive at all", method="PUT")
    assert urllib.request.urlopen(put).status == 200
    assert link()["present"] is True
    step = {"type": "COPY", "args": ["a", "/srv/", "", ""], "filesHash": files}
    build = f"/templates/{made['templateID']}/builds/{made['buildID']}"
    call("POST", f"/v2{build}", {"fromTemplate": "base", "steps": [step]})
    for _ in range(300):
        told = call("GET", f"{build}/status")
        if told["status"] == "error":
            break
        time.sleep(0.2)
    assert "broken and was removed" in told["reason"]["message"], told
    assert link()["present"] is False


def test_a_build_that_is_none_is_asked_for_wrongly(name):
    made = call("POST", "/v3/templates", {"name": name})
    call("GET", f"/templates/{made['templateID']}/builds/{uuid.uuid4()}/status", expect=400)


async def test_an_unknown_base_is_a_build_error(built, name):
    with pytest.raises(BuildException, match="nobody-has-this"):
        await got(built.build(built().from_template("nobody-has-this").run_cmd("true"), name))


async def test_a_build_goes_on_in_the_background_and_tells_how_far_it_is(built, make, name):
    template = built().from_template("base").run_cmd("sleep 1; echo done > /tmp/done")
    info = await got(built.build_in_background(template, name))
    offset, messages = 0, []

    async def over():
        nonlocal offset
        status = await got(built.get_build_status(info, logs_offset=offset))
        offset += len(status.log_entries)
        messages.extend(entry.message for entry in status.log_entries)
        return status if status.status.value in ("ready", "error") and not status.log_entries else None

    assert (await until(over, "the build is over")).status.value == "ready"
    assert len(messages) == offset and offset > 0
    assert await output(await make(name), "cat /tmp/done") == "done"


async def test_tags_name_builds(built, make, name):
    one = built().from_template("base").run_cmd("echo one > /tmp/which")
    two = built().from_template("base").run_cmd("echo two > /tmp/which")
    first, _ = await build(built, one, f"{name}:v1")
    await build(built, two, name, tags=["v2", "latest"])
    assert await output(await make(f"{name}:v1"), "cat /tmp/which") == "one"
    assert await output(await make(f"{name}:latest"), "cat /tmp/which") == "two"
    tagged = await got(built.assign_tags(f"{name}:v1", ["stable", "production"]))
    assert tagged.build_id == first.build_id
    tags = {tag.tag: tag.build_id for tag in await got(built.get_tags(name))}
    assert tags["stable"] == tags["production"] == tags["v1"] == first.build_id != tags["v2"]
    await got(built.remove_tags(name, ["production", "v1"]))
    assert {"production", "v1"}.isdisjoint(tag.tag for tag in await got(built.get_tags(name)))
    assert await output(await make(f"{name}:stable"), "cat /tmp/which") == "one"
    with pytest.raises(Exception, match="404.*v1"):
        await make(f"{name}:v1")
    assert await got(built.exists(f"{name}:stable")) is True
    assert await got(built.exists(f"{name}:v1")) is False


async def test_a_template_in_use_is_not_deleted(sdk, built, make, name):
    await build(built, built().from_template("base").run_cmd("true"), name)
    sandbox = await make(name)
    template = call("GET", f"/templates/{name}")["templateID"]
    assert "running" in call("DELETE", f"/templates/{template}", expect=400)["message"]
    await got(sandbox.pause())
    assert "paused" in call("DELETE", f"/templates/{template}", expect=400)["message"]
    await got(sandbox.kill())
    call("DELETE", f"/templates/{template}", expect=204)
    call("DELETE", f"/templates/{template}", expect=404)
    with pytest.raises(Exception, match="404"):
        await make(name)


async def test_devices_and_files_of_the_ready_helpers(built, make, name):
    template = built().from_template("base").set_start_cmd("sleep 1; touch /tmp/up; sleep infinity", wait_for_file("/tmp/up"))
    await build(built, template, name)
    assert await output(await make(name), "test -e /tmp/up && echo up") == "up"
