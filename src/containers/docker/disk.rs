//! What volumes take of the disk: by a look at their files where this process may, else by the engine's
//! word (Docker Engine API, `GET /system/df`).

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::{ContainersError, Docker, classify};
use crate::containers::VolumeBound;
use crate::containers::disk::{Disk, taken};
use crate::containers::held::held;
use crate::instance::storage::Taken;

/// Volumes that one turn looks at, and turns at the same time: others need the disk, too.
const TURN: usize = 32;
const TURNS: usize = 2;
/// How long the engine may take: it reads the folders of all volumes, images and containers.
const DF_TIMEOUT: Duration = Duration::from_mins(5);
/// The longest answer that is read.
const DF_BYTES: usize = 64 * 1024 * 1024;
const SOCKET: &str = "/var/run/docker.sock";

impl Docker {
    /// Where the engine's local driver keeps its volumes, each in `<name>/_data`.
    async fn volumes_folder(&self) -> Result<&Path, ContainersError> {
        let folder = self.volumes_folder.get_or_try_init(async || {
            let info = self.client().await?.info().await.map_err(classify)?;
            let root = info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".to_owned());
            Ok(PathBuf::from(root).join("volumes"))
        });
        folder.await.map(PathBuf::as_path)
    }

    pub(super) async fn measure(&self, volumes: Vec<VolumeBound>) -> Result<Vec<Option<Taken>>, ContainersError> {
        if volumes.is_empty() {
            return Ok(Vec::new());
        }
        let folder = self.volumes_folder().await?;
        let turns: Vec<(PathBuf, Vec<VolumeBound>)> =
            volumes.chunks(TURN).map(|turn| (folder.to_owned(), turn.to_vec())).collect();
        let seen: Vec<io::Result<Vec<Option<Taken>>>> = stream::iter(turns)
            .map(|(folder, turn)| async move {
                let looked = tokio::task::spawn_blocking(move || look(&folder, &turn)).await;
                looked.unwrap_or_else(|gone| Err(io::Error::other(gone)))
            })
            .buffered(TURNS)
            .collect()
            .await;
        let seen = seen.into_iter().collect::<io::Result<Vec<_>>>().map(|turns| turns.concat());
        match seen {
            Ok(seen) if seen.iter().any(Option::is_some) => with_deleted(volumes, seen).await,
            // None of them is here, or this process may not look.
            Ok(_) => self.ask(&volumes).await,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.ask(&volumes).await,
            Err(error) => Err(ContainersError::Refused(format!("{}: {error}", folder.display()))),
        }
    }

    async fn ask(&self, volumes: &[VolumeBound]) -> Result<Vec<Option<Taken>>, ContainersError> {
        let sizes = timeout(DF_TIMEOUT, df()).await;
        let sizes = sizes.unwrap_or_else(|late| Err(ContainersError::Unreachable(late.to_string())))?;
        let taken = |bytes: &u64| Taken { bytes: *bytes, files: 0 };
        Ok(volumes.iter().map(|volume| sizes.get(&volume.name).map(taken)).collect())
    }

    pub(super) async fn volumes_disk(&self) -> Option<Disk> {
        let folder = self.volumes_folder().await.ok()?.to_owned();
        tokio::task::spawn_blocking(move || Disk::of(&folder)).await.ok().flatten()
    }
}

/// With what was deleted, and takes room all the same.
async fn with_deleted(
    volumes: Vec<VolumeBound>,
    seen: Vec<Option<Taken>>,
) -> Result<Vec<Option<Taken>>, ContainersError> {
    let looked = tokio::task::spawn_blocking(move || {
        let held = held(&volumes.iter().map(|volume| volume.name.as_str()).collect());
        let with = |(volume, seen): (&VolumeBound, Option<Taken>)| {
            let (seen, held) = (seen?, held.get(&volume.name).copied().unwrap_or_default());
            Some(Taken { bytes: seen.bytes.saturating_add(held.bytes), files: seen.files + held.files })
        };
        volumes.iter().zip(seen).map(with).collect()
    });
    looked.await.map_err(|gone| ContainersError::Refused(gone.to_string()))
}

