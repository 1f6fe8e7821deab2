'use strict'

// Runs once, while the image is built: bundles client.js, then removes what the running server never needs.

const fs = require('fs')
const path = require('path')

const BUNDLER = 'node_modules/hoodie/server/plugins/client/bundle.js'
const BUNDLE = path.resolve('.hoodie/client.js')

// Needed by the bundling only, by another store, by browsers, or by a part of CouchDB's API that Hoodie doesn't serve.
const UNUSED = new Set([
  'browserify', 'es3ify', 'inline-process-browser', 'unreachable-branch-transform', 'level-js', 'pouchdb-browser',
  'pouchdb-adapter-fs', 'pouchdb-adapter-memory', 'pouchdb-fauxton'
])
const UNUSED_FILES = /\.(md|markdown|map|ts|flow|cc|c|h|gyp|es\.js)$|^(test|tests|__tests__|example|examples|\.github|\.bin)$/i

bundle().then(() => {
  prune()
  // The compiled code is kept by the unprivileged user (warm.js).
  fs.mkdirSync('.cache')
  fs.chownSync('.cache', 1000, 1000)
  fs.mkdirSync('data')
})

// Hoodie's bundle talks to the origin of the page that loads it, which is wrong for a page of another origin, or to
// one fixed URL, which would make it a tenant's own. This one asks the script itself where it came from.
function bundle () {
  const line = 'url: new URL(document.currentScript.src).origin,'
  const source = fs.readFileSync(BUNDLER, 'utf8')
  const patched = source.replace('url: location.origin,', line)
  if (patched === source) throw new Error(`${BUNDLER} has no line \`url: location.origin,\``)
  fs.writeFileSync(BUNDLER, patched)

  const bundleClient = require(path.resolve(BUNDLER))
  return new Promise((resolve, reject) => {
    bundleClient(require.resolve('@hoodie/client'), BUNDLE, { plugins: [], client: {} }, (error, code) => {
      if (error) return reject(error)
      if (!code.includes(line)) return reject(new Error(`${BUNDLE} has no line \`${line}\``))
      fs.mkdirSync(path.dirname(BUNDLE), { recursive: true })
      fs.writeFileSync(BUNDLE, code)
      resolve()
    })
  })
}

function prune () {
  const needed = new Set()
  need(process.cwd())
  sweep('node_modules', needed)

  // Hoodie asks where this package is and whether its source is newer than the bundle: without the source it never is.
  const client = 'node_modules/@hoodie/client'
  for (const file of fs.readdirSync(client)) {
    if (file !== 'package.json' && file !== 'LICENSE') fs.rmSync(path.join(client, file), { recursive: true })
  }

  const native = 'node_modules/leveldown'
  fs.rmSync(`${native}/deps`, { recursive: true })
  for (const platform of fs.readdirSync(`${native}/prebuilds`)) {
    if (platform !== `${process.platform}-${process.arch}`) {
      fs.rmSync(`${native}/prebuilds/${platform}`, { recursive: true })
    }
  }

  function need (folder) {
    if (needed.has(folder)) return
    needed.add(folder)
    const { name, dependencies, optionalDependencies } = require(path.join(folder, 'package.json'))
    if (name === '@hoodie/client') return
    for (const dependency of Object.keys({ ...dependencies, ...optionalDependencies })) {
      const found = !UNUSED.has(dependency) && resolve(folder, dependency)
      if (found) need(found)
    }
  }
}

// Where Node would find this package.
function resolve (folder, name) {
  const found = path.join(folder, 'node_modules', name)
  if (fs.existsSync(path.join(found, 'package.json'))) return found
  const parent = path.dirname(folder)
  return parent === folder ? undefined : resolve(parent, name)
}

// Removes the packages below `folder` that nobody needs, and the unused files of the others.
function sweep (folder, needed) {
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, entry.name)
    const isPackage = fs.existsSync(path.join(file, 'package.json')) &&
      /(^|\/)node_modules\/(@[^/]+\/)?[^/]+$/.test(file)
    if (isPackage ? !needed.has(path.resolve(file)) : UNUSED_FILES.test(entry.name)) {
      fs.rmSync(file, { recursive: true })
    } else if (entry.isDirectory()) {
      sweep(file, needed)
    }
  }
}
