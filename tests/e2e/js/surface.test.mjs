// Every public call of the JavaScript SDK is driven by a test that is named here, or refused by name: what a new
// release adds shows up.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'

const here = new URL('.', import.meta.url)
const DECLARED = readFileSync(new URL('index.d.ts', import.meta.resolve('e2b')), 'utf8').replace(/\/\*\*[^]*?\*\//g, '')

const REFUSED = 'refusals: of calls name what is missing and are 501'
const each = (names, test) => Object.fromEntries(names.map((name) => [name, test]))

const BY_ID = 'forms: let an id do what its object can'
const ITSELF = 'forms: let a paused object connect itself, restored or rebooted'
const LIVE = 'sandbox: live as long as they are told'
const FOUND = 'sandbox: are created, described, found and killed'
const VOLUMES = 'volumes: are made, found, written, read, mounted and destroyed'
const MANY = 'files: are written many at once'

/** What each class offers, and which test drives it. */
const DRIVEN = {
  'static Sandbox': {
    ...each(['getInfo', 'getFullInfo', 'kill', 'setTimeout', 'updateNetwork', 'pause', 'betaPause', 'connect'], BY_ID),
    ...each(['create', 'list'], 'forms: list by state, order, start and template, and go on from a token'),
    getMetrics: 'forms: cut metrics to a time',
    ...each(['createSnapshot', 'listSnapshots', 'deleteSnapshot'], 'snapshots: have names'),
    fork: 'snapshots: go their own ways',
  },
  Sandbox: {
    ...each(['connect', 'pause', 'betaPause', 'isRunning'], ITSELF),
    ...each(['kill', 'getInfo'], FOUND),
    setTimeout: LIVE,
    updateNetwork: 'sandbox: take new network rules',
    getMetrics: 'forms: cut metrics to a time',
    ...each(['getHost', 'getMcpUrl', 'getMcpToken'], 'forms: tell addresses, and the token of a gateway'),
    ...each(['uploadUrl', 'downloadUrl'], 'files: are reached by signed URLs'),
    ...each(['createSnapshot', 'listSnapshots'], 'snapshots: are made, listed, started from and deleted'),
    fork: 'snapshots: go their own ways',
  },
  Commands: {
    ...each(['run', 'connect', 'kill', 'list', 'sendStdin'], 'sandbox: take input, are listed, joined and killed'),
    closeStdin: 'sandbox: close their input',
  },
  Filesystem: {
    ...each(['read'], 'files: are written and read in every form'),
    ...each(['write', 'writeFiles'], MANY),
    ...each(['list', 'makeDir', 'rename', 'remove', 'exists', 'getInfo'], 'files: are listed, described, renamed and removed'),
    watchDir: 'files: are watched',
  },
  WatchHandle: { stop: 'files: are watched' },
  Pty: {
    resize: 'sandbox: echo, resize and end',
    ...each(['create', 'connect', 'sendInput', 'kill'], 'handles: of terminals are joined and killed'),
  },
  CommandHandle: {
    ...each(['wait', 'sendStdin', 'closeStdin'], 'handles: write, close and wait'),
    kill: 'handles: kill their command',
    disconnect: 'handles: let go of a command that goes on',
  },
  Git: {
    ...each(['configureUser', 'init'], 'git: '),
    ...each(['remoteAdd', 'remoteGet'], 'git: reads, adds and replaces remotes'),
    ...each(['add', 'commit', 'status'], 'git: stages, commits and shows'),
    ...each(['reset', 'restore'], 'git: takes changes back'),
    ...each(['branches', 'createBranch', 'checkoutBranch', 'deleteBranch'], 'git: makes, leaves and deletes branches'),
    ...each(['clone', 'push', 'pull'], 'git: carries commits through the remote'),
    ...each(['setConfig', 'getConfig'], 'git: keeps settings where they are put'),
    dangerouslyAuthenticate: 'git: wants credentials for a guarded remote',
  },
  SandboxPaginator: { nextItems: 'forms: list by state, order, start and template, and go on from a token' },
  SnapshotPaginator: { nextItems: 'snapshots: are made, listed, started from and deleted' },
  'static TemplateBase': {
    ...each(['exists', 'aliasExists', 'getTags'], 'templates: are read'),
    ...each(['buildInBackground', 'getBuildStatus'], 'templates: are built in the background, and tell how far they are'),
    ...each(['build', 'assignTags', 'removeTags'], 'templates: have tags'),
  },
  'static Secret': each(['create', 'destroy', 'exists', 'getInfo', 'list', 'update'], REFUSED),
  'static Volume': each(['connect', 'create', 'destroy', 'getInfo', 'list'], VOLUMES),
  Volume: each(['list', 'makeDir', 'getInfo', 'exists', 'updateMetadata', 'readFile', 'writeFile', 'remove'], VOLUMES),
}

/** The static calls that need no server: they make values. */
const VALUES = ['fill', 'iamToken', 'toJSON', 'toDockerfile']

/** The public methods that the SDK's types declare for a class, and for what it extends. */
function declared(key) {
  const [name, isStatic] = [key.replace('static ', ''), key.startsWith('static ')]
  const found = DECLARED.match(new RegExp(`\\ndeclare (?:abstract )?class ${name}\\b(?: extends (\\w+))?[^]*?\\n}`))
  assert.ok(found, `${name} is declared`)
  const [body, parent] = found
  const own = [...body.matchAll(/^  (protected |private )?(static )?(?:get )?(\w+)(?:<[^>]*>)?\(/gm)]
    .filter(([line, hidden, fixed, method]) => !hidden && Boolean(fixed) === isStatic && method !== 'constructor' && !line.includes('get '))
    .map(([, , , method]) => method)
  return new Set([...own, ...(parent && isStatic ? declared(`static ${parent}`) : [])].filter((method) => !VALUES.includes(method)))
}

/** The text of a test and of what its file shares, by "file: title". */
function source(test) {
  const [file, title] = test.split(': ')
  const parts = readFileSync(new URL(`${file}.test.mjs`, here), 'utf8').split(/^(?=  it\()/m)
  if (title === '') return parts[0]
  const own = parts.find((part) => part.startsWith(`  it('${title}'`))
  assert.ok(own, `there is a test "${test}"`)
  return parts[0] + own
}

describe('the surface', () => {
  for (const [key, driven] of Object.entries(DRIVEN))
    it(`of ${key} is driven`, () => {
      assert.deepEqual([...declared(key)].sort(), Object.keys(driven).sort())
      for (const [call, test] of Object.entries(driven)) assert.match(source(test), new RegExp(`\\.${call}\\(`), `${test} drives ${call}`)
    })

  it('has no part of a sandbox that is forgotten', () => {
    const parts = DECLARED.match(/\ndeclare class Sandbox [^]*?\n}/)[0].matchAll(/^  readonly (\w+): ([A-Z]\w+);/gm)
    assert.deepEqual([...parts].map(([, , type]) => type).filter((type) => !(type in DRIVEN)), [])
  })
})
