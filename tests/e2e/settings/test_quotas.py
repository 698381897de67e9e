"""What a team may hold and do, as the operator says it."""

import httpx
import pytest


def create(house, **body):
    headers = {"X-API-Key": house.connection["api_key"]}
    return httpx.post(f"{house.connection['api_url']}/v2/sandboxes", json={"templateID": "base"} | body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "quota, fit, reason",
    [
        ("sandboxes = 2", 2, "2 concurrent sandboxes"),
        ("cpu = 5", 2, "5 vCPUs"),
        ("memory = 2048", 2, "2048 MiB"),
    ],
)
def test_what_is_held_at_once_has_a_limit_that_a_kill_frees(house_with, quota, fit, reason):
    house = house_with(f"[quota]\n{quota}\n")
    made = [create(house).json()["sandboxID"] for _ in range(fit)]
    refused = create(house)
    assert refused.status_code == 429
    assert reason in refused.json()["message"]
    assert len(house.list()) == fit
    assert house.connect(made[0]).kill()
    assert create(house).status_code == 201


def test_starts_have_a_rate_and_the_answer_says_when_to_come_again(house_with):
    house = house_with("[quota]\ncreates_per_second = 0\n", ATOLL_POOL="0")
    refused = create(house)
    assert refused.status_code == 429
    assert "sandbox starts per second" in refused.json()["message"]
    assert int(refused.headers["Retry-After"]) >= 1


def test_a_life_has_a_limit(house_with):
    house = house_with("[quota]\nlife_hours = 1\n", ATOLL_POOL="0")
    assert create(house, timeout=3600).status_code == 201
    refused = create(house, timeout=3601)
    assert refused.status_code == 400 and "1 hours" in refused.json()["message"]


def test_a_quota_that_changed_holds_after_a_restart(house_with):
    house = house_with("[quota]\nsandboxes = 1\n", ATOLL_POOL="0")
    assert [create(house).status_code for _ in range(2)] == [201, 429]
    house.stop()
    (house.dir / "atoll.toml").write_text("[quota]\nsandboxes = 2\n")
    house.start()
    assert [create(house).status_code for _ in range(2)] == [201, 429]
