'use strict'

// Starts Hoodie as its own command does, and stops it in order.

require('./resolutions')
require('./complete-requests')
const databases = require('./databases')
const hoodie = require('hoodie/cli')

// What is still running after this many milliseconds is cut off: a `_changes` feed would never end by itself.
const GRACE = 500

let server

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, () => {
    if (!server) process.exit(0)
    server.stop({ timeout: GRACE }, () => databases.close().then(() => process.exit(0)))
  })
}

hoodie((error, started) => {
  if (error) throw error
  server = started
  console.log('Hoodie is ready on port %d', server.info.port)
})
