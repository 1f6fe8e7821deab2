'use strict'

// Runs once, while the image is built: starts Hoodie, uses it as a first user would and stops it. Meanwhile Node keeps the
// compiled code of all that (NODE_COMPILE_CACHE) and resolutions.js where its files are. The build fails if Hoodie
// doesn't answer as it should.

const { spawn } = require('child_process')
const fs = require('fs')
const path = require('path')

const PORT = 8080
const API = `http://127.0.0.1:${PORT}/hoodie`
const CACHE = process.env.NODE_COMPILE_CACHE
const DATA = '../tmp/warm'

const hoodie = spawn(process.execPath, [
  'start.js', '--address', '127.0.0.1', '--port', PORT, '--data', DATA, '--dbAdapter', 'pouchdb-adapter-leveldb'
], { stdio: 'inherit', env: { ...process.env, hoodie_adminPassword: 'warm', HAAS_ADMIN_SESSION_SALT: '0'.repeat(32), RECORD_RESOLUTIONS: '1' } })

hoodie.on('exit', (code, signal) => {
  if (code !== 0) throw new Error(`Hoodie ended with ${signal || code}`)
  fs.rmSync(DATA, { recursive: true })
  readable(CACHE)
})

use().catch((error) => {
  console.error(error)
  process.exitCode = 1
}).finally(() => hoodie.kill('SIGTERM'))

async function use () {
  await ready()
  for (const page of ['/', '/info.json', '/client.js', '/admin/']) await call('GET', page)

  const account = await api('account', '/account/api/session/account', 'ann')
  const session = await api('session', '/account/api/session', 'ann')
  const admin = await api('session', '/account/api/session', 'admin', 'warm')
  await call('GET', '/account/api/accounts', { authorization: `Session ${admin}` })

  const as = { authorization: `Session ${session}`, 'content-type': 'application/json', origin: 'http://elsewhere.example' }
  const store = `/store/api/${encodeURIComponent(`user/${account}`)}`
  await call('PUT', store, as)
  await call('PUT', `${store}/note`, as, { text: 'warm' })
  await call('POST', `${store}/_revs_diff`, as, { other: ['1-abc'] })
  await call('POST', `${store}/_bulk_docs`, as, { docs: [{ _id: 'other' }] })
  await call('PUT', `${store}/_local/checkpoint`, as, { seq: 1 })
  for (const read of ['/note', '/_changes', '/_all_docs?include_docs=true', '/_local/checkpoint']) {
    await call('GET', store + read, as)
  }
}

async function ready () {
  for (let i = 0; i < 300; i++) {
    try {
      return await call('GET', '/')
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  throw new Error('Hoodie did not get ready')
}

async function api (type, url, username, password = 'secret') {
  const body = { data: { type, attributes: { username, password } } }
  return (await (await call('PUT', url, { 'content-type': 'application/vnd.api+json' }, body)).json()).data.id
}

async function call (method, url, headers, body) {
  const response = await fetch(API + url, { method, headers, body: JSON.stringify(body), signal: AbortSignal.timeout(5000) })
  if (!response.ok) throw new Error(`${method} ${url}: ${response.status} ${await response.text()}`)
  return response
}

// Node writes its cache for its own user only, and the image gives all files to root.
function readable (folder) {
  fs.chmodSync(folder, 0o755)
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, entry.name)
    if (entry.isDirectory()) readable(file)
    else fs.chmodSync(file, 0o644)
  }
}