/// None of a volume that is not there.
fn look(folder: &Path, volumes: &[VolumeBound]) -> io::Result<Vec<Option<Taken>>> {
    let look = |volume: &VolumeBound| match taken(&folder.join(&volume.name).join("_data"), volume.limits) {
        Ok(taken) => Ok(Some(taken)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    volumes.iter().map(look).collect()
}

/// The part of the engine's answer that is about volumes. bollard's type has it only as engines from
/// API 1.52 on say it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Usage {
    volumes: Option<Vec<Sized>>,
    volume_usage: Option<Items>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Items {
    items: Option<Vec<Sized>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Sized {
    name: String,
    usage_data: Option<Size>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    /// -1 where it is not known.
    size: i64,
}

/// Asks the engine at `DOCKER_HOST`, or at its usual socket.
async fn df() -> Result<HashMap<String, u64>, ContainersError> {
    let unreachable = |error: io::Error| ContainersError::Unreachable(error.to_string());
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let answer = match host.split_once("://") {
        Some(("tcp" | "http", address)) => {
            speak(TcpStream::connect(address.trim_end_matches('/')).await.map_err(unreachable)?).await?
        }
        Some(("unix", path)) => speak(UnixStream::connect(path).await.map_err(unreachable)?).await?,
        Some((scheme, _)) => {
            return Err(ContainersError::Refused(format!("the sizes of volumes can't be asked for by {scheme}")));
        }
        None => speak(UnixStream::connect(SOCKET).await.map_err(unreachable)?).await?,
    };
    sizes(&answer).map_err(|error| ContainersError::Refused(format!("GET /system/df: {error}")))
}

fn sizes(answer: &[u8]) -> serde_json::Result<HashMap<String, u64>> {
    let Usage { volumes, volume_usage } = serde_json::from_slice(answer)?;
    let volumes = volumes.or(volume_usage.and_then(|usage| usage.items)).unwrap_or_default();
    let known = |volume: Sized| Some((volume.name, u64::try_from(volume.usage_data?.size).ok()?));
    Ok(volumes.into_iter().filter_map(known).collect())
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<Vec<u8>, ContainersError> {
    let broken = |error: hyper::Error| ContainersError::Unreachable(error.to_string());
    let (mut engine, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let asked = async {
        // Engines before API 1.42 know no `type`, and say all.
        let request = Request::get("/system/df?type=volume").header("host", "docker").body(String::new());
        let request = request.map_err(|error| ContainersError::Refused(error.to_string()))?;
        let answer = engine.send_request(request).await.map_err(broken)?;
        let (status, mut body) = (answer.status(), answer.into_body());
        let mut bytes = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                bytes.extend_from_slice(&data);
            }
            if bytes.len() > DF_BYTES {
                return Err(ContainersError::Refused("GET /system/df: the answer is too long".to_owned()));
            }
        }
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            return Err(ContainersError::Refused(format!("GET /system/df: {text} ({})", status.as_u16())));
        }
        Ok(bytes)
    };
    let outcome = asked.await;
    driver.abort();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_engines_answer_are_understood() {
        let one = r#"{"Name":"haas-a","UsageData":{"RefCount":1,"Size":4711},"Mountpoint":"/x"}"#;
        let unknown = r#"{"Name":"haas-b","UsageData":{"RefCount":-1,"Size":-1}}"#;
        let old = format!(r#"{{"LayersSize":1,"Images":[],"Volumes":[{one},{unknown},{{"Name":"haas-c"}}]}}"#);
        let new = format!(r#"{{"VolumeUsage":{{"TotalSize":4711,"Items":[{one},{unknown}]}}}}"#);
        for answer in [old, new] {
            assert_eq!(sizes(answer.as_bytes()).unwrap(), HashMap::from([("haas-a".to_owned(), 4711)]));
        }
        assert!(sizes(b"{}").unwrap().is_empty() && sizes(b"[").is_err());
    }

    #[tokio::test]
    async fn the_engine_tells_how_large_a_volume_is() {
        let volume = format!("haas-test-{}", uuid::Uuid::new_v4().simple());
        let docker = bollard::Docker::connect_with_defaults().unwrap();
        let request = bollard::models::VolumeCreateRequest { name: Some(volume.clone()), ..Default::default() };
        docker.create_volume(request).await.unwrap();
        let sizes = df().await;
        docker.remove_volume(&volume, None::<bollard::query_parameters::RemoveVolumeOptions>).await.unwrap();
        assert_eq!(sizes.unwrap().get(&volume), Some(&0));
    }
}
