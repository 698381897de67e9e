// The JavaScript SDK's git helper, all of it, against repositories inside the sandbox.
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'

import { GitAuthError, GitUpstreamError, InvalidArgumentError, Sandbox } from 'e2b'

const REMOTE = '/tmp/remote.git'
const WORK = '/tmp/work'
const OTHER = '/tmp/other'

/** A remote that lets in whoever says `ann:secret`, and has nothing for them. */
const GUARDED = `
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
`

describe('git', () => {
  let sandbox, git

  async function commit(name, text, path = WORK) {
    await sandbox.files.write(`${path}/${name}`, text)
    await git.add(path)
    await git.commit(path, `change ${name}`)
  }

  const says = (pattern) => (error) => pattern.test(error.stderr)
  const log = async () => (await sandbox.commands.run(`git -C ${WORK} log --format='%s|%an'`)).stdout.trim().split('\n')
  const staged = async () => (await git.status(WORK)).fileStatus.map((file) => [file.name, file.staged])

  before(async () => {
    sandbox = await Sandbox.create()
    git = sandbox.git
    await git.configureUser('Ann', 'ann@example.com')
    await git.init(REMOTE, { bare: true, initialBranch: 'main' })
    await git.clone(`file://${REMOTE}`, { path: WORK })
    await commit('a.txt', 'one\n')
    await git.push(WORK, { remote: 'origin', branch: 'main' })
  })
  after(async () => await sandbox?.kill())

  it('reads, adds and replaces remotes', async () => {
    assert.equal(await git.remoteGet(WORK, 'origin'), `file://${REMOTE}`)
    assert.equal(await git.remoteGet(WORK, 'nobody'), undefined)
    await git.remoteAdd(WORK, 'second', 'file:///nowhere')
    await assert.rejects(git.remoteAdd(WORK, 'second', `file://${REMOTE}`), says(/already exists/))
    await git.remoteAdd(WORK, 'second', `file://${REMOTE}`, { overwrite: true, fetch: true })
    assert.equal(await git.remoteGet(WORK, 'second'), `file://${REMOTE}`)
  })

  it('stages, commits and shows', async () => {
    await sandbox.files.write(`${WORK}/a.txt`, 'changed\n')
    await sandbox.files.write(`${WORK}/new.txt`, 'new\n')
    const status = await git.status(WORK)
    assert.deepEqual([status.currentBranch, status.upstream, status.isClean], ['main', 'origin/main', false])
    assert.deepEqual(status.fileStatus.map((file) => file.status).sort(), ['modified', 'untracked'])
    await git.add(WORK, { files: ['new.txt'] })
    assert.deepEqual((await staged()).filter(([, isStaged]) => isStaged), [['new.txt', true]])
    await git.commit(WORK, 'only new', { authorName: 'Bob', authorEmail: 'bob@example.com' })
    await git.commit(WORK, 'nothing', { allowEmpty: true })
    assert.deepEqual(await log(), ['nothing|Ann', 'only new|Bob', 'change a.txt|Ann'])
    assert.equal((await git.status(WORK)).ahead, 2)
  })

  it('takes changes back', async () => {
    await git.restore(WORK, { paths: ['a.txt'] })
    assert.equal(await sandbox.files.read(`${WORK}/a.txt`), 'one\n')
    await commit('a.txt', 'two\n')
    await git.reset(WORK, { mode: 'soft', target: 'HEAD~1' })
    assert.deepEqual(await staged(), [['a.txt', true]])
    await git.restore(WORK, { paths: ['a.txt'], staged: true })
    assert.deepEqual(await staged(), [['a.txt', false]])
    await git.reset(WORK, { mode: 'hard' })
    assert.equal((await git.status(WORK)).isClean, true)
  })

  it('makes, leaves and deletes branches', async () => {
    await git.createBranch(WORK, 'topic')
    const { branches, currentBranch } = await git.branches(WORK)
    assert.deepEqual([currentBranch, branches.sort()], ['topic', ['main', 'topic']])
    await commit('topic.txt', 'topic\n')
    await git.checkoutBranch(WORK, 'main')
    assert.equal(await sandbox.files.exists(`${WORK}/topic.txt`), false)
    await assert.rejects(git.deleteBranch(WORK, 'topic'), says(/not fully merged/))
    await git.deleteBranch(WORK, 'topic', { force: true })
    assert.deepEqual((await git.branches(WORK)).branches, ['main'])
  })

  it('carries commits through the remote', async () => {
    await git.clone(`file://${REMOTE}`, { path: OTHER, branch: 'main', depth: 1 })
    await commit('b.txt', 'two\n')
    await git.push(WORK)
    await git.pull(OTHER)
    assert.equal(await sandbox.files.read(`${OTHER}/b.txt`), 'two\n')
    await git.createBranch(WORK, 'alone')
    await assert.rejects(git.pull(WORK), GitUpstreamError)
    await git.checkoutBranch(WORK, 'main')
  })

  it('keeps settings where they are put', async () => {
    await git.setConfig('pull.rebase', 'true')
    await git.setConfig('pull.rebase', 'false', { scope: 'local', path: WORK })
    assert.equal(await git.getConfig('pull.rebase'), 'true')
    assert.equal(await git.getConfig('pull.rebase', { scope: 'local', path: WORK }), 'false')
    assert.equal(await git.getConfig('nobody.set'), undefined)
  })

  it('wants credentials for a guarded remote', async () => {
    const url = 'http://127.0.0.1:8418/x.git'
    await sandbox.files.write('/tmp/guarded.py', GUARDED)
    await sandbox.commands.run('python3 /tmp/guarded.py', { background: true })
    await sandbox.commands.run('until curl -so /dev/null 127.0.0.1:8418; do sleep 0.05; done')
    await assert.rejects(git.clone(url, { path: '/tmp/c' }), GitAuthError)
    await assert.rejects(git.clone(url, { path: '/tmp/c', username: 'ann', password: 'wrong' }), GitAuthError)
    await assert.rejects(git.clone(url, { path: '/tmp/c', password: 'secret' }), InvalidArgumentError)
    await assert.rejects(git.clone(url, { path: '/tmp/c', username: 'ann', password: 'secret' }), says(/not found/))
    await git.dangerouslyAuthenticate({ username: 'ann', password: 'secret', host: '127.0.0.1:8418', protocol: 'http' })
    await assert.rejects(git.clone(url, { path: '/tmp/c' }), says(/not found/))
  })
})
