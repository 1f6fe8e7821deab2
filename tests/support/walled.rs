//! An installation with the walls of `haas firewall` around its tenants.

use serde_json::Value;

use crate::support::installation::{Installation, docker, run};

/// An installation, whose firewall's rules are taken away at its end.
pub struct Walled {
    pub haas: Installation,
    pub id: String,
}

impl Walled {
    pub async fn up(settings: &str) -> Self {
        let haas = Installation::up_with(settings).await;
        let id = haas.sql("SELECT id FROM installation").await;
        Self { haas, id }
    }

    /// What begins the names of its chains and its bridge.
    pub fn short(&self) -> String {
        self.id.replace('-', "")[..10].to_owned()
    }

    pub async fn firewall(&self, arguments: &[&str]) -> (i32, String, String) {
        self.haas.haas(&[&["firewall"], arguments].concat()).await
    }

    pub async fn install(&self) {
        let (code, out, errors) = self.firewall(&["--install"]).await;
        assert_eq!(code, 0, "{out}{errors}");
    }

    /// The same settings with another egress, for the commands.
    pub async fn install_with(&self, egress: &str) {
        let mut command = self.haas.command(&["firewall", "--install"]);
        command.env("HAAS_TENANT_EGRESS", egress);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Every line of the machine's rules that has to do with it.
    pub async fn rules(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for program in ["iptables", "ip6tables"] {
            let all = run(program, &["-w", "20", "-S"]).await;
            lines.extend(
                all.lines().filter(|line| line.contains("HAAS-") && line.contains(&self.short())).map(str::to_owned),
            );
        }
        lines
    }
}

impl Drop for Walled {
    fn drop(&mut self) {
        let mut command = self.haas.command(&["firewall", "--remove", "--installation", &self.id]);
        let output = command.output().unwrap();
        if !output.status.success() {
            eprintln!("haas firewall --remove: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// A container that is none of Haas' tenants, on their network and by their image; it goes with it.
pub struct Beside(pub String);

impl Beside {
    /// Beside this tenant, with these options of `docker run`.
    pub async fn start(walled: &Walled, tenant: &str, options: &[&str]) -> Self {
        let beside = Self(format!("{}-beside", walled.haas.word));
        let image = docker(&["inspect", tenant, "--format", "{{.Config.Image}}"]).await;
        let (network, ..) = network(tenant).await;
        let label = format!("haas.installation={}", walled.id);
        let mut arguments = vec!["run", "-d", "--name", &beside.0, "--label", &label, "--network", &network];
        arguments.extend(["--init", "--tmpfs", "/app/data", "--entrypoint", "node"]);
        arguments.extend(options);
        arguments.extend([image.as_str(), "-e", "setInterval(()=>{},1000)"]);
        docker(&arguments).await;
        beside
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        std::process::Command::new("docker").args(["rm", "-f", &self.0]).output().ok();
    }
}

pub async fn address(container: &str) -> String {
    docker(&["inspect", container, "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"]).await
}

/// The network of an installation: its name, its bridge, and the host's own address there.
pub async fn network(container: &str) -> (String, String, String) {
    let form = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}";
    let name = docker(&["inspect", container, "--format", form]).await;
    let seen: Value = serde_json::from_str(&docker(&["network", "inspect", &name]).await).unwrap();
    let network = &seen[0];
    let made_of_its_id = || format!("br-{}", &network["Id"].as_str().unwrap()[..12]);
    let bridge =
        network["Options"]["com.docker.network.bridge.name"].as_str().map_or_else(made_of_its_id, str::to_owned);
    let gateway = network["IPAM"]["Config"][0]["Gateway"].as_str().unwrap().to_owned();
    (name, bridge, gateway)
}
