// What happens in the browser. run.mjs starts it, and says what it is told and what it prints.

import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { serveAppmaker } from './appmaker.mjs'
import { follow } from './bridge.mjs'
import { options, wanted } from './options.mjs'
import { signOn } from './owner.mjs'
import { openProfile } from './profile.mjs'

const HAMMER_AT_ONCE = 20
const HAMMER_AT_MOST = 2000

const { work } = options
const temporary = os.tmpdir()
// Chromium's and Playwright's own temporary files go there too.
process.env.TMPDIR = work

const seen = {}
const pages = {}
// What the pages complained about; told on failure only.
const complaints = []
const opened = []
let step = 'start'

try {
  await follow(work)
  await within(Number(options.limit), run())
} catch (error) {
  seen.failed = { step, reason: error.message, complaints, screenshots: await screenshots() }
  process.exitCode = 1
} finally {
  await Promise.allSettled(opened.reverse().map((thing) => thing.close()))
}
console.log(JSON.stringify(seen, null, 2))
if (seen.failed) console.error(`${seen.failed.step}: ${seen.failed.reason}`)
// What was under way when the time was over may have started one more browser: it ends with this process.
process.exit()

async function run () {
  const { endpoint, ca } = options
  step = 'the browser starts'
  if (options['sign-on']) {
    const owner = await profile('owner', ca)
    seen.browser = owner.browser().version()
    const tell = (what, page) => { step = what; pages.owner = page }
    seen.owner = await signOn(owner, options['sign-on'], options.picture, tell)
    return
  }
  const [first, second] = [await profile('first', ca), await profile('second', ca)]
  seen.browser = first.browser().version()
  if (ca) {
    step = 'a profile without the authority is refused'
    seen.untrusted = await refusal(endpoint)
  }

  seen.own = await sync('own', endpoint, first, second)
  const appmaker = await serveAppmaker(endpoint)
  opened.push(appmaker)
  seen.other = await sync('other', appmaker.url, first, second)

  seen.answers = []
  for (const each of wanted) seen.answers.push(await answer(each, pages.other_first))
}

async function profile (name, ca) {
  const context = await openProfile(path.join(work, name), ca)
  opened.push(context)
  return context
}

// How a browser turns down a certificate whose authority it does not know.
async function refusal (endpoint) {
  const stranger = await profile('stranger')
  const page = await stranger.newPage()
  const error = await page.goto(endpoint).then(() => undefined, (error) => error.message)
  await stranger.close()
  const found = /net::ERR_CERT_AUTHORITY_INVALID/.exec(error)
  if (!found) throw new Error(error ?? `${endpoint} was loaded without trust`)
  return found[0]
}

// Signs a user up and stores in one profile, and sees it in the other, then the same the other way round.
async function sync (from, url, first, second) {
  const user = { username: `${from}-${randomUUID()}@example.com`, password: `password of ${from}` }
  const result = { page: url }

  const here = await open(from, 'first', first, url)
  result.hoodie = await here.evaluate(() => hoodie.url)
  step = `${from}: sign up`
  result.signedUp = await here.evaluate((user) => hoodie.account.signUp(user), user)
  step = `${from}: sign in`
  result.signedIn = await here.evaluate((user) => hoodie.account.signIn(user), user)
  step = `${from}: store`
  result.stored = await here.evaluate((text) => hoodie.store.add({ text }), `from ${from}, first profile`)

  const there = await open(from, 'second', second, url)
  step = `${from}: nothing is in the second profile before it is signed in`
  const before = await there.evaluate(() => hoodie.store.findAll())
  if (before.length > 0) throw new Error(JSON.stringify(before))
  step = `${from}: sign in, second profile`
  await there.evaluate((user) => hoodie.account.signIn(user), user)
  step = `${from}: the document comes to the second profile`
  result.synced = await arrival(there, result.stored)
  step = `${from}: store, second profile`
  const back = await there.evaluate((text) => hoodie.store.add({ text }), `from ${from}, second profile`)
  step = `${from}: the document comes to the first profile, which waits`
  result.syncedBack = await arrival(here, back)
  return result
}

async function open (from, name, context, url) {
  step = `${from}: ${url} is loaded in the ${name} profile`
  const page = await context.newPage()
  pages[`${from}_${name}`] = page
  const complain = (text) => complaints.push(`${from}, ${name} profile: ${text}`)
  page.on('console', (message) => message.type() === 'error' && complain(`${message.text()} ${message.location().url}`))
  page.on('pageerror', (error) => complain(error.message))
  const answer = await page.goto(url)
  if (answer.status() !== 200) throw new Error(`status ${answer.status()}`)
  // Both pages name /hoodie/client.js in a script element.
  if (await page.evaluate(() => typeof hoodie) !== 'object') throw new Error('client.js has not made a `hoodie`')
  return page
}

