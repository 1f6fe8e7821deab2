use super::*;

#[actix_web::test]
async fn every_method_has_its_body_passed_on_in_its_own_framing() {
    let mut front = Front::new().await;
    let data = bytes(10 * MB);
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFOO"] {
        for framing in [format!("content-length: {}", data.len()), "transfer-encoding: chunked".to_owned()] {
            let in_chunks = framing.ends_with("chunked").then(|| in_chunks(&data));
            let sent = in_chunks.clone().unwrap_or_else(|| data.clone());
            let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n{framing}\r\nConnection: close\r\n\r\n");
            let (mut client, mut app, head) = front.send(&request).await;
            assert!(head.starts_with(&format!("{method} / HTTP/1.1\r\n")), "{head}");
            assert_eq!(head.matches(&framing).count(), 1, "{head}");
            assert_eq!(head.matches("content-length").count() + head.matches("transfer-encoding").count(), 1, "{head}");
            let sending = actix_web::rt::spawn(async move {
                client.write_all(&sent).await.unwrap();
                client
            });
            let got = if in_chunks.is_some() {
                let (got, whole) = chunks(&mut app).await;
                assert!(whole);
                got
            } else {
                let mut got = vec![0; data.len()];
                app.read_exact(&mut got).await.unwrap();
                got
            };
            assert!(got == data, "{method} {framing}");
            app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.unwrap();
            if method != "HEAD" {
                app.write_all(b"ok").await.unwrap();
            }
            let answer = rest(&mut sending.await.unwrap()).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
            assert_eq!(answer.ends_with("\r\n\r\nok"), method != "HEAD", "{answer}");
            assert_eq!(soon(app.read(&mut [0])).await.unwrap(), 0, "closed afterwards");
            front.let_go().await;
        }
    }
}

#[actix_web::test]
async fn a_request_without_a_body_gets_none() {
    let front = Front::new().await;
    let (_client, _app, head) = front.send("GET / HTTP/1.1\r\nHost: a:1\r\n\r\n").await;
    assert_eq!(head, "GET / HTTP/1.1\r\nhost: a:1\r\n\r\n");
    let (_client, _app, head) = front.send("POST / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(head, "POST / HTTP/1.1\r\nhost: a\r\n\r\n");
    let (_client, _app, head) = front.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head.contains("\r\ncontent-length: 0\r\n"), "{head}");
    let (mut client, mut app, head) =
        front.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    assert_eq!(chunks(&mut app).await, (Vec::new(), true));
    app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(super::head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[actix_web::test]
async fn targets_arrive_byte_for_byte() {
    let front = Front::new().await;
    // Whatever actix takes, in a path and in a query.
    let mut targets: Vec<String> = ["/a%2Fb//c?x=%20y&z", "/?", "/..//%zz;a=1?a?b", "*"].map(str::to_owned).into();
    let fits = |target: &String| target.parse::<actix_web::http::Uri>().is_ok();
    let odd = ('!'..='\x7f').filter(|c| !"?#".contains(*c)).flat_map(|c| [format!("/{c}x"), format!("/?{c}x")]);
    let odd: Vec<String> = odd.filter(fits).collect();
    assert!(odd.len() > 150, "{odd:?}");
    targets.extend(odd);
    for target in targets {
        let method = if target == "*" { "OPTIONS" } else { "GET" };
        let (_client, _app, head) = front.send(&format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(head.starts_with(&format!("{method} {target} HTTP/1.1\r\n")), "{target}: {head}");
    }
    let (_client, _app, head) = front.send("GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(head.starts_with("GET /b?c HTTP/1.1\r\n"), "{head}");
}

#[actix_web::test]
async fn fields_of_the_connection_stay_behind() {
    let front = Front::new().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret-Hop\r\nconnection: x-forwarded-for,host, \
                   Content-Length\r\nX-Secret-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: trailers\r\n\
                   Trailer: X-T\r\nUpgrade: h2c\r\nExpect: 100-continue\r\nX-Forwarded-For: 9.9.9.9\r\nContent-Length: 2\r\n\
                   Cookie: a=1\r\nCookie: b=\u{fc}\r\n\r\nhi";
    let (_client, mut app, head) = front.send(request).await;
    let mut fields: Vec<&str> = head.trim_end().lines().skip(1).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["content-length: 2", "cookie: a=1", "cookie: b=\u{fc}", "host: a", "x-forwarded-for: 9.9.9.9"]);
    let mut body = [0; 2];
    app.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"hi");
}

#[actix_web::test]
async fn a_client_that_waits_is_told_to_continue() {
    let front = Front::new().await;
    let request = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let (mut client, mut app, head) = front.send(request).await;
    assert!(!head.contains("expect"), "{head}");
    assert_eq!(super::head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hi").await.unwrap();
    let mut body = [0; 2];
    app.read_exact(&mut body).await.unwrap();
    app.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(super::head(&mut client).await.starts_with("HTTP/1.1 201 Created\r\n"));
}

#[actix_web::test]
async fn a_body_is_not_read_ahead_of_the_app() {
    let front = Front::new().await;
    let length = 1024 * MB;
    let request = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    let (address, _dropped) = serve(front.app.local_addr().unwrap().port(), length as u64);
    let front = Front { address, ..front };
    let (mut client, _app, _) = front.send(&request).await;
    let chunk = bytes(MB);
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_millis(300), client.write_all(&chunk)).await.is_ok() {
        sent += 1;
        assert!(sent < 64, "the app has read nothing");
    }
}
