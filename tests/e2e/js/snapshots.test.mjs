// Snapshots and forks with the JavaScript SDK.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { describe, it } from 'node:test'

import { Sandbox } from 'e2b'

import { withSandbox } from './house.mjs'

async function listed(paginator) {
  const found = []
  while (paginator.hasNext) found.push(...(await paginator.nextItems()).map(({ snapshotId }) => snapshotId))
  return found
}

describe('snapshots', () => {
  it('are made, listed, started from and deleted', () =>
    withSandbox({}, async (sandbox) => {
      await sandbox.files.write('/home/user/kept.txt', 'kept')
      const snapshot = await sandbox.createSnapshot()
      assert.deepEqual(await listed(sandbox.listSnapshots()), [snapshot.snapshotId])
      await withSandbox({ template: snapshot.snapshotId }, async (copy) => {
        assert.equal(await copy.files.read('/home/user/kept.txt'), 'kept')
        assert.notEqual(copy.sandboxId, sandbox.sandboxId)
      })
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
    }))

  it('have names', () =>
    withSandbox({}, async (sandbox) => {
      const name = `j-${randomUUID().slice(0, 13)}`
      const snapshot = await Sandbox.createSnapshot(sandbox.sandboxId, { name: `${name}:v1` })
      assert.ok(snapshot.snapshotId.endsWith(`/${name}:v1`), snapshot.snapshotId)
      assert.deepEqual(await listed(Sandbox.listSnapshots({ name })), [snapshot.snapshotId])
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
    }))
})

describe('forks', () => {
  it('go their own ways', () =>
    withSandbox({ metadata: { who: 'parent' } }, async (sandbox) => {
      await sandbox.files.write('/tmp/seed', 'seed')
      const forks = [...(await sandbox.fork({ count: 2, timeoutMs: 60_000 })), ...(await Sandbox.fork(sandbox.sandboxId))]
      try {
        assert.equal(new Set([sandbox, ...forks].map(({ sandboxId }) => sandboxId)).size, 4)
        for (const fork of forks) {
          assert.equal(await fork.files.read('/tmp/seed'), 'seed')
          await fork.files.write('/tmp/seed', fork.sandboxId)
          assert.deepEqual((await fork.getInfo()).metadata, { who: 'parent' })
        }
        assert.equal(await sandbox.files.read('/tmp/seed'), 'seed')
      } finally {
        await Promise.all(forks.map((fork) => fork.kill()))
      }
    }))
})
