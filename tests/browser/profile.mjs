// Profiles of the installed Chromium. Each has a folder and a home of its own, trusts the authorities that it is given
// and no other private one, and reaches nothing but this machine.

import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { chromium } from 'playwright-core'

const CHROMIUM = '/usr/bin/chromium'

const FLAGS = [
  '--no-sandbox', // as root it refuses to start with one
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--no-proxy-server',
  // Every other name fails before it is asked for, and so does every other address.
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE *.localhost, EXCLUDE 127.0.0.1'
]

/**
 * Starts Chromium with a new profile in `folder`.
 *
 * `ca` is a PEM file with an authority that the profile's user trusts; none if it is undefined.
 * Its close() ends the browser. A browser whose script was killed ends by itself: its pipe is closed.
 */
export async function openProfile (folder, ca) {
  if (!fs.existsSync(CHROMIUM)) throw new Error(`${CHROMIUM} is missing: Debian has it in the package chromium`)
  const home = path.join(folder, 'home')
  fs.mkdirSync(home, { recursive: true })
  if (ca) trust(home, ca)
  const context = await chromium.launchPersistentContext(path.join(folder, 'data'), {
    executablePath: CHROMIUM,
    args: FLAGS,
    env: { PATH: process.env.PATH, HOME: home, TMPDIR: process.env.TMPDIR, LANG: 'C.UTF-8' },
    timeout: 60_000
  })
  context.setDefaultTimeout(30_000)
  return context
}

// Where Chromium on Linux looks for what its user trusts.
function trust (home, ca) {
  const database = path.join(home, '.pki/nssdb')
  fs.mkdirSync(database, { recursive: true, mode: 0o700 })
  const certutil = (...args) => execFileSync('certutil', ['-d', `sql:${database}`, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
  certutil('-N', '--empty-password')
  // C: it may sign servers' certificates, and nothing else.
  certutil('-A', '-n', 'haas', '-t', 'C,,', '-i', ca)
}
