// Ports of this machine's loopback, in a network namespace that has nothing but a loopback of its own.

import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { pipeline } from 'node:stream'

/** Outside the namespace: a socket in `folder` that leads to the port. */
export async function lead (folder, port) {
  return relay({ path: path.join(folder, `${port}.sock`) }, { host: '127.0.0.1', port })
}

/** Inside: the same ports, led through the sockets in `folder`. */
export async function follow (folder) {
  const sockets = fs.readdirSync(folder).filter((name) => /^\d+\.sock$/.test(name))
  return Promise.all(sockets.map((name) =>
    relay({ host: '127.0.0.1', port: Number.parseInt(name) }, { path: path.join(folder, name) })))
}

// Bytes are passed on as they are: TLS is between the browser and HAProxy.
async function relay (from, to) {
  const server = net.createServer({ allowHalfOpen: true }, (near) => {
    const far = net.connect({ ...to, allowHalfOpen: true })
    pipeline(near, far, near, () => {})
    near.unref()
    far.unref()
  })
  server.listen(from)
  await once(server, 'listening')
  // None of this keeps the process alive: HAProxy may hold on to a request whose browser is gone.
  server.unref()
  return server
}
