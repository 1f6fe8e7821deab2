'use strict'

// Hoodie loads some 1,300 files, and looking for them takes a sixth of its start. Where each `require` ends is written
// down once, while the image is built (warm.js), and looked up from then on; one that isn't known is resolved as ever.

const fs = require('fs')
const Module = require('module')

const FILE = `${__dirname}/.cache/resolutions.json`

const resolve = Module._resolveFilename
const known = process.env.RECORD_RESOLUTIONS ? {} : read()

Module._resolveFilename = function (request, parent, isMain, options) {
  const folder = !options && parent?.path
  const found = known[folder]?.[request]
  if (found) return found
  const filename = resolve.apply(this, arguments)
  if (process.env.RECORD_RESOLUTIONS && folder) (known[folder] ??= Object.create(null))[request] = filename
  return filename
}

if (process.env.RECORD_RESOLUTIONS) process.on('exit', () => fs.writeFileSync(FILE, JSON.stringify(known)))

function read () {
  try {
    return JSON.parse(fs.readFileSync(FILE))
  } catch {
    return {}
  }
}
