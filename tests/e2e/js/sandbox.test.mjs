// The official JavaScript SDK against a running Atoll: sandboxes and their life.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, describe, it } from 'node:test'

import { AuthenticationError, NotFoundError, Sandbox } from 'e2b'

import { eventually, withSandbox } from './house.mjs'

describe('sandboxes', () => {
  it('are created, described, found and killed', () =>
    withSandbox({ metadata: { run: 'js', odd: 'a&b=c %20 ä' }, envs: { COLOUR: 'green' } }, async (sandbox) => {
      assert.equal(await sandbox.isRunning(), true)
      const info = await sandbox.getInfo()
      assert.equal(info.sandboxId, sandbox.sandboxId)
      assert.deepEqual(info.metadata, { run: 'js', odd: 'a&b=c %20 ä' })
      assert.equal(info.state, 'running')
      const found = await Sandbox.list({ query: { metadata: { odd: 'a&b=c %20 ä' } } }).nextItems()
      assert.ok(found.some((item) => item.sandboxId === sandbox.sandboxId))
      assert.equal((await sandbox.commands.run('echo $COLOUR')).stdout, 'green\n')
      assert.equal(await sandbox.kill(), true)
      assert.equal(await sandbox.kill(), false)
      assert.equal(await sandbox.isRunning(), false)
      await assert.rejects(sandbox.getInfo(), NotFoundError)
    }))

  it('page through lists', async () => {
    const run = randomUUID()
    const made = []
    try {
      for (let i = 0; i < 3; i++) made.push(await Sandbox.create({ metadata: { run } }))
      const pages = Sandbox.list({ query: { metadata: { run } }, limit: 2 })
      const found = []
      while (pages.hasNext) found.push(...(await pages.nextItems()).map((item) => item.sandboxId))
      assert.deepEqual(found, made.map((sandbox) => sandbox.sandboxId).reverse())
    } finally {
      await Promise.all(made.map((sandbox) => sandbox.kill()))
    }
  })

  it('live as long as they are told', () =>
    withSandbox({}, async (sandbox) => {
      await sandbox.setTimeout(300_000)
      const { endAt } = await sandbox.getInfo()
      assert.ok(endAt.getTime() - Date.now() > 250_000)
      await sandbox.setTimeout(1_000)
      await eventually(async () => !(await sandbox.isRunning()))
    }))

  it('pause and resume with memory and without', () =>
    withSandbox({}, async (sandbox) => {
      const command = await sandbox.commands.run('sleep 300', { background: true })
      await sandbox.files.write('/home/user/kept', 'disk')
      assert.equal(await sandbox.pause(), true)
      assert.equal(await sandbox.pause(), false)
      assert.equal((await Sandbox.getInfo(sandbox.sandboxId)).state, 'paused')
      const again = await Sandbox.connect(sandbox.sandboxId)
      assert.equal(await again.files.read('/home/user/kept'), 'disk')
      assert.ok((await again.commands.list()).some((process) => process.pid === command.pid))
      assert.equal(await again.pause({ keepMemory: false }), true)
      const rebooted = await Sandbox.connect(sandbox.sandboxId)
      assert.equal(await rebooted.files.read('/home/user/kept'), 'disk')
      assert.ok(!(await rebooted.commands.list()).some((process) => process.pid === command.pid))
    }))

  it('wake on traffic when they are told to', () =>
    withSandbox({ lifecycle: { onTimeout: 'pause', autoResume: true } }, async (sandbox) => {
      await sandbox.files.write('/home/user/kept', 'disk')
      await sandbox.pause()
      assert.equal(await sandbox.files.read('/home/user/kept'), 'disk')
    }))

  it('show metrics', () =>
    withSandbox({}, async (sandbox) => {
      const metrics = await eventually(async () => {
        const found = await sandbox.getMetrics()
        return found.length > 0 && found
      })
      assert.ok(metrics.at(-1).memUsed > 0)
    }))

  it('take new network rules', () =>
    withSandbox({ network: { denyOut: ['192.0.2.0/24'] } }, async (sandbox) => {
      await sandbox.updateNetwork({ denyOut: ['198.51.100.1'] })
      assert.deepEqual((await sandbox.getInfo()).network.denyOut, ['198.51.100.1'])
    }))

  it('refuse wrong keys, unknown templates and what is not supported', async () => {
    await assert.rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
    await assert.rejects(Sandbox.create('no-such-template'), /no-such-template/)
    await assert.rejects(Sandbox.create({ network: { allowOut: ['example.com'], denyOut: ['0.0.0.0/0'] } }), /allowOut/i)
  })

  it('say that they were killed when a stream is cut', () =>
    withSandbox({}, async (sandbox) => {
      const command = await sandbox.commands.run('sleep 60', { background: true })
      await sandbox.kill()
      await assert.rejects(command.wait(), /killed or reached its end of life|not found/)
    }))
})

describe('commands', () => {
  let sandbox
  before(async () => (sandbox = await Sandbox.create()))
  after(async () => await sandbox?.kill())

  it('return output and exit codes', async () => {
    const { stdout, stderr, exitCode } = await sandbox.commands.run('echo out; echo err >&2')
    assert.deepEqual([stdout, stderr, exitCode], ['out\n', 'err\n', 0])
    await assert.rejects(sandbox.commands.run('exit 7'), (error) => error.exitCode === 7)
  })

  it('stream their output', async () => {
    const seen = []
    await sandbox.commands.run('for i in 1 2 3; do echo $i; sleep 0.1; done', { onStdout: (text) => seen.push(text) })
    assert.equal(seen.join(''), '1\n2\n3\n')
    assert.ok(seen.length >= 2)
  })

  it('take input, are listed, joined and killed', async () => {
    const command = await sandbox.commands.run('read x; echo got $x; sleep 100', { background: true, stdin: true })
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === command.pid))
    const joined = await sandbox.commands.connect(command.pid)
    await sandbox.commands.sendStdin(command.pid, 'it\n')
    await eventually(async () => joined.stdout.includes('got it'))
    assert.equal(await sandbox.commands.kill(command.pid), true)
    await assert.rejects(joined.wait())
    assert.equal(await sandbox.commands.kill(4_000_000), false)
  })

  it('close their input', async () => {
    const command = await sandbox.commands.run('wc -c', { background: true, stdin: true })
    await sandbox.commands.sendStdin(command.pid, 'x'.repeat(1000))
    await sandbox.commands.closeStdin(command.pid)
    assert.equal((await command.wait()).stdout.trim(), '1000')
  })

  it('end at their deadline', async () => {
    await assert.rejects(sandbox.commands.run('sleep 30', { timeoutMs: 500 }), /timeout|timed out|deadline/i)
  })

  it('run as whom and where they are told', async () => {
    assert.equal((await sandbox.commands.run('whoami; pwd', { user: 'root', cwd: '/tmp' })).stdout, 'root\n/tmp\n')
  })
})

describe('terminals', () => {
  it('echo, resize and end', () =>
    withSandbox({}, async (sandbox) => {
      let shown = ''
      const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => (shown += Buffer.from(data)) })
      await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 30 })
      await sandbox.pty.sendInput(terminal.pid, Buffer.from('stty size\n'))
      await eventually(async () => shown.includes('30 100'))
      await sandbox.pty.sendInput(terminal.pid, Buffer.from('exit 3\n'))
      await assert.rejects(terminal.wait(), (error) => error.exitCode === 3)
    }))
})
