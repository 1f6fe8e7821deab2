// A page on an origin of its own that uses a provisioned Hoodie, as Appmaker's pages do.

import http from 'node:http'

/** Serves the page on a loopback port; `url` is where, close() ends it. */
export async function serveAppmaker (endpoint) {
  const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Appmaker</title>
<h1>Notes</h1>
<ul></ul>
<script src="${new URL('/hoodie/client.js', endpoint)}"></script>
<script>
  async function show () {
    const notes = await hoodie.store.findAll()
    document.querySelector('ul').replaceChildren(...notes.map(note => {
      const item = document.createElement('li')
      item.textContent = note.text
      return item
    }))
  }
  hoodie.store.on('change', show)
  show()
</script>
</html>
`
  const server = http.createServer((request, response) => {
    const found = request.url === '/'
    response.writeHead(found ? 200 : 404, { 'content-type': 'text/html; charset=utf-8' })
    response.end(found ? page : '')
  })
  await new Promise((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    close: () => {
      server.closeAllConnections()
      server.close()
    }
  }
}
