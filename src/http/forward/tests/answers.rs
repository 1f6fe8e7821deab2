use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[actix_web::test]
async fn fields_arrive_as_the_app_sent_them() {
    let front = Front::new().await;
    let (mut client, mut app, _) = front.send(GET).await;
    app.write_all(
        b"HTTP/1.1 418 Short And Stout\r\nSet-Cookie: a=1\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nX-Raw: \xff\xfe\r\n\
          Set-Cookie: b=2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nServer: the app\r\n\
          Content-Length: 2\r\n\r\nok",
    )
    .await
    .unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert!(got.windows(11).any(|bytes| bytes == b"x-raw: \xff\xfe\r\n"));
    let got = String::from_utf8_lossy(&got).into_owned();
    let mut fields: Vec<&str> = got.lines().skip(1).take_while(|line| !line.is_empty()).collect();
    let first = fields.iter().position(|field| *field == "set-cookie: a=1");
    assert!(first < fields.iter().position(|field| *field == "set-cookie: b=2"), "{got}");
    fields.retain(|field| !field.starts_with("x-raw"));
    fields.sort_unstable();
    assert!(got.starts_with("HTTP/1.1 418 "), "{got}");
    assert_eq!(
        fields,
        [
            "connection: close",
            "content-length: 2",
            "date: Thu, 01 Jan 1970 00:00:00 GMT",
            "server: the app",
            "set-cookie: a=1",
            "set-cookie: b=2",
        ]
    );
    assert!(got.ends_with("\r\n\r\nok"), "{got}");
}

#[actix_web::test]
async fn an_event_arrives_when_it_is_sent() {
    let mut front = Front::new().await;
    let (mut client, mut app, _) = front.send(GET).await;
    app.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    let head = head(&mut client).await;
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\n") && !head.contains("content-length"), "{head}");
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        app.write_all(format!("9\r\n{event}\r\n").as_bytes()).await.unwrap();
        let mut got = [0; 14];
        soon(client.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, format!("9\r\n{event}\r\n").as_bytes());
    }
    app.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(rest(&mut client).await, "0\r\n\r\n");
    front.let_go().await;
}

#[actix_web::test]
async fn large_answers_arrive_whole() {
    let front = Front::new().await;
    let data = bytes(10 * MB);
    for chunked in [false, true] {
        let (mut client, mut app, _) = front.send(GET).await;
        let framing =
            if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {}", data.len()) };
        let sent = if chunked { in_chunks(&data) } else { data.clone() };
        actix_web::rt::spawn(async move {
            app.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes()).await.unwrap();
            app.write_all(&sent).await.unwrap();
            app
        });
        head(&mut client).await;
        let got = if chunked {
            let (got, whole) = chunks(&mut client).await;
            assert!(whole);
            got
        } else {
            let mut got = vec![0; data.len()];
            client.read_exact(&mut got).await.unwrap();
            got
        };
        assert!(got == data);
    }
}

#[actix_web::test]
async fn answers_without_a_body_leave_the_connection_usable() {
    let mut front = Front::new().await;
    let cases = [
        ("HEAD", "200 OK", "content-length: 1234", "content-length: 1234"),
        ("HEAD", "200 OK", "transfer-encoding: chunked", ""),
        ("HEAD", "404 Not Found", "content-length: 0", "content-length: 0"),
        ("GET", "204 No Content", "x-a: 1", ""),
        ("GET", "304 Not Modified", "content-length: 99", "content-length: 99"),
        ("GET", "304 Not Modified", "etag: \"a\"", ""),
        ("GET", "200 OK", "content-length: 0", "content-length: 0"),
    ];
    let mut client = TcpStream::connect(front.address).await.unwrap();
    for (method, status, field, length) in cases {
        client.write_all(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut app = front.accept().await;
        head(&mut app).await;
        app.write_all(format!("HTTP/1.1 {status}\r\n{field}\r\n\r\n").as_bytes()).await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(!answer.contains("transfer-encoding"), "{answer}");
        let lengths: Vec<&str> = answer.lines().filter(|line| line.starts_with("content-length")).collect();
        assert_eq!(lengths.join(","), length, "{method} {status}");
        front.let_go().await;
    }
}

#[actix_web::test]
async fn clients_that_know_no_chunks_get_none() {
    let front = Front::new().await;
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let old = "GET / HTTP/1.0\r\nHost: a\r\n\r\n";
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    for request in [old, upgrade] {
        let got = front.answered(request, chunked).await;
        assert!(got.ends_with("\r\n\r\nok") && !got.contains("transfer-encoding"), "{got}");
        assert!(!got.contains("upgrade"), "{got}");
    }
}

#[actix_web::test]
async fn an_app_may_end_its_answer_by_hanging_up() {
    let front = Front::new().await;
    let got = front.answered(GET, b"HTTP/1.0 200 OK\r\n\r\nhello").await;
    assert!(got.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{got}");
}

#[actix_web::test]
async fn interim_answers_are_not_the_answer() {
    let front = Front::new().await;
    let got = front
        .answered(GET, b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("ok"), "{got}");
}

#[actix_web::test]
async fn an_early_answer_arrives_before_the_body_is_complete() {
    let mut front = Front::new().await;
    for framing in ["Content-Length: 10000000", "Transfer-Encoding: chunked"] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n5\r\nhello\r\n");
        let (mut client, mut app, _) = front.send(&request).await;
        app.write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close"), "{answer}");
        let mut body = [0; 2];
        client.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"no");
        // The rest of the body is nobody's any more.
        ended(&mut app).await;
        front.let_go().await;
    }
}

#[actix_web::test]
async fn an_early_answer_arrives_though_the_app_hangs_up_on_the_body() {
    let front = Front::new().await;
    for _ in 0..20 {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 8 * MB);
        let (mut client, mut app, _) = front.send(&request).await;
        let (mut reading, mut writing) = client.split();
        let sending = async { writing.write_all(&bytes(8 * MB)).await };
        let answering = async {
            // Some of it is on its way already: unread, it makes the kernel reset the connection.
            app.readable().await.unwrap();
            app.write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
            drop(app);
            let mut start = [0; 13];
            soon(reading.read_exact(&mut start)).await.unwrap();
            start
        };
        let start = tokio::select! { start = answering => start, Err(error) = sending => panic!("{error}") };
        assert_eq!(&start, b"HTTP/1.1 413 ");
    }
}
