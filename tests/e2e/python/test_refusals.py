"""What the SDKs offer and this server does not support yet is refused by its name, and with 501 where it is a call."""

import uuid

import pytest
from conftest import got
from e2b import AsyncSecret, AsyncTemplate, AsyncVolume, BuildInfo, Sandbox, Secret, Template, Volume

BUILT = {True: Template, False: AsyncTemplate}
STORED = {True: Volume, False: AsyncVolume}
HIDDEN = {True: Secret, False: AsyncSecret}

NOT_BUILT = BuildInfo(template_id="x", build_id=str(uuid.uuid4()), alias="x", name="x")

#: (what must be named, the call on (SDK's sandbox class, whether it is the sync SDK, a sandbox)).
REFUSED = {
    "fork": ("forks", lambda sdk, sync, sandbox: sandbox.fork(count=2)),
    "fork_by_id": ("forks", lambda sdk, sync, sandbox: sdk.fork(sandbox.sandbox_id)),
    "create_snapshot": ("snapshots", lambda sdk, sync, sandbox: sandbox.create_snapshot(name="x")),
    "create_snapshot_by_id": ("snapshots", lambda sdk, sync, sandbox: sdk.create_snapshot(sandbox.sandbox_id)),
    "list_snapshots": ("snapshots", lambda sdk, sync, sandbox: sandbox.list_snapshots().next_items()),
    "list_snapshots_of_all": ("snapshots", lambda sdk, sync, sandbox: sdk.list_snapshots().next_items()),
    "delete_snapshot": ("templates", lambda sdk, sync, sandbox: sdk.delete_snapshot("x:default")),
    "Template.build": ("builds", lambda sdk, sync, sandbox: BUILT[sync].build(BUILT[sync]().from_image("debian"), "x")),
    "Template.build_in_background": ("builds", lambda sdk, sync, sandbox: BUILT[sync].build_in_background(BUILT[sync]().from_template("base"), "x")),
    "Template.get_build_status": ("builds", lambda sdk, sync, sandbox: BUILT[sync].get_build_status(NOT_BUILT)),
    "Template.assign_tags": ("tags", lambda sdk, sync, sandbox: BUILT[sync].assign_tags("base", "x")),
    "Template.remove_tags": ("tags", lambda sdk, sync, sandbox: BUILT[sync].remove_tags("base", "x")),
    "Volume.create": ("volumes", lambda sdk, sync, sandbox: STORED[sync].create("x")),
    "Volume.connect": ("volumes", lambda sdk, sync, sandbox: STORED[sync].connect("x")),
    "Volume.list": ("volumes", lambda sdk, sync, sandbox: STORED[sync].list()),
    "Volume.get_info": ("volumes", lambda sdk, sync, sandbox: STORED[sync].get_info("x")),
    "Volume.destroy": ("volumes", lambda sdk, sync, sandbox: STORED[sync].destroy("x")),
    "Secret.create": ("secrets", lambda sdk, sync, sandbox: HIDDEN[sync].create("x", "y")),
    "Secret.list": ("secrets", lambda sdk, sync, sandbox: HIDDEN[sync].list().next_items()),
    "Secret.get_info": ("secrets", lambda sdk, sync, sandbox: HIDDEN[sync].get_info("x")),
    "Secret.exists": ("secrets", lambda sdk, sync, sandbox: HIDDEN[sync].exists("x")),
    "Secret.update": ("secrets", lambda sdk, sync, sandbox: HIDDEN[sync].update("x", "y")),
    "Secret.destroy": ("secrets", lambda sdk, sync, sandbox: HIDDEN[sync].destroy("x")),
}


async def test_calls_are_refused_with_501(sdk, make):
    sandbox = await make()
    for name, (named, call) in REFUSED.items():
        with pytest.raises(Exception, match=f"501: .*{named}.* not supported") as refused:
            await got(call(sdk, sdk is Sandbox, sandbox))
        assert type(refused.value).__module__.startswith("e2b"), name
    assert await got(sandbox.is_running())


async def test_options_are_refused_with_400(sdk):
    for named, options in {
        "iam": {"iam": {"tokens": {"x": Secret.iam_token(audience="x", token_type="JWT-SVID")}}},
        "volumeMounts": {"volume_mounts": {"/data": "x"}},
        "rules": {"network": {"rules": {"example.com": [{"transform": {"headers": {"a": "b"}}}]}}},
    }.items():
        with pytest.raises(Exception, match=f"400: .*{named}"):
            await got(sdk.create(**options))


async def test_what_can_be_read_of_templates_is_read(sdk):
    template = BUILT[sdk is Sandbox]
    assert await got(template.exists("base")) is True
    assert await got(template.alias_exists("base")) is True
    assert await got(template.exists("nobody-has-this")) is False
    assert "default" in [tag.tag for tag in await got(template.get_tags("base"))]
