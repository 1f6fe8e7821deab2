mod answers;
mod breaks;
mod requests;

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::forward;

const MB: usize = 1024 * 1024;

/// A server that passes everything on to an app, which the test itself is.
struct Front {
    address: SocketAddr,
    app: TcpListener,
    dropped: UnboundedReceiver<()>,
}

/// What is held while a request is passed on.
struct Held(UnboundedSender<()>);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Front {
    async fn new() -> Self {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, dropped) = serve(app.local_addr().unwrap().port(), 16 * MB as u64);
        Self { address, app, dropped }
    }

    /// Sends this; the connection that answers, and the app's, of which the head was read.
    async fn send(&self, request: &str) -> (TcpStream, TcpStream, String) {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut app = self.accept().await;
        let head = head(&mut app).await;
        (client, app, head)
    }

    /// Sends a GET, gives this answer, and hangs up as the app: all that the client got.
    async fn answered(&self, request: &str, answer: &[u8]) -> String {
        let (mut client, mut app, _) = self.send(request).await;
        app.write_all(answer).await.unwrap();
        drop(app);
        rest(&mut client).await
    }

    async fn accept(&self) -> TcpStream {
        soon(self.app.accept()).await.unwrap().0
    }

    async fn let_go(&mut self) {
        soon(self.dropped.recv()).await.unwrap();
    }
}

/// Where a server listens that passes on to this port, and what tells that a request is over.
fn serve(port: u16, body_max: u64) -> (SocketAddr, UnboundedReceiver<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, dropped) = unbounded_channel();
    let server = HttpServer::new(move || {
        let sender = sender.clone();
        let pass_on = move |request: HttpRequest, body: web::Payload| {
            let held = Held(sender.clone());
            async move {
                let answer = forward(&request, body, port, body_max, held).await;
                answer.unwrap_or_else(|error| HttpResponse::BadGateway().body(format!("{error:?}")))
            }
        };
        App::new().default_service(web::to(pass_on))
    });
    // Longer than a test waits for an end that is not to depend on it.
    let server = server.client_disconnect_timeout(Duration::from_secs(3));
    let server = server.workers(1).disable_signals().h1_allow_half_closed(false).listen(listener).unwrap();
    actix_web::rt::spawn(server.run());
    (address, dropped)
}

/// What is to happen within a second.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(1), what).await.expect("within a second")
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// The end of a connection, whichever it is.
async fn ended(stream: &mut TcpStream) {
    let mut sink = vec![0; MB];
    soon(async { while stream.read(&mut sink).await.unwrap_or(0) > 0 {} }).await;
}

/// What comes until the connection ends, in whichever way.
async fn rest(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.expect("an end");
    String::from_utf8_lossy(&rest).into_owned()
}

/// The data of a body in chunks, and whether its last chunk was there.
async fn chunks(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut stream = tokio::io::BufReader::new(stream);
    let mut data = Vec::new();
    loop {
        let mut size = String::new();
        if tokio::io::AsyncBufReadExt::read_line(&mut stream, &mut size).await.unwrap_or(0) == 0 {
            return (data, false);
        }
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let start = data.len();
        data.resize(start + size + 2, 0);
        if stream.read_exact(&mut data[start..]).await.is_err() {
            return (data, false);
        }
        data.truncate(start + size);
        if size == 0 {
            return (data, true);
        }
    }
}

/// Bytes that a mix-up would show in.
fn bytes(count: usize) -> Vec<u8> {
    (0..count as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn in_chunks(data: &[u8]) -> Vec<u8> {
    let mut chunked = Vec::new();
    for chunk in data.chunks(10_007) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    chunked
}
