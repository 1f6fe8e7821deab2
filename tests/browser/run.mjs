// Uses a provisioned Hoodie as people do, in a real browser: two profiles, from the app's own origin and from another.
//
//   node run.mjs --endpoint URL [--ca FILE] [--sign-on LINK --picture FILE] [--answer STATUS=URL]... [--hammer STATUS=URL]... [--wake STATUS=URL]...
//
//   --endpoint    of a running app, such as https://notes.alice.haas.localhost:8443/hoodie/
//   --ca          PEM file of the authority that the profiles trust; a profile that doesn't is refused, which is checked
//   --answer      what a page of another origin must be able to read there: a problem document of that status
//   --hammer      the same, after as many requests as it takes, while the app at the endpoint answers as ever
//   --wake        what a page of another origin reads there at last, though the app sleeps when it asks
//   --sign-on     instead of all that: a link that signs the owner on, opened in a profile of its own
//   --picture     where the dashboard's picture is written then (PNG)
//   --work        folder for all that the run makes but screenshots (a temporary one, removed at the end)
//   --screenshots folder for pictures of the pages, taken when it fails (a temporary one)
//   --limit       seconds that everything may take (150)
//
// Prints one JSON object: what each step saw. When something is not as it must be it has the field `failed`, the reason
// is on standard error, and the exit code is 1.
//
// The browser runs in a network namespace of its own, whose loopback has the URLs' ports. Outside, each container that
// Docker starts or ends changes the machine's interfaces, and Chromium then fails the requests that are under way
// (ERR_NETWORK_CHANGED). And no packet of the browser can leave the machine.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { lead } from './bridge.mjs'
import { options, wanted } from './options.mjs'

const PAGE = fileURLToPath(new URL('page.mjs', import.meta.url))

const work = options.work ?? fs.mkdtempSync(path.join(os.tmpdir(), 'haas-browser-'))
fs.mkdirSync(work, { recursive: true })

const urls = [options.endpoint, ...wanted.map(({ url }) => url)].map((url) => new URL(url))
const ports = urls.map(({ port, protocol }) => Number(port) || (protocol === 'https:' ? 443 : 80))
await Promise.all([...new Set(ports)].map((port) => lead(work, port)))

// Only root may make one without a user namespace around it.
const namespace = process.getuid() === 0 ? ['--net'] : ['--net', '--map-root-user']
const command = ['sh', '-c', 'ip link set lo up && exec "$@"', 'sh', process.execPath, PAGE, ...process.argv.slice(2), '--work', work]
const page = spawn('unshare', [...namespace, ...command], {
  // When this process is gone, however it ended, the other one's standard input ends: then it ends too.
  stdio: ['pipe', 'inherit', 'inherit'],
  env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` }
})
const [code] = await once(page, 'exit')
if (!options.work) fs.rmSync(work, { recursive: true, force: true })
process.exit(code ?? 1)
