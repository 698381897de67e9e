"""What the SDKs offer and this server does not support yet is refused by its name, and with 501 where it is a call."""

import pytest
from conftest import got
from e2b import AsyncSecret, AsyncTemplate, Sandbox, Secret, Template

BUILT = {True: Template, False: AsyncTemplate}
HIDDEN = {True: Secret, False: AsyncSecret}

#: (what must be named, the call on (SDK's sandbox class, whether it is the sync SDK, a sandbox)).
REFUSED = {
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
