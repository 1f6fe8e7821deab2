//! A tenant that tells what it was sent, in place of a Hoodie: an image of the tenants' own with
//! another program.

use super::installation::docker;
use super::unique;

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

/// The image; removed when it is dropped.
pub struct EchoImage(pub String);

impl EchoImage {
    /// One that begins to listen after so many milliseconds.
    pub async fn build(delay: u32) -> Self {
        let name = format!("{}-echo", unique());
        let context = tempfile::tempdir().unwrap();
        let program = PROGRAM.replace(".listen(80)", &format!("; setTimeout(() => server.listen(80), {delay})"));
        let program = program.replacen("http.createServer", "const server = http.createServer", 1);
        std::fs::write(context.path().join("echo.js"), program).unwrap();
        let dockerfile =
            "FROM haas/hoodie:28.2.10\nCOPY echo.js /app/echo.js\nENTRYPOINT [\"node\", \"/app/echo.js\"]\nCMD []\n";
        std::fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        docker(&["build", "-q", "-t", &name, &context.path().display().to_string()]).await;
        Self(name)
    }
}

impl Drop for EchoImage {
    fn drop(&mut self) {
        std::process::Command::new("docker").args(["rmi", "-f", &self.0]).output().ok();
    }
}
