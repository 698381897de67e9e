// Every call of the JavaScript SDK that has more than one form: on the object, by id, through a bound client.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { describe, it } from 'node:test'

import { E2B, NotFoundError, Sandbox } from 'e2b'

import { eventually, withSandbox } from './house.mjs'

const HOUR_MS = 3_600_000

async function ids(pages) {
  const found = []
  while (pages.hasNext) found.push(...(await pages.nextItems()).map((item) => item.sandboxId))
  return found
}

describe('forms', () => {
  it('let an id do what its object can', () =>
    withSandbox({ metadata: { by: 'id' } }, async ({ sandboxId }) => {
      await Sandbox.setTimeout(sandboxId, 900_000)
      const info = await Sandbox.getInfo(sandboxId)
      assert.deepEqual([info.metadata, info.state], [{ by: 'id' }, 'running'])
      assert.ok(info.endAt.getTime() - Date.now() > 800_000)
      await Sandbox.updateNetwork(sandboxId, { denyOut: ['192.0.2.0/24'] })
      assert.deepEqual((await Sandbox.getFullInfo(sandboxId)).network.denyOut, ['192.0.2.0/24'])
      assert.equal(await Sandbox.pause(sandboxId), true)
      assert.equal(await Sandbox.pause(sandboxId), false)
      assert.equal((await Sandbox.getInfo(sandboxId)).state, 'paused')
      assert.equal(await (await Sandbox.connect(sandboxId)).isRunning(), true)
      assert.equal(await Sandbox.betaPause(sandboxId), true)
      assert.equal(await Sandbox.kill(sandboxId), true)
      assert.equal(await Sandbox.kill(sandboxId), false)
      for (const gone of [
        () => Sandbox.getInfo(sandboxId),
        () => Sandbox.setTimeout(sandboxId, 9_000),
        () => Sandbox.updateNetwork(sandboxId, {}),
        () => Sandbox.pause(sandboxId),
        () => Sandbox.connect(sandboxId),
      ])
        await assert.rejects(gone(), NotFoundError, String(gone))
    }))

  it('cut metrics to a time', () =>
    withSandbox({}, async (sandbox) => {
      const first = (await eventually(async () => (await sandbox.getMetrics())[0])).timestamp.getTime()
      const [before, after] = [new Date(first - HOUR_MS), new Date(first + HOUR_MS)]
      assert.equal((await sandbox.getMetrics({ start: before, end: after }))[0].timestamp.getTime(), first)
      assert.deepEqual(await sandbox.getMetrics({ end: before }), [])
      assert.deepEqual(await sandbox.getMetrics({ start: after }), [])
      const byId = await Sandbox.getMetrics(sandbox.sandboxId, { start: before, end: after })
      assert.equal(byId[0].timestamp.getTime(), first)
    }))

  it('list by state, order, start and template, and go on from a token', async () => {
    const metadata = { run: randomUUID() }
    const made = []
    try {
      for (let i = 0; i < 3; i++) made.push((await Sandbox.create({ metadata })).sandboxId)
      await Sandbox.pause(made[1])
      const pages = Sandbox.list({ query: { metadata }, limit: 1, order: 'asc' })
      assert.deepEqual((await pages.nextItems()).map((item) => item.sandboxId), [made[0]])
      assert.ok(pages.hasNext)
      assert.deepEqual(await ids(Sandbox.list({ query: { metadata }, order: 'asc', nextToken: pages.nextToken })), [made[1], made[2]])
      assert.deepEqual(await ids(Sandbox.list({ query: { metadata }, order: 'desc' })), made.toReversed())
      assert.deepEqual(await ids(Sandbox.list({ query: { metadata, state: ['paused'] } })), [made[1]])
      assert.deepEqual(await ids(Sandbox.list({ query: { metadata, state: ['running'], template: 'base' } })), [made[2], made[0]])
      assert.deepEqual(await ids(Sandbox.list({ query: { metadata, template: 'nobody-has-this' } })), [])
      const { startedAt } = await Sandbox.getInfo(made[2])
      assert.deepEqual(await ids(Sandbox.list({ query: { metadata, startedAfter: startedAt } })), [made[2]])
    } finally {
      await Promise.all(made.map((id) => Sandbox.kill(id)))
    }
  })

  it('let a paused object connect itself, restored or rebooted', () =>
    withSandbox({}, async (sandbox) => {
      const runs = async ({ pid }) => (await sandbox.commands.list()).some((process) => process.pid === pid)
      let command = await sandbox.commands.run('sleep 300', { background: true })
      await sandbox.files.write('/home/user/kept', 'disk')
      assert.equal(await sandbox.betaPause(), true)
      assert.equal(await sandbox.isRunning(), false)
      assert.equal((await sandbox.connect({ timeoutMs: 300_000 })).sandboxId, sandbox.sandboxId)
      assert.equal(await runs(command), true)
      assert.equal(await sandbox.pause(), true)
      await sandbox.connect({ onResume: 'reboot' })
      assert.equal(await runs(command), false)
      assert.equal(await sandbox.files.read('/home/user/kept'), 'disk')
    }))

  it('end a time as the lifecycle says, without memory too', () =>
    withSandbox({ timeoutMs: 2_000, lifecycle: { onTimeout: { action: 'pause', keepMemory: false } } }, async (sandbox) => {
      assert.deepEqual((await sandbox.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: false })
      const bootId = () => sandbox.files.read('/proc/sys/kernel/random/boot_id')
      const first = await bootId()
      await eventually(async () => (await Sandbox.getInfo(sandbox.sandboxId)).state === 'paused')
      await sandbox.connect({ timeoutMs: 60_000 })
      assert.notEqual(await bootId(), first)
    }))

  it('need no environment when a client is given its key', async () => {
    const apiKey = process.env.E2B_API_KEY
    const client = new E2B({ apiKey })
    delete process.env.E2B_API_KEY
    try {
      const sandbox = await client.Sandbox.create()
      assert.equal((await sandbox.commands.run('echo bound')).stdout, 'bound\n')
      assert.ok((await ids(client.Sandbox.list())).includes(sandbox.sandboxId))
      assert.equal(await sandbox.kill(), true)
    } finally {
      process.env.E2B_API_KEY = apiKey
    }
  })

  it('tell addresses, and the token of a gateway', () =>
    withSandbox({}, async (sandbox) => {
      const domain = process.env.E2B_DOMAIN ?? 'e2b.app'
      assert.equal(sandbox.getHost(8000), `8000-${sandbox.sandboxId}.${domain}`)
      assert.equal(sandbox.getMcpUrl(), `https://50005-${sandbox.sandboxId}.${domain}/mcp`)
      await assert.rejects(sandbox.getMcpToken(), NotFoundError)
      await sandbox.files.write('/etc/mcp-gateway/.token', 'the-token', { user: 'root' })
      await sandbox.commands.run('chmod 600 /etc/mcp-gateway/.token', { user: 'root' })
      assert.equal(await sandbox.getMcpToken(), 'the-token')
    }))
})
