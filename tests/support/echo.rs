//! A tenant that tells what it was sent, in place of a Hoodie: an image of the tenants' own with
//! another program.

use super::image::Image;

const PROGRAM: &str = r"
const crypto = require('crypto'), http = require('http');
let closed = 0;
http.createServer((request, response) => {
  if (request.url === '/closed') return response.end(String(closed));
  if (request.url.startsWith('/events')) {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    let n = 0;
    const timer = setInterval(() => response.write(`data: ${n++}\n\n`), 100);
    request.on('close', () => { closed++; clearInterval(timer); });
    return;
  }
  if (request.method === 'OPTIONS') {
    response.writeHead(200, { 'access-control-allow-origin': request.headers.origin || '*', 'x-answered-by': 'the app' });
    return response.end();
  }
  const hash = crypto.createHash('sha256');
  let length = 0;
  request.on('data', chunk => { hash.update(chunk); length += chunk.length; });
  request.on('end', () => {
    const { method, url, headers } = request;
    response.setHeader('x-length', length);
    response.setHeader('x-sha256', hash.digest('hex'));
    response.end(JSON.stringify({ method, url, headers }));
  });
}).listen(80);
";

/// One that begins to listen after so many milliseconds.
pub async fn echo_image(delay: u32) -> Image {
    let program = PROGRAM.replace(".listen(80)", &format!("; setTimeout(() => server.listen(80), {delay})"));
    Image::that_runs("echo", &program.replacen("http.createServer", "const server = http.createServer", 1)).await
}
