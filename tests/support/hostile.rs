//! A tenant that means harm, in place of a Hoodie: an image of the tenants' own with a program that
//! answers as it is told by the path, with everything that is no proper answer.

use super::image::Image;

const PROGRAM: &str = r"
const fs = require('fs'), net = require('net');
const MODE = '/app/data/mode', MOST = 2 ** 31;
const text = (body, status = '200 OK') => `HTTP/1.1 ${status}\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`;
// Without an end, as fast as the other side takes it.
function pump (socket, piece) {
  const block = Buffer.from(piece.repeat(Math.ceil(65536 / piece.length)));
  let sent = 0;
  const more = () => {
    while (sent < MOST && !socket.destroyed) {
      sent += block.length;
      if (!socket.write(block)) return socket.once('drain', more);
    }
    socket.end();
  };
  more();
}
const OK = 'HTTP/1.1 200 OK\r\n', CHUNKED = OK + 'transfer-encoding: chunked\r\n\r\n';
const begin = (head, piece) => socket => { socket.write(head); pump(socket, piece); };
const say = answer => socket => socket.end(answer);
const ways = {
  ok: say(text('ok')),
  garbage: begin('', '\x00\xff\x01 no answer at all \r\n'),
  status: say(text('?', 'x99 Much')),
  headers: begin(OK, 'x-more: ' + 'a'.repeat(100) + '\r\n'),
  header: begin(OK + 'x-long: ', 'a'.repeat(1000)),
  extension: begin(CHUNKED + '1;', 'a'.repeat(1000)),
  size: begin(CHUNKED, '0'.repeat(1000)),
  trailers: begin(CHUNKED + '1\r\na\r\n0\r\n', 'x-more: ' + 'a'.repeat(100) + '\r\n'),
  body: begin(OK + 'connection: close\r\n\r\n', 'a'.repeat(1000)),
  early: begin('', 'HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n'),
  silent: () => {},
  cut: socket => { socket.write(OK + 'content-length: 100\r\n\r\nhalf'); setTimeout(() => socket.destroy(), 100); },
  short: socket => socket.write(OK + 'content-length: 100\r\n\r\nhalf'),
  long: begin(OK + 'content-length: 2\r\n\r\nok', 'a'.repeat(1000)),
  twice: say(OK + 'content-length: 2\r\ncontent-length: 9\r\n\r\nokHTTP/1.1'),
  both: say(OK + 'content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n'),
  hog: () => { const all = []; for (;;) all.push(Buffer.alloc(8 * 1024 * 1024, 1)); },
  log: socket => {
    let lines = 400000;
    const more = () => {
      while (lines-- > 0) if (!process.stdout.write('x'.repeat(100) + '\n')) return process.stdout.once('drain', more);
      socket.end(text('logged'));
    };
    more();
  }
};
const answer = (socket, way, host) => {
  // Good where it is asked at its port, as no user asks.
  if (way.startsWith('named:')) way = host.startsWith('127.') ? 'ok' : way.slice(6);
  if (way.startsWith('redirect:')) {
    return socket.end(`HTTP/1.1 302 Found\r\nlocation: http://${way.slice(9)}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n`);
  }
  (ways[way] || ways.ok)(socket);
};
net.createServer(socket => {
  let head = '';
  socket.on('error', () => {});
  socket.on('data', data => {
    if (head.endsWith('\r\n\r\n')) return;
    head += data.toString('latin1');
    if (!head.includes('\r\n\r\n')) return;
    const path = head.split(' ')[1], asked = head;
    head = '\r\n\r\n';
    if (path.startsWith('/become/')) { fs.writeFileSync(MODE, path.slice(8)); return answer(socket, 'ok'); }
    if (path.startsWith('/x/')) return answer(socket, path.slice(3));
    const host = /^host: *(.*)\r$/im.exec(asked)[1];
    answer(socket, fs.existsSync(MODE) ? fs.readFileSync(MODE, 'utf8') : 'ok', host);
  });
}).listen(80);
process.on('uncaughtException', () => {});
";

pub async fn hostile_image() -> Image {
    Image::that_runs("hostile", PROGRAM).await
}
