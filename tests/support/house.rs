//! All of Haas but the engine and the API, in one process: a Postgres and a HAProxy of its own, the
//! reconciler, and stubs instead of containers.

use std::time::Duration;

use haas::failpoint::Faults;
use haas::haproxy::{Haproxy, Settings};
use haas::instance::Phase;
use haas::instance::name::{AppName, Email, Username};
use haas::manifest::{Manifest, NewInstance};
use haas::reconcile::{self, Health, Nudges, Worker, World};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::cluster::{Cluster, RunningHaproxy};
use super::tenants::{Server, Tenants};
use super::{Ports, eventually};

/// Ports of apps that were there before, at which nobody listens.
const SETTLED_PORTS: u16 = 20_000;
const APP: &str = "notes";

/// Ended when it is dropped.
pub struct House {
    pub cluster: Cluster,
    pub manifest: Manifest,
    pub haproxy: Haproxy,
    pub nudges: Nudges,
    reconciler: JoinHandle<()>,
    _control: Server,
    _running: RunningHaproxy,
}

impl House {
    /// Starts it with so many apps that were there before.
    pub async fn start(ports: Ports, settings: &[(&str, &str)], settled: u16) -> Self {
        let listen = format!("127.0.0.1:{}", ports.spare);
        let mut cluster = Cluster::start(ports, &[settings, &[("http.listen", listen.as_str())]].concat()).await;
        cluster.config.haproxy.template = cluster.dir.path().join("template");
        cluster.config.haproxy.app_request_rate = 100_000;
        write_template(&cluster, "");
        let tenants = Tenants::default();
        if settled > 0 {
            cluster.settled(settled, SETTLED_PORTS).await;
            for n in 0..settled {
                tenants.settled(Uuid::from_u128(n.into()), format!("user-{n:05}-{APP}"), SETTLED_PORTS + n);
            }
        }
        // In place of the control API, which is asked for hosts that are in no map.
        let control = Server::at(ports.spare, 404, "no such app").await.unwrap();
        let running = RunningHaproxy::start(&cluster).await;
        let haproxy = || Haproxy::new(Settings::from_config(&cluster.config));
        let settings = reconcile::Settings::from_config(&cluster.config);
        let world = World::new(cluster.manifest(), tenants, haproxy(), settings, Faults::default());
        let (health, nudges) = (Health::default(), Nudges::default());
        let url = cluster.config.manifest.database_url.to_string();
        let worker = Worker::new(world, url, health.clone(), nudges.clone());
        let house = Self {
            manifest: cluster.manifest(),
            haproxy: haproxy(),
            nudges,
            reconciler: tokio::spawn(async move { match worker.run().await {} }),
            _control: control,
            _running: running,
            cluster,
        };
        let looked = || async { health.report().ok().then_some(()) };
        eventually("the reconciler has looked at everything", Duration::from_mins(1), looked).await;
        house
    }

    pub fn host(&self, user: &str) -> String {
        format!("{APP}.{user}.{}", self.cluster.config.installation.domain)
    }

    pub async fn provision(&self, user: &str) -> Uuid {
        let (username, appname) = (Username::parse(user).unwrap(), AppName::parse(APP).unwrap());
        let email = Email::parse("n@example.com").unwrap();
        self.manifest.provision(&NewInstance { username, appname, email }).await.unwrap().instance.id
    }

    pub async fn deprovision(&self, user: &str) {
        let (username, appname) = (Username::parse(user).unwrap(), AppName::parse(APP).unwrap());
        self.manifest.deprovision(&username, &appname, false).await.unwrap().unwrap();
    }

    pub async fn comes_to_be(&self, id: Uuid, phase: Phase) {
        eventually(&format!("{id} is {phase}"), Duration::from_secs(30), || async {
            let row = self.manifest.get(id).await.ok()??;
            (row.phase == phase).then_some(())
        })
        .await;
    }

    /// Has HAProxy reload by an edit of the template.
    pub fn edit_template(&self, remark: &str) {
        write_template(&self.cluster, remark);
        self.nudges.nudge_haproxy();
    }
}

fn write_template(cluster: &Cluster, remark: &str) {
    let text = include_str!("../../templates/haproxy.cfg.tera");
    std::fs::write(&cluster.config.haproxy.template, format!("{text}\n# Edited: {remark}\n")).unwrap();
}

impl Drop for House {
    fn drop(&mut self) {
        self.reconciler.abort();
    }
}
