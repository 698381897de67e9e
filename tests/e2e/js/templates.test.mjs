// Templates with the JavaScript SDK: built by steps, cached, tagged and deleted.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'

import { Sandbox, Template, waitForPort } from 'e2b'

import { call, eventually, withSandbox } from './house.mjs'

/** Gives `test` a name, whose template is gone afterwards. */
async function withName(test) {
  const name = `j-${randomUUID().slice(0, 13)}`
  try {
    await test(name)
  } finally {
    await call('DELETE', `/templates/${name}`, [204, 404])
  }
}

const output = async (sandbox, command) => (await sandbox.commands.run(command)).stdout.trim()

describe('templates', () => {
  it('are built by steps', () =>
    withName(async (name) => {
      const context = mkdtempSync(join(tmpdir(), 'atoll-context-'))
      try {
        mkdirSync(join(context, 'app'))
        writeFileSync(join(context, 'app', 'main.py'), 'print("hello")')
        const template = Template({ fileContextPath: context })
          .fromTemplate('base')
          .setEnvs({ GREETING: 'hello world' })
          .copy('app', '/srv/app', { user: 'root', mode: 0o755 })
          .runCmd('echo $GREETING > greeting.txt')
          .setWorkdir('/srv/app')
        const lines = []
        const info = await Template.build(template, name, { cpuCount: 1, memoryMB: 512, onBuildLogs: (entry) => lines.push(entry.message) })
        assert.ok(info.templateId && info.buildId)
        assert.ok(lines.some((line) => line.includes('RUN')), lines.join('\n'))
        await withSandbox({ template: name }, async (sandbox) => {
          assert.equal(await output(sandbox, 'python3 main.py; pwd; cat /home/user/greeting.txt'), 'hello\n/srv/app\nhello world')
          const { cpuCount, memoryMB } = await sandbox.getInfo()
          assert.deepEqual([cpuCount, memoryMB], [1, 512])
        })
      } finally {
        rmSync(context, { recursive: true })
      }
    }))

  it('are built in the background, and tell how far they are', () =>
    withName(async (name) => {
      const info = await Template.buildInBackground(Template().fromTemplate('base').runCmd('echo done > /tmp/done'), name)
      let logsOffset = 0
      const status = await eventually(async () => {
        const now = await Template.getBuildStatus(info, { logsOffset })
        logsOffset += now.logEntries.length
        return ['ready', 'error'].includes(now.status) && now.logEntries.length === 0 && now
      })
      assert.equal(status.status, 'ready')
      assert.ok(logsOffset > 0)
    }))

  it('run their start command in every sandbox', () =>
    withName(async (name) => {
      await Template.build(Template().fromTemplate('base').setStartCmd('python3 -m http.server 8000', waitForPort(8000)), name)
      await withSandbox({ template: name }, (sandbox) =>
        eventually(async () => (await sandbox.commands.run('curl -s -o /dev/null -w %{http_code} http://127.0.0.1:8000/ || true')).stdout === '200'),
      )
    }))

  it('name the step that fails', () =>
    withName(async (name) => {
      const failing = Template().fromTemplate('base').runCmd('true').runCmd('exit 7')
      await assert.rejects(Template.build(failing, name), /7/)
    }))

  it('have tags', () =>
    withName(async (name) => {
      const first = await Template.build(Template().fromTemplate('base').runCmd('echo one > /tmp/which'), `${name}:v1`)
      await Template.build(Template().fromTemplate('base').runCmd('echo two > /tmp/which'), name, { tags: ['v2'] })
      const tagged = await Template.assignTags(`${name}:v1`, ['stable'])
      assert.equal(tagged.buildId, first.buildId)
      await Template.removeTags(name, ['v1'])
      const tags = (await Template.getTags(name)).map(({ tag }) => tag)
      assert.ok(tags.includes('stable') && tags.includes('v2') && !tags.includes('v1'), tags.join())
      assert.equal(await Template.exists(`${name}:stable`), true)
      assert.equal(await Template.exists(`${name}:v1`), false)
      await withSandbox({ template: `${name}:stable` }, async (sandbox) => assert.equal(await output(sandbox, 'cat /tmp/which'), 'one'))
    }))

  it('are read', async () => {
    assert.equal(await Template.exists('base'), true)
    assert.equal(await Template.aliasExists('base'), true)
    assert.equal(await Template.exists('nobody-has-this'), false)
    assert.ok((await Template.getTags('base')).some(({ tag }) => tag === 'default'))
    await assert.rejects(Sandbox.create({ template: 'nobody-has-this' }), /404/)
  })
})
