// What the JavaScript SDK offers and this server does not support yet is refused by its name.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { describe, it } from 'node:test'

import { Sandbox, Secret, Template, Volume } from 'e2b'

import { withSandbox } from './house.mjs'

const CALLS = [
  ['forks', (sandbox) => sandbox.fork({ count: 2 })],
  ['forks', (sandbox) => Sandbox.fork(sandbox.sandboxId)],
  ['snapshots', (sandbox) => sandbox.createSnapshot({ name: 'x' })],
  ['snapshots', (sandbox) => Sandbox.createSnapshot(sandbox.sandboxId)],
  ['snapshots', (sandbox) => sandbox.listSnapshots().nextItems()],
  ['snapshots', () => Sandbox.listSnapshots().nextItems()],
  ['templates', () => Sandbox.deleteSnapshot('x:default')],
  ['builds', () => Template.build(Template().fromImage('debian'), 'x')],
  ['builds', () => Template.buildInBackground(Template().fromTemplate('base'), 'x')],
  ['builds', () => Template.getBuildStatus({ templateId: 'x', buildId: randomUUID(), alias: 'x', name: 'x' })],
  ['tags', () => Template.assignTags('base', 'x')],
  ['tags', () => Template.removeTags('base', 'x')],
  ['volumes', () => Volume.create('x')],
  ['volumes', () => Volume.connect('x')],
  ['volumes', () => Volume.list()],
  ['volumes', () => Volume.getInfo('x')],
  ['volumes', () => Volume.destroy('x')],
  ['secrets', () => Secret.create('x', 'y')],
  ['secrets', () => Secret.list().nextItems()],
  ['secrets', () => Secret.getInfo('x')],
  ['secrets', () => Secret.exists('x')],
  ['secrets', () => Secret.update('x', 'y')],
  ['secrets', () => Secret.destroy('x')],
]

describe('refusals', () => {
  it('of calls name what is missing and are 501', () =>
    withSandbox({}, async (sandbox) => {
      for (const [named, call] of CALLS)
        await assert.rejects(async () => await call(sandbox), new RegExp(`501: .*${named}.* not supported`), String(call))
      assert.equal(await sandbox.isRunning(), true)
    }))

  it('of options name them and are 400', async () => {
    const tokens = { x: Secret.iamToken({ audience: 'x', tokenType: 'JWT-SVID' }) }
    await assert.rejects(Sandbox.create({ iam: { tokens } }), /400: .*iam/)
    await assert.rejects(Sandbox.create({ volumeMounts: { '/data': 'x' } }), /400: .*volumeMounts/)
    await assert.rejects(Sandbox.create({ network: { rules: { 'example.com': [{ transform: { headers: { a: 'b' } } }] } } }), /400: .*rules/)
  })

  it('are not for what can be read of templates', async () => {
    assert.equal(await Template.exists('base'), true)
    assert.equal(await Template.aliasExists('base'), true)
    assert.equal(await Template.exists('nobody-has-this'), false)
    assert.ok((await Template.getTags('base')).some(({ tag }) => tag === 'default'))
  })
})
