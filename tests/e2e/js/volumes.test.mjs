// Volumes with the JavaScript SDK.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { describe, it } from 'node:test'

import { Volume } from 'e2b'

import { lacks, withSandbox } from './house.mjs'

describe('volumes', () => {
  it('are made, found, written, read, mounted and destroyed', async (test) => {
    if (await lacks('volumes')) return test.skip('this server has no volumes')
    const volume = await Volume.create(`j-${randomUUID().slice(0, 13)}`)
    try {
      assert.equal((await Volume.getInfo(volume.volumeId)).name, volume.name)
      assert.equal((await Volume.connect(volume.volumeId)).name, volume.name)
      assert.ok((await Volume.list()).some(({ volumeId }) => volumeId === volume.volumeId))
      await volume.writeFile('/a.txt', 'hello')
      assert.equal(await volume.readFile('/a.txt'), 'hello')
      await volume.makeDir('/dir/sub', { force: true })
      await volume.updateMetadata('/dir/sub', { mode: 0o700, uid: 1000, gid: 1000 })
      const { mode, uid } = await volume.getInfo('/dir/sub')
      assert.deepEqual([mode & 0o777, uid], [0o700, 1000])
      assert.deepEqual((await volume.list('/')).map(({ path }) => path), ['/a.txt', '/dir'])
      await withSandbox({ volumeMounts: { '/data': volume } }, async (sandbox) => {
        assert.equal(await sandbox.files.read('/data/a.txt'), 'hello')
        await sandbox.files.write('/data/b.txt', 'from inside')
        assert.equal(await volume.readFile('/b.txt'), 'from inside')
      })
      await volume.remove('/dir')
      assert.equal(await volume.exists('/dir'), false)
    } finally {
      assert.equal(await Volume.destroy(volume.volumeId), true)
      assert.equal(await Volume.destroy(volume.volumeId), false)
    }
  })
})
