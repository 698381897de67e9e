"""The git helper of both SDKs, all of it, against repositories inside the sandbox."""

import pytest
import pytest_asyncio
from conftest import got
from e2b import GitAuthException, GitUpstreamException, InvalidArgumentException

REMOTE = "/tmp/remote.git"
WORK = "/tmp/work"
OTHER = "/tmp/other"

#: A remote that lets in whoever says `ann:secret`, and has nothing for them.
GUARDED = """
import base64, http.server
class Guarded(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = "Basic " + base64.b64encode(b"ann:secret").decode()
        self.send_response(404 if self.headers.get("Authorization") == wanted else 401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8418), Guarded).serve_forever()
"""


@pytest_asyncio.fixture
async def box(make):
    """A sandbox with a bare repository that has one commit on main, and a clone of it."""
    sandbox = await make()
    await got(sandbox.git.configure_user("Ann", "ann@example.com"))
    await got(sandbox.git.init(REMOTE, bare=True, initial_branch="main"))
    await got(sandbox.git.clone(f"file://{REMOTE}", path=WORK))
    await commit(sandbox, "a.txt", "one\n")
    await got(sandbox.git.push(WORK, remote="origin", branch="main"))
    return sandbox


async def commit(sandbox, name, text, path=WORK):
    await got(sandbox.files.write(f"{path}/{name}", text))
    await got(sandbox.git.add(path))
    await got(sandbox.git.commit(path, f"change {name}"))


async def log(sandbox, path=WORK):
    return (await got(sandbox.commands.run(f"git -C {path} log --format='%s|%an'"))).stdout.splitlines()


async def test_remotes_are_read_added_and_replaced(box):
    git = box.git
    assert await got(git.remote_get(WORK, "origin")) == f"file://{REMOTE}"
    assert await got(git.remote_get(WORK, "nobody")) is None
    await got(git.remote_add(WORK, "second", "file:///nowhere"))
    with pytest.raises(Exception, match="already exists"):
        await got(git.remote_add(WORK, "second", f"file://{REMOTE}"))
    await got(git.remote_add(WORK, "second", f"file://{REMOTE}", overwrite=True, fetch=True))
    assert await got(git.remote_get(WORK, "second")) == f"file://{REMOTE}"
    assert (await got(box.commands.run(f"git -C {WORK} branch -r"))).stdout.split() == ["origin/main", "second/main"]


async def test_work_is_staged_committed_and_shown(box):
    git = box.git
    await got(box.files.write(f"{WORK}/a.txt", "changed\n"))
    await got(box.files.write(f"{WORK}/new.txt", "new\n"))
    status = await got(git.status(WORK))
    assert (status.current_branch, status.upstream, status.is_clean) == ("main", "origin/main", False)
    assert {(file.name, file.status, file.staged) for file in status.file_status} == {
        ("a.txt", "modified", False),
        ("new.txt", "untracked", False),
    }
    await got(git.add(WORK, files=["new.txt"]))
    staged = {file.name for file in (await got(git.status(WORK))).file_status if file.staged}
    assert staged == {"new.txt"}
    await got(git.commit(WORK, "only new", author_name="Bob", author_email="bob@example.com"))
    await got(git.commit(WORK, "nothing", allow_empty=True))
    assert await log(box) == ["nothing|Ann", "only new|Bob", "change a.txt|Ann"]
    assert (await got(git.status(WORK))).ahead == 2


async def test_branches_are_made_left_and_deleted(box):
    git = box.git
    await got(git.create_branch(WORK, "topic"))
    branches = await got(git.branches(WORK))
    assert (branches.current_branch, set(branches.branches)) == ("topic", {"main", "topic"})
    await commit(box, "topic.txt", "topic\n")
    await got(git.checkout_branch(WORK, "main"))
    assert not await got(box.files.exists(f"{WORK}/topic.txt"))
    with pytest.raises(Exception, match="not fully merged"):
        await got(git.delete_branch(WORK, "topic"))
    await got(git.delete_branch(WORK, "topic", force=True))
    assert (await got(git.branches(WORK))).branches == ["main"]


async def test_commits_travel_through_the_remote(box):
    git = box.git
    await got(git.clone(f"file://{REMOTE}", path=OTHER, branch="main", depth=1))
    await commit(box, "b.txt", "two\n")
    await got(git.push(WORK))
    await got(git.pull(OTHER))
    assert await got(box.files.read(f"{OTHER}/b.txt")) == "two\n"
    await commit(box, "c.txt", "three\n", path=OTHER)
    await got(git.push(OTHER, remote="origin", branch="main", set_upstream=False))
    await got(git.pull(WORK, remote="origin", branch="main"))
    assert await log(box) == ["change c.txt|Ann", "change b.txt|Ann", "change a.txt|Ann"]
    await got(git.create_branch(WORK, "alone"))
    with pytest.raises(GitUpstreamException):
        await got(git.pull(WORK))


async def test_changes_are_taken_back(box):
    git = box.git
    await commit(box, "a.txt", "two\n")
    await got(git.reset(WORK, mode="soft", target="HEAD~1"))
    assert [file.staged for file in (await got(git.status(WORK))).file_status] == [True]
    await got(git.reset(WORK, paths=["a.txt"]))
    assert [file.staged for file in (await got(git.status(WORK))).file_status] == [False]
    await got(git.restore(WORK, ["a.txt"]))
    assert await got(box.files.read(f"{WORK}/a.txt")) == "one\n"
    await got(box.files.write(f"{WORK}/a.txt", "three\n"))
    await got(git.add(WORK))
    await got(git.restore(WORK, ["a.txt"], staged=True))
    assert [file.staged for file in (await got(git.status(WORK))).file_status] == [False]
    await got(git.reset(WORK, mode="hard"))
    assert (await got(git.status(WORK))).is_clean


async def test_settings_are_kept_where_they_are_put(box):
    git = box.git
    await got(git.set_config("pull.rebase", "true"))
    await got(git.set_config("pull.rebase", "false", scope="local", path=WORK))
    assert await got(git.get_config("pull.rebase")) == "true"
    assert await got(git.get_config("pull.rebase", scope="local", path=WORK)) == "false"
    assert await got(git.get_config("nobody.set")) is None
    await got(git.configure_user("Bob", "bob@example.com", scope="local", path=WORK))
    assert await got(git.get_config("user.email")) == "ann@example.com"
    assert await got(git.get_config("user.email", scope="local", path=WORK)) == "bob@example.com"


async def test_a_guarded_remote_wants_credentials(box):
    git, url = box.git, "http://127.0.0.1:8418/x.git"
    await got(box.files.write("/tmp/guarded.py", GUARDED))
    await got(box.commands.run("python3 /tmp/guarded.py", background=True))
    await got(box.commands.run("until curl -so /dev/null 127.0.0.1:8418; do sleep 0.05; done"))
    with pytest.raises(GitAuthException):
        await got(git.clone(url, path="/tmp/c"))
    with pytest.raises(GitAuthException):
        await got(git.clone(url, path="/tmp/c", username="ann", password="wrong"))
    with pytest.raises(InvalidArgumentException):
        await got(git.clone(url, path="/tmp/c", password="secret"))
    with pytest.raises(Exception, match="not found"):
        await got(git.clone(url, path="/tmp/c", username="ann", password="secret"))
    await got(git.dangerously_authenticate("ann", "secret", host="127.0.0.1:8418", protocol="http"))
    with pytest.raises(Exception, match="not found"):
        await got(git.clone(url, path="/tmp/c"))
