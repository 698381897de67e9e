// What the JavaScript SDK holds of a running command or terminal.
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'

import { Sandbox } from 'e2b'

import { eventually } from './house.mjs'

describe('handles', () => {
  let sandbox
  before(async () => (sandbox = await Sandbox.create()))
  after(async () => await sandbox?.kill())

  it('write, close and wait', async () => {
    const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
    await cat.sendStdin('text ')
    await cat.sendStdin(Buffer.from('bytes'))
    await cat.closeStdin()
    const { exitCode, stdout, stderr } = await cat.wait()
    assert.deepEqual([exitCode, stdout, stderr], [0, 'text bytes', ''])
  })

  it('kill their command', async () => {
    const sleeper = await sandbox.commands.run('exec sleep 300', { background: true })
    assert.equal(await sleeper.kill(), true)
    await assert.rejects(sleeper.wait(), (error) => error.exitCode === -1 && /killed/.test(error.error))
    assert.equal(await sandbox.commands.kill(sleeper.pid), false)
  })

  it('tell what they have so far', async () => {
    const command = await sandbox.commands.run('echo out; echo err >&2; read x; exit 3', { background: true, stdin: true })
    await eventually(async () => command.stdout === 'out\n' && command.stderr === 'err\n')
    assert.deepEqual([command.exitCode, command.error], [undefined, undefined])
    await command.sendStdin('\n')
    await assert.rejects(command.wait())
    assert.deepEqual([command.exitCode, command.error], [3, 'exit status 3'])
  })

  it('let go of a command that goes on', async () => {
    const command = await sandbox.commands.run('read x; echo got $x', { background: true, stdin: true })
    await command.disconnect()
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === command.pid))
    const joined = await sandbox.commands.connect(command.pid)
    await joined.sendStdin('it\n')
    assert.equal((await joined.wait()).stdout, 'got it\n')
  })

  it('of terminals are joined and killed', async () => {
    let shown = ''
    const first = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {}, envs: { GREETING: 'hi' }, cwd: '/tmp' })
    await first.disconnect()
    const joined = await sandbox.pty.connect(first.pid, { onData: (data) => (shown += Buffer.from(data)) })
    await sandbox.pty.sendInput(first.pid, Buffer.from('echo $GREETING-$((40+2))-$(pwd)\n'))
    await eventually(async () => shown.includes('hi-42-/tmp'))
    assert.equal(await sandbox.pty.kill(first.pid), true)
    await assert.rejects(joined.wait())
    assert.equal(await sandbox.pty.kill(4_000_000), false)
  })
})
