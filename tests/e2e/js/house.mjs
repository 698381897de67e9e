// What the JavaScript tests share.
import { setTimeout as sleep } from 'node:timers/promises'

import { Sandbox } from 'e2b'

/** How long a condition may take to become true before a test calls it false. */
const PATIENCE_MS = 60_000

/** Waits until `condition` answers something truthy and returns it. */
export async function eventually(condition) {
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    const found = await condition()
    if (found) return found
    if (Date.now() > deadline) throw new Error(`not true within ${PATIENCE_MS} ms: ${condition}`)
    await sleep(50)
  }
}

/** Gives `test` a sandbox and kills it afterwards. */
export async function withSandbox(options, test) {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000, ...options })
  try {
    await test(sandbox)
  } finally {
    await sandbox.kill()
  }
}

/** What the API answers to a call that no SDK offers; the status must be among the expected. */
export async function call(method, path, expected) {
  const answer = await fetch((process.env.E2B_API_URL ?? `https://api.${process.env.E2B_DOMAIN}`) + path, { method, headers: { 'X-API-Key': process.env.E2B_API_KEY } })
  const text = await answer.text()
  if (!expected.includes(answer.status)) throw new Error(`${method} ${path}: ${answer.status} ${text}`)
  return text
}

/** Whether the machines of this server cannot do something, as they say themselves. */
export async function lacks(what) {
  const nodes = JSON.parse(await call('GET', '/nodes', [200]))
  return nodes.some((node) => !node.capabilities[what])
}