// Waits for a document that another profile has stored; nothing asks for it, the client's own replication brings it.
async function arrival (page, stored) {
  const deadline = Date.now() + 30_000
  for (;;) {
    const found = await page.evaluate((id) => hoodie.store.find(id).catch((error) => ({ error: error.message })), stored._id)
    if (!found.error && found.text === stored.text) return found
    if (Date.now() > deadline) throw new Error(`not within 30 s: ${JSON.stringify(found)}`)
    await setTimeout(100)
  }
}

// What the page of another origin can read, of a plain request and of one that the browser asks leave for first, as
// it does for most of the Hoodie client's (Fetch, section 4.8).
async function answer ({ option, status, url }, page) {
  step = `--${option} ${status}=${url}`
  const result = { url }
  if (option === 'wake') {
    // The first that it asks is the browser's preflight.
    const found = await page.evaluate(read, [url, { authorization: 'Session none' }])
    if (found.status !== status) throw new Error(`another answer: ${JSON.stringify(found)}`)
    return { ...result, status }
  }
  if (option === 'hammer') result.requests = await hammer(page, url, status)
  for (const [kind, headers] of [['plain', {}], ['preflighted', { authorization: 'Session none' }]]) {
    const found = await page.evaluate(read, [url, headers])
    if (found.error) throw new Error(`${kind}: the page can't read the answer (${found.error})`)
    const say = (what) => new Error(`${kind}: ${what} in ${JSON.stringify(found)}`)
    if (found.status !== status) throw say('another status')
    if (found.contentType !== 'application/problem+json') throw say('another content type')
    if (found.problem?.status !== found.status) throw say('no problem document')
    if ([429, 503].includes(status) && !(Number(found.retryAfter) >= 1)) throw say('no Retry-After')
    result[kind] = found
  }
  if (option === 'hammer') {
    const { status } = await page.evaluate(read, [options.endpoint, {}])
    if (status !== 200) throw new Error(`the other app answers ${status}`)
  }
  return result
}

// Asks until the status comes; returns how many requests it took, more or less.
async function hammer (page, url, status) {
  for (let sent = HAMMER_AT_ONCE; sent <= HAMMER_AT_MOST; sent += HAMMER_AT_ONCE) {
    const statuses = await page.evaluate(([url, count]) => Promise.all(Array.from({ length: count },
      () => fetch(url, { cache: 'no-store' }).then((answer) => answer.status, (error) => error.message))
    ), [url, HAMMER_AT_ONCE])
    if (statuses.includes(status)) return sent
    const unreadable = statuses.find((found) => typeof found === 'string')
    if (unreadable) throw new Error(`after ${sent} requests the page can't read the answer (${unreadable})`)
  }
  throw new Error(`not in ${HAMMER_AT_MOST} requests`)
}

// Runs in the page.
async function read ([url, headers]) {
  try {
    const answer = await fetch(url, { headers, cache: 'no-store' })
    const text = await answer.text()
    let problem = null
    try { problem = JSON.parse(text) } catch {}
    return {
      status: answer.status,
      contentType: answer.headers.get('content-type'),
      retryAfter: answer.headers.get('retry-after'),
      problem
    }
  } catch (error) {
    return { error: error.message }
  }
}

async function screenshots () {
  const taken = []
  for (const [name, page] of Object.entries(pages)) {
    if (page.isClosed()) continue
    options.screenshots ??= fs.mkdtempSync(path.join(temporary, 'haas-screenshots-'))
    const file = path.join(options.screenshots, `${name}.png`)
    await page.screenshot({ path: file, timeout: 5000 }).then(() => taken.push(file), () => {})
  }
  return taken
}

// Fails when the time is over, or the process that started this one.
async function within (seconds, work) {
  // What goes wrong after that is a consequence of it.
  work.catch(() => {})
  const timer = new AbortController()
  const late = setTimeout(seconds * 1000, undefined, { signal: timer.signal })
    .then(() => { throw new Error(`not done within ${seconds} s`) })
  late.catch(() => {})
  const orphaned = once(process.stdin.resume(), 'end').then(() => { throw new Error('run.mjs has ended') })
  orphaned.catch(() => {})
  try {
    return await Promise.race([work, late, orphaned])
  } finally {
    timer.abort()
    process.stdin.destroy()
  }
}
