//! An engine whose containers are a few lines of TCP each: for tests and benchmarks with more
//! apps than a machine has room for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use futures_util::stream::BoxStream;
use haas::archive::tree::Found;
use haas::containers::{Containers, ContainersError, DataFound, Disk, Owned, OwnedVolume, Reading, VolumeBound};
use haas::instance::Instance;
use haas::instance::plan::{Container, Seen, Status};
use haas::instance::storage::Taken;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

/// A handle on the engine; clones share it.
#[derive(Clone, Default)]
pub struct Tenants(Arc<Mutex<BTreeMap<String, Tenant>>>);

struct Tenant {
    instance: Uuid,
    container: Container,
    server: Option<Server>,
}

impl Tenants {
    /// A container that was there before, and that nobody asks for anything.
    pub fn settled(&self, instance: Uuid, name: String, port: u16) {
        let container = container(1, Some(port), Status::Running);
        self.all().insert(name, Tenant { instance, container, server: None });
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Tenant>> {
        self.0.lock().unwrap()
    }
}

fn container(generation: i64, port: Option<u16>, status: Status) -> Container {
    Container { generation, port, status, spec: None, volume: None }
}

impl Containers for Tenants {
    async fn list(&self) -> Result<Vec<Owned>, ContainersError> {
        let owned = |(name, tenant): (&String, &Tenant)| Owned {
            id: name.clone(),
            name: name.clone(),
            instance: Some(tenant.instance),
            container: tenant.container.clone(),
            created: DateTime::UNIX_EPOCH,
        };
        Ok(self.all().iter().map(owned).collect())
    }

    async fn inspect(&self, instance: &Instance) -> Result<Seen, ContainersError> {
        let seen = |tenant: &Tenant| Seen::Ours(tenant.container.clone());
        Ok(self.all().get(instance.container.as_str()).map_or(Seen::Absent, seen))
    }

    async fn prepare_data(&self, _: &Instance) -> Result<DataFound, ContainersError> {
        Ok(DataFound(false))
    }

    async fn create(&self, instance: &Instance) -> Result<(), ContainersError> {
        let container = container(instance.generation, instance.port, Status::Stopped);
        let tenant = Tenant { instance: instance.id, container, server: None };
        self.all().insert(instance.container.to_string(), tenant);
        Ok(())
    }

    async fn start(&self, instance: &Instance) -> Result<(), ContainersError> {
        let port = instance.port.unwrap_or_default();
        let server = Server::at(port, 200, instance.container.as_str()).await;
        let server = server.map_err(|_| ContainersError::PortOccupied(port))?;
        if let Some(tenant) = self.all().get_mut(instance.container.as_str()) {
            tenant.container.status = Status::Running;
            tenant.server = Some(server);
        }
        Ok(())
    }

    async fn pause(&self, _: &Instance) -> Result<(), ContainersError> {
        Err(ContainersError::Refused("stubs are not paused".to_owned()))
    }

    async fn stop(&self, instance: &Instance) -> Result<(), ContainersError> {
        if let Some(tenant) = self.all().get_mut(instance.container.as_str()) {
            tenant.container.status = Status::Stopped;
            tenant.server = None;
        }
        Ok(())
    }

    async fn read_data(&self, _: &Instance) -> Result<Reading, ContainersError> {
        Err(ContainersError::Refused("stubs have no data".to_owned()))
    }

    async fn write_data(
        &self,
        _: &Instance,
        _: u32,
        _: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<Found, ContainersError> {
        Err(ContainersError::Refused("stubs have no data".to_owned()))
    }

    async fn look_at_data(&self, _: &Instance, _: u32) -> Result<Found, ContainersError> {
        Err(ContainersError::Refused("stubs have no data".to_owned()))
    }

    async fn sweep_helpers(&self) -> Result<(), ContainersError> {
        Ok(())
    }

    async fn end_helpers(&self, _: Uuid) -> Result<(), ContainersError> {
        Ok(())
    }

    async fn volumes_of(&self, _: Uuid) -> Result<Vec<String>, ContainersError> {
        Ok(Vec::new())
    }

    async fn remove_volumes(&self, _: Uuid) -> Result<(), ContainersError> {
        Ok(())
    }

    async fn has_volume(&self, _: &str) -> Result<bool, ContainersError> {
        Ok(true)
    }

    async fn volumes(&self) -> Result<Vec<OwnedVolume>, ContainersError> {
        Ok(Vec::new())
    }

    async fn remove_volume(&self, _: &str) -> Result<(), ContainersError> {
        Ok(())
    }

    async fn disk_taken(&self, volumes: Vec<VolumeBound>) -> Result<Vec<Option<Taken>>, ContainersError> {
        Ok(vec![Some(Taken::default()); volumes.len()])
    }

    async fn disk(&self) -> Option<Disk> {
        None
    }

    async fn stray_networks(&self) -> Result<Vec<String>, ContainersError> {
        Ok(Vec::new())
    }

    async fn remove_network(&self, _: &str) -> Result<(), ContainersError> {
        Ok(())
    }

    async fn answers(&self, instance: &Instance) -> bool {
        self.all().get(instance.container.as_str()).is_some_and(|tenant| tenant.server.is_some())
    }

    async fn last_log(&self, _: &Instance) -> Result<String, ContainersError> {
        Ok(String::new())
    }

    async fn remove(&self, instance: &Instance) -> Result<(), ContainersError> {
        self.all().remove(instance.container.as_str());
        Ok(())
    }

    async fn remove_owned(&self, owned: &Owned) -> Result<(), ContainersError> {
        self.all().remove(&owned.name);
        Ok(())
    }

    async fn health(&self) -> Result<(), ContainersError> {
        Ok(())
    }
}

/// Answers every request with one status and a body that says who it is; `/stream` has no end, and
/// sends a byte each tenth of a second. Its connections end with it.
pub struct Server(JoinHandle<()>);

impl Server {
    pub async fn at(port: u16, status: u16, name: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let answer = format!("HTTP/1.1 {status} Stub\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        let answer: Arc<str> = answer.into();
        Ok(Self(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&answer)));
                while connections.try_join_next().is_some() {}
            }
        })))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(stream: TcpStream, answer: Arc<str>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.ok()? == 0 {
                return None;
            }
        }
        if head.split(' ').nth(1)? == "/stream" {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.ok()?;
            loop {
                stream.write_all(b"1\r\n.\r\n").await.ok()?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}
