'use strict'

// Starts Hoodie as its own command does, and stops it in order.

require('./resolutions')
require('./complete-requests')
require('./admin-sessions')
const databases = require('./databases')
const hoodie = require('hoodie/cli')

// What is still running after this many milliseconds is cut off: a `_changes` feed would never end by itself.
const GRACE = 500
const KEEP_ALIVE = 120000

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
  // A proxy that keeps connections for later must be the one that closes them: a request that
  // meets a connection which Node is just closing is lost. HAProxy lets go of idle ones much sooner.
  server.listener.keepAliveTimeout = KEEP_ALIVE
  console.log('Hoodie is ready on port %d', server.info.port)
})
