use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[actix_web::test]
async fn the_app_sees_a_client_go_before_the_answer() {
    let mut front = Front::new().await;
    let (client, mut app, _) = front.send(GET).await;
    drop(client);
    ended(&mut app).await;
    front.let_go().await;
}

#[actix_web::test]
async fn the_app_sees_a_client_go_in_the_middle_of_an_answer() {
    let mut front = Front::new().await;
    for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let (mut client, mut app, _) = front.send(GET).await;
        app.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nhello\r\n").as_bytes()).await.unwrap();
        head(&mut client).await;
        // What is left unread would be noticed when the kernel resets the connection.
        client.read_exact(&mut [0; 5]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        while client.try_read(&mut [0; 64]).is_ok() {}
        drop(client);
        ended(&mut app).await;
        front.let_go().await;
    }
}

#[actix_web::test]
async fn the_app_sees_a_client_go_that_did_not_read_its_answer() {
    let mut front = Front::new().await;
    let (client, mut app, _) = front.send(GET).await;
    app.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
    let chunk = bytes(MB);
    while tokio::time::timeout(Duration::from_millis(300), app.write_all(&chunk)).await.is_ok() {}
    drop(client);
    soon(async { while app.write_all(&chunk).await.is_ok() {} }).await;
    front.let_go().await;
}

#[actix_web::test]
async fn the_app_sees_a_body_break_off() {
    let mut front = Front::new().await;
    for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n5\r\nhello\r\n");
        let (client, mut app, _) = front.send(&request).await;
        drop(client);
        let got = rest(&mut app).await;
        assert!(got.contains("hello") && !got.contains("0\r\n\r\n"), "{got}");
        front.let_go().await;
    }
}

#[actix_web::test]
async fn a_body_of_nonsense_breaks_off() {
    let mut front = Front::new().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let (mut client, mut app, _) = front.send(request).await;
    client.write_all(b"nonsense\r\n").await.unwrap();
    let got = rest(&mut app).await;
    assert!(!got.contains("0\r\n\r\n"), "{got}");
    // actix takes it for a client that is gone, and hangs up.
    assert_eq!(rest(&mut client).await, "");
    front.let_go().await;
}

#[actix_web::test]
async fn the_app_sees_a_client_go_in_the_middle_of_a_large_body() {
    let mut front = Front::new().await;
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 10 * MB);
    let (mut client, mut app, _) = front.send(&request).await;
    let sending = actix_web::rt::spawn(async move {
        client.write_all(&bytes(5 * MB)).await.unwrap();
    });
    ended(&mut app).await;
    sending.await.unwrap();
    front.let_go().await;
}

#[actix_web::test]
async fn the_client_sees_an_answer_break_off() {
    let mut front = Front::new().await;
    let got = front.answered(GET, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello").await;
    assert!(got.len() < 200 && !got.contains("Incomplete"), "{got}");
    front.let_go().await;
    let got = front.answered(GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    assert!(!got.contains("0\r\n\r\n"), "{got}");
    front.let_go().await;
}

#[actix_web::test]
async fn a_body_that_is_too_long_breaks_off() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, dropped) = serve(app.local_addr().unwrap().port(), 1000);
    let mut front = Front { address, app, dropped };

    // Announced: the app hears nothing of it.
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n").await.unwrap();
    assert!(rest(&mut client).await.ends_with("BodyTooLong"));
    front.let_go().await;
    assert!(tokio::time::timeout(Duration::from_millis(50), front.app.accept()).await.is_err());

    let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (mut client, mut app, _) = front.send(request).await;
    client.write_all(&in_chunks(&bytes(1001))).await.unwrap();
    assert!(!chunks(&mut app).await.1);
    assert!(rest(&mut client).await.ends_with("BodyTooLong"));
    front.let_go().await;

    let (mut client, mut app, _) = front.send(request).await;
    client.write_all(&in_chunks(&bytes(1000))).await.unwrap();
    assert_eq!(chunks(&mut app).await, (bytes(1000), true));
}

#[actix_web::test]
async fn what_is_no_answer_is_told() {
    let mut front = Front::new().await;
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    for garbage in
        ["", "SSH-2.0-OpenSSH_9.6\r\n", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", switch]
    {
        let got = front.answered("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", garbage.as_bytes()).await;
        assert!(got.contains("BadAnswer("), "{garbage:?}: {got}");
        front.let_go().await;
    }
    // With a body under way.
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 8 * MB);
    let (client, app, _) = front.send(&request).await;
    let (mut reading, mut writing) = client.into_split();
    let sending = actix_web::rt::spawn(async move { writing.write_all(&bytes(8 * MB)).await });
    app.readable().await.unwrap();
    drop(app);
    let mut start = [0; 13];
    soon(reading.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 502 ");
    front.let_go().await;
    sending.abort();
}

#[actix_web::test]
async fn an_app_may_refuse_connections_for_a_moment() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (address, mut dropped) = serve(closed.port(), 10);
    let began = std::time::Instant::now();
    let ask = async || {
        let mut client = TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
            .await
            .unwrap();
        rest(&mut client).await
    };
    let got = ask().await;
    assert!(got.contains("Unreachable(") && got.contains("ConnectionRefused"), "{got}");
    let took = began.elapsed();
    assert!(took > Duration::from_millis(950) && took < Duration::from_secs(3), "{took:?}");
    dropped.recv().await.unwrap();

    let app = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (mut app, _) = TcpListener::bind(closed).await.unwrap().accept().await.unwrap();
        head(&mut app).await;
        let mut body = [0; 2];
        app.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"hi");
        app.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    };
    let (got, ()) = futures_util::future::join(ask(), app).await;
    assert!(got.starts_with("HTTP/1.1 200 OK"), "{got}");
}
