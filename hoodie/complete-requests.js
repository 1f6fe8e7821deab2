'use strict'

// hapi 16 takes `close` on a request for a client that went away, and then never answers it. From Node 16 on a
// request also emits `close` once it was fully read, so every request with a body would hang. That `close` is
// swallowed here; the one of a client that really went away passes.

const { IncomingMessage } = require('http')

const emit = IncomingMessage.prototype.emit

IncomingMessage.prototype.emit = function (event, ...args) {
  if (event === 'close' && this.complete && !this.aborted && this.socket && !this.socket.destroyed) return false
  return emit.call(this, event, ...args)
}
