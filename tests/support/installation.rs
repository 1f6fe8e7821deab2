//! A whole installation, started as a newcomer would: `haas up` in a folder of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use haas::embedded::Layout;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};

use super::hoodie::{Hoodie, client};
use super::{Ports, eventually, ports, unique};

pub type Lines = tokio::io::Lines<BufReader<ChildStdout>>;

pub struct Installation {
    pub dir: TempDir,
    pub layout: Layout,
    pub ports: Ports,
    pub client: Client,
    /// The port of HTTPS, for the tests that are about it.
    pub https: Option<u16>,
    /// A word that this test's users' names begin with.
    pub word: String,
    config: Option<PathBuf>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    id: Option<String>,
}

impl Installation {
    pub async fn up() -> Self {
        Self::up_with("").await
    }

    /// Starts with these settings in a haas.toml.
    pub async fn up_with(settings: &str) -> Self {
        let mut installation = Self::prepared(settings);
        installation.start().await;
        installation
    }

    pub fn prepared(settings: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("haas").tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("var")).unwrap();
        let config = (!settings.is_empty()).then(|| {
            let path = dir.path().join("haas.toml");
            std::fs::write(&path, settings).unwrap();
            path
        });
        Self {
            dir,
            layout,
            ports: ports(),
            client: client(),
            https: None,
            word: unique(),
            config,
            environment: Vec::new(),
            child: None,
            id: None,
        }
    }

    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub fn clear_environment(&mut self) {
        self.environment.clear();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_haas"));
        command.args(arguments).arg("--dir").arg(self.layout.dir());
        for name in ["DATABASE_URL", "HAAS_DIR", "HAAS_CONFIG"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts `haas up` without waiting for it.
    pub fn spawn(&mut self) {
        let ports = format!("{}-{}", self.ports.first, self.ports.last);
        let http = self.ports.http.to_string();
        let mut command = self.command(&["up", "--http-port", &http, "--ports", &ports]);
        match self.https {
            Some(port) => command.args(["--https-port", &port.to_string()]),
            None => command.arg("--no-tls"),
        };
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.envs(self.environment.iter().cloned());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    pub async fn ready(&mut self) {
        eventually("the server is ready", Duration::from_mins(1), || async {
            let answer = self.control("/readyz").await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
        if self.id.is_none() {
            self.id = Some(self.sql("SELECT id FROM installation").await);
        }
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("haas.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// `kill -9` of the server alone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Waits until the control API answers, whatever it says of the parts.
    pub async fn reachable(&mut self) {
        eventually("the control API answers", Duration::from_mins(1), || async {
            let answer = self.control("/healthz").await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
    }

    /// SIGTERM, and what the process says at its end.
    pub async fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        tokio::task::spawn_blocking(move || child.wait().unwrap().code()).await.unwrap()
    }

    /// Waits for the process to end by itself.
    pub async fn ended(&mut self) {
        let mut child = self.child.take().unwrap();
        tokio::time::timeout(Duration::from_mins(1), tokio::task::spawn_blocking(move || child.wait()))
            .await
            .expect("the server should have ended by itself")
            .unwrap()
            .unwrap();
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn secret(&self) -> String {
        let path = self.layout.secrets_dir().join("provision.secret");
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    pub async fn control(&self, path: &str) -> reqwest::Result<Response> {
        let url = format!("http://127.0.0.1:{}{path}", self.ports.http);
        let request = self.client.get(url).header("host", "haas.localhost");
        request
            .bearer_auth(
                std::fs::read_to_string(self.layout.secrets_dir().join("provision.secret")).unwrap_or_default().trim(),
            )
            .send()
            .await
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Result<Response> {
        let url = format!("http://127.0.0.1:{}{path}", self.ports.http);
        self.client.post(url).header("host", "haas.localhost").json(body).send().await
    }

    /// A user's name that no other test has.
    pub fn user(&self, name: &str) -> String {
        format!("{}-{name}", self.word)
    }

    pub fn request(&self, user: &str, app: &str) -> Value {
        json!({ "secret": self.secret(), "username": self.user(user),
            "emailaddress": format!("{user}@example.com"), "appname": app })
    }

    /// Provisions, and insists on a running Hoodie.
    pub async fn provision(&self, user: &str, app: &str) -> Hoodie {
        let answer = self.post("/provision", &self.request(user, app)).await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert!(status == 201 || status == 200, "{status}: {body}\n{}", self.log());
        self.hoodie(user, app)
    }

    pub async fn deprovision(&self, user: &str, app: &str) -> (u16, Value) {
        let body = json!({ "secret": self.secret(), "username": self.user(user), "appname": app });
        let answer = self.post("/deprovision", &body).await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub fn hoodie(&self, user: &str, app: &str) -> Hoodie {
        Hoodie {
            // Connections of its own: a browser does not share one between hosts either.
            client: client(),
            host: format!("{app}.{}.haas.localhost", self.user(user)),
            port: self.ports.http,
            https: false,
        }
    }

    pub fn container(&self, user: &str, app: &str) -> String {
        format!("{}-{app}", self.user(user))
    }

    pub async fn instance(&self, user: &str, app: &str) -> Value {
        let answer = self.control(&format!("/instances/{}/{app}", self.user(user))).await.unwrap();
        answer.json().await.unwrap()
    }

    /// The folder on this machine that an app's first volume is.
    pub async fn data_folder(&self, user: &str, app: &str) -> PathBuf {
        let id = self.instance(user, app).await["id"].as_str().unwrap().replace('-', "");
        docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &format!("haas-{id}")]).await.into()
    }

    /// Waits until callers see it in this state.
    pub async fn comes_to_be(&self, user: &str, app: &str, state: &str) {
        eventually(&format!("{user}/{app} is {state}"), Duration::from_secs(30), || async {
            (self.instance(user, app).await["state"] == state).then_some(())
        })
        .await;
    }

    /// A command about one instance, which has to work.
    pub async fn order(&self, command: &str, user: &str, app: &str) {
        let (code, output, errors) = self.haas(&[command, &self.user(user), app]).await;
        assert_eq!(code, 0, "haas {command}: {output}{errors}\n{}", self.log());
    }

    /// Waits until the Hoodie answers through HAProxy and the manifest says so.
    pub async fn running_again(&self, user: &str, app: &str, limit: Duration) {
        eventually(&format!("{user}/{app} runs"), limit, || async {
            let answer = self.control(&format!("/instances/{}/{app}", self.user(user))).await.ok()?;
            let body: Value = answer.json().await.ok()?;
            (body["state"] == "running" && self.hoodie(user, app).answers().await).then_some(())
        })
        .await;
    }

    pub async fn haas(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = self.command(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    pub async fn sql(&self, statement: &str) -> String {
        super::cluster::sql(&self.layout, statement).await.unwrap()
    }

    /// The names of this installation's containers, whatever they do.
    pub async fn containers(&self) -> Vec<String> {
        let filter = format!("label=haas.installation={}", self.id.as_deref().unwrap());
        let names = docker(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}}"]).await;
        let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
        names.sort();
        names
    }
}

/// Runs a script of Node's in a container, as the tenant.
pub async fn node(container: &str, script: &str, argument: &str) -> String {
    docker(&["exec", container, "node", "-e", script, argument]).await
}

/// The same, while it goes on: what it is told, and the lines that it says.
pub fn talk(container: &str, script: &str, argument: &str) -> (tokio::process::Child, ChildStdin, Lines) {
    let mut child = tokio::process::Command::new("docker")
        .args(["exec", "-i", container, "node", "-e", script, argument])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    (child, stdin, BufReader::new(stdout).lines())
}

/// Runs a program, which has to end well; what it prints.
pub async fn run(program: &str, arguments: &[&str]) -> String {
    printed(tokio::process::Command::new(program).args(arguments)).await
}

/// What a command prints, which has to end well.
pub async fn printed(command: &mut tokio::process::Command) -> String {
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub async fn docker(arguments: &[&str]) -> String {
    run("docker", arguments).await.trim().to_owned()
}

impl Drop for Installation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the failed installation\n{}", self.log());
        }
        self.kill();
        let down = self.command(&["down", "--remove"]).stdout(Stdio::null()).output();
        if let Ok(output) = &down
            && !output.status.success()
        {
            eprintln!("haas down: {}", String::from_utf8_lossy(&output.stderr));
        }
        // What even that has left: volumes always, containers if it failed.
        if let Some(id) = &self.id {
            remove_all_of(id);
        }
    }
}

/// Whatever carries the installation's label: containers, volumes, the network.
pub fn remove_all_of(installation: &str) {
    let label = format!("label=haas.installation={installation}");
    for (list, remove) in [
        (vec!["ps", "-aq", "--filter"], vec!["rm", "-f"]),
        (vec!["volume", "ls", "-q", "--filter"], vec!["volume", "rm", "-f"]),
        (vec!["network", "ls", "-q", "--filter"], vec!["network", "rm"]),
    ] {
        let Ok(found) = Command::new("docker").args(&list).arg(&label).output() else { continue };
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        if !found.trim().is_empty() {
            Command::new("docker").args(&remove).args(found.split_whitespace()).output().ok();
        }
    }
}
