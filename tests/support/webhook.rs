//! A receiver of notices on loopback: takes down what it was sent, and answers as it is told.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub at: DateTime<Utc>,
    pub request_line: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Checks the signature as a receiver has to (Standard Webhooks, "Verifying signatures"): its
    /// libraries take a key in base64.
    pub fn is_signed_with(&self, key: &str) -> bool {
        let of = |name: &str| self.headers.get(name).cloned().unwrap_or_default();
        let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(key).unwrap()).unwrap();
        mac.update(format!("{}.{}.{}", of("webhook-id"), of("webhook-timestamp"), self.body).as_bytes());
        of("webhook-signature") == format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

#[derive(Default)]
struct State {
    received: Vec<Received>,
    /// The status for messages about these users; others get 204.
    refused: HashMap<String, u16>,
}

/// Ended when it is dropped.
pub struct Receiver {
    pub url: String,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/notices?of=haas", listener.local_addr().unwrap());
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { url, state, task }
    }

    /// From now on, messages about this user are answered with this status.
    pub fn refuse(&self, user: &str, status: u16) {
        self.state.lock().unwrap().refused.insert(user.to_owned(), status);
    }

    pub fn take(&self, user: &str) {
        self.state.lock().unwrap().refused.remove(user);
    }

    /// What came about a user so far.
    pub fn about(&self, user: &str) -> Vec<Received> {
        let all = self.state.lock().unwrap().received.clone();
        all.into_iter().filter(|received| received.json()["data"]["username"] == user).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let headers: HashMap<String, String> = lines
            .iter()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
        stream.read_exact(&mut body).await.ok()?;
        let received =
            Received { at: Utc::now(), request_line: lines[0].clone(), headers, body: String::from_utf8(body).ok()? };
        let status = {
            let user = received.json()["data"]["username"].as_str().unwrap_or_default().to_owned();
            let mut state = state.lock().unwrap();
            state.received.push(received);
            state.refused.get(&user).copied().unwrap_or(204)
        };
        let length = if status == 204 { "" } else { "content-length: 0\r\n" };
        stream.write_all(format!("HTTP/1.1 {status} Told\r\n{length}\r\n").as_bytes()).await.ok()?;
    }
}
