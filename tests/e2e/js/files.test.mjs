// The official JavaScript SDK against a running Atoll: files.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, before, describe, it } from 'node:test'

import { FilesystemEventType, Sandbox } from 'e2b'

import { eventually } from './house.mjs'

describe('files', () => {
  let sandbox
  before(async () => (sandbox = await Sandbox.create()))
  after(async () => await sandbox?.kill())

  it('are written and read in every form', async () => {
    await sandbox.files.write('/tmp/a', 'Hällo')
    assert.equal(await sandbox.files.read('/tmp/a'), 'Hällo')
    const data = randomBytes(2_000_000)
    await sandbox.files.write('/tmp/b', data.buffer.slice(data.byteOffset, data.byteOffset + data.length))
    assert.deepEqual(Buffer.from(await sandbox.files.read('/tmp/b', { format: 'bytes' })), data)
    await sandbox.files.write('/tmp/c', new Blob([data]))
    assert.equal((await sandbox.files.read('/tmp/c', { format: 'blob' })).size, data.length)
    let streamed = 0
    for await (const chunk of await sandbox.files.read('/tmp/c', { format: 'stream' })) streamed += chunk.length
    assert.equal(streamed, data.length)
  })

  it('travel compressed', async () => {
    await sandbox.files.write('/tmp/z', 'z'.repeat(100_000), { gzip: true })
    assert.equal((await sandbox.files.read('/tmp/z', { gzip: true })).length, 100_000)
  })

  it('are written many at once', async () => {
    const written = await sandbox.files.write([
      { path: '/tmp/many/1', data: '1' },
      { path: '/tmp/many/2', data: '2' },
    ])
    assert.deepEqual(written.map((info) => info.path), ['/tmp/many/1', '/tmp/many/2'])
    await sandbox.files.writeFiles([{ path: '/tmp/many/3', data: '3' }], { useOctetStream: true })
    assert.equal(await sandbox.files.read('/tmp/many/3'), '3')
  })

  it('keep what is told about them, until they are written anew', async () => {
    await sandbox.files.write('/tmp/meta', 'x', { metadata: { author: 'ann', tag: 'one' } })
    assert.deepEqual((await sandbox.files.getInfo('/tmp/meta')).metadata, { author: 'ann', tag: 'one' })
    await sandbox.files.write('/tmp/meta', 'y', { metadata: { tag: 'two' } })
    assert.deepEqual((await sandbox.files.getInfo('/tmp/meta')).metadata, { tag: 'two' })
  })

  it('are listed, described, renamed and removed', async () => {
    assert.equal(await sandbox.files.makeDir('/tmp/d/e'), true)
    assert.equal(await sandbox.files.makeDir('/tmp/d/e'), false)
    await sandbox.files.write('/tmp/d/f', '123')
    assert.deepEqual((await sandbox.files.list('/tmp/d')).map((entry) => [entry.name, entry.type]), [['e', 'dir'], ['f', 'file']])
    assert.equal((await sandbox.files.getInfo('/tmp/d/f')).size, 3)
    await sandbox.files.rename('/tmp/d/f', '/tmp/d/g')
    assert.equal(await sandbox.files.exists('/tmp/d/f'), false)
    await sandbox.files.remove('/tmp/d')
    assert.equal(await sandbox.files.exists('/tmp/d'), false)
    await assert.rejects(sandbox.files.read('/tmp/nowhere'), /does not exist/)
  })

  it('are watched', async () => {
    await sandbox.files.makeDir('/tmp/w')
    const events = []
    let ended = false
    const watch = await sandbox.files.watchDir('/tmp/w', (event) => events.push(event), {
      recursive: true,
      includeEntry: true,
      allowNetworkMounts: true,
      onExit: () => (ended = true),
    })
    await sandbox.files.write('/tmp/w/x', 'x')
    await eventually(async () => events.some((event) => event.type === FilesystemEventType.CREATE && event.name === 'x'))
    await eventually(async () => events.some((event) => event.type === FilesystemEventType.WRITE && event.name === 'x'))
    assert.ok(events.some((event) => event.entry?.path === '/tmp/w/x'))
    await watch.stop()
    await eventually(async () => ended)
  })

  it('are reached by signed URLs', async () => {
    await sandbox.files.write('/tmp/signed', 'by url')
    const url = await sandbox.downloadUrl('/tmp/signed', { useSignatureExpiration: 60_000 })
    const answer = await fetch(url)
    assert.equal(await answer.text(), 'by url')
    const form = new FormData()
    form.append('file', new Blob(['uploaded']), 'up')
    assert.equal((await fetch(await sandbox.uploadUrl('/tmp/up'), { method: 'POST', body: form })).status, 200)
    assert.equal(await sandbox.files.read('/tmp/up'), 'uploaded')
  })
})
