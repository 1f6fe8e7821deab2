//! A Hoodie's own client, as far as the tests need it: accounts, through HAProxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

#[derive(Clone)]
pub struct Hoodie {
    pub client: Client,
    pub host: String,
    pub port: u16,
    /// By HTTPS, with a client for which every name is here.
    pub https: bool,
}

pub fn client() -> Client {
    haas::tls::use_ring();
    Client::builder().no_proxy().timeout(std::time::Duration::from_mins(1)).build().unwrap()
}

impl Hoodie {
    pub fn url(&self, path: &str) -> String {
        if self.https {
            format!("https://{}:{}{path}", self.host, self.port)
        } else {
            format!("http://127.0.0.1:{}{path}", self.port)
        }
    }

    pub async fn get(&self, path: &str) -> reqwest::Result<Response> {
        self.client.get(self.url(path)).header("host", &self.host).send().await
    }

    pub async fn answers(&self) -> bool {
        self.get("/hoodie/").await.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    async fn put(&self, path: &str, body: Value) -> StatusCode {
        let request = self.client.put(self.url(path)).header("host", &self.host);
        let answer =
            request.header("content-type", "application/vnd.api+json").body(body.to_string()).send().await.unwrap();
        answer.status()
    }

    /// Makes an account.
    pub async fn sign_up(&self, name: &str) {
        let body = json!({ "data": { "type": "account", "id": format!("id-{name}"),
            "attributes": { "username": name, "password": format!("password of {name}") } } });
        let status = self.put("/hoodie/account/api/session/account", body).await;
        assert_eq!(status, StatusCode::CREATED, "signing {name} up at {}", self.host);
    }

    /// Whether the account is there.
    pub async fn knows(&self, name: &str) -> bool {
        self.sign_in(name, &format!("password of {name}")).await == StatusCode::CREATED
    }

    pub async fn sign_in(&self, name: &str, password: &str) -> StatusCode {
        let body = json!({ "data": { "type": "session",
            "attributes": { "username": name, "password": password } } });
        self.put("/hoodie/account/api/session", body).await
    }
}

/// A request whose body goes on until it is told to end.
pub struct OpenRequest {
    end: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u16>,
}

impl OpenRequest {
    pub fn start(hoodie: &Hoodie) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let body = futures_util::stream::unfold((Arc::clone(&end), false), |(end, over)| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let last = end.load(Ordering::SeqCst);
            (!over).then_some((Ok::<_, std::io::Error>(if last { "{}" } else { " " }), (end, last)))
        });
        let request = hoodie.client.put(hoodie.url("/hoodie/account/api/session")).header("host", &hoodie.host);
        let request = request.header("content-type", "application/vnd.api+json");
        let request = request.body(reqwest::Body::wrap_stream(body));
        Self { end, task: tokio::spawn(async move { request.send().await.unwrap().status().as_u16() }) }
    }

    pub fn is_open(&self) -> bool {
        !self.task.is_finished()
    }

    pub async fn answered(self) -> u16 {
        self.end.store(true, Ordering::SeqCst);
        self.task.await.unwrap()
    }
}
