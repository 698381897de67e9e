// What the JavaScript SDK offers and this server does not support yet is refused by its name.
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import { Sandbox, Secret } from 'e2b'

import { withSandbox } from './house.mjs'

const CALLS = [
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
    await assert.rejects(Sandbox.create({ network: { rules: { 'example.com': [{ transform: { headers: { a: 'b' } } }] } } }), /400: .*rules/)
  })
})
