//! The helper: this very program, in a container of its own that has a tenant's volume and nothing
//! else, to read the volume as it is on the disk, and to fill it.
//!
//! Only root can do that, on the engine's machine; the server may be neither. The image is made by
//! the server itself, of the program that it runs and the libraries that it runs with, so that both
//! are always of one version, and nothing has to be built or pulled. The container has no network, a
//! read-only root, and of root's capabilities those that reading, or writing, any inode takes.
//!
//! Bytes come and go by the attached streams. The last line of what it says on standard error is its
//! [`Report`]. If the server ends, the helper's input ends with it, and the engine removes the
//! container as soon as it has ended.

mod image;

use std::collections::HashMap;
use std::time::Duration;

use bollard::container::{AttachContainerResults, LogOutput};
use bollard::models::ContainerSummary;
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, InspectContainerOptions, ListContainersOptions,
    RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

use super::{ContainersError, Data, Docker, LABEL_HELPER, LABEL_INSTALLATION, classify, spec, status};
use crate::archive::tree::Found;
use crate::archive::{ArchiveError, FORMAT};
use crate::containers::Reading;

pub(in crate::containers) use image::Image;

/// How much of what a helper says is read.
const SAID_MAX: usize = 64 * 1024;
/// Pieces of a volume's data that may wait for their reader.
const DEPTH: usize = 4;
/// How long a container may be made and not started, or ended and not removed.
const LEFT_BEHIND: TimeDelta = TimeDelta::minutes(10);
/// After how long without a word it is looked whether a helper runs still.
const SILENCE: Duration = Duration::from_secs(10);
/// How long the engine may take to remove one that has ended, before it is asked to.
const REMOVAL: Duration = Duration::from_secs(10);

/// What a helper is to do with the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Write all of it to standard output, and then read it once more.
    Read,
    /// Fill it from standard input, and then read it.
    Write,
    /// Read it.
    Look,
}

impl Work {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Look];

    /// As the command line has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Look => "look",
        }
    }
}

/// The last line that a helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// What the volume holds now.
    Found(Found),
    /// Something that can't be kept, or can't be put there, however often it is tried.
    Unfit(String),
    /// The volume that was to be filled holds something already; it was left as it is.
    Occupied(String),
    /// It did not work out this time.
    Failed(String),
}

impl Report {
    /// Of what came of it.
    #[must_use]
    pub fn of(outcome: Result<Found, ArchiveError>) -> Self {
        match outcome {
            Ok(found) => Self::Found(found),
            Err(error @ ArchiveError::Occupied(_)) => Self::Occupied(error.to_string()),
            Err(error) if error.may_pass() => Self::Failed(error.to_string()),
            Err(error) => Self::Unfit(error.to_string()),
        }
    }

    fn outcome(self) -> Result<Found, ContainersError> {
        match self {
            Self::Found(found) => Ok(found),
            Self::Unfit(why) => Err(ContainersError::Unfit(why)),
            Self::Occupied(why) => Err(ContainersError::Occupied(why)),
            Self::Failed(why) => Err(ContainersError::Refused(why)),
        }
    }
}

/// A helper that runs.
struct Helper {
    client: bollard::Docker,
    id: String,
    work: Work,
    streams: AttachContainerResults,
    said: Vec<u8>,
    /// How its streams ended, if that was no good end.
    broken: Option<ContainersError>,
}

impl Helper {
    /// The next piece of what it writes; none when it has ended, or has nothing more to say.
    async fn next(&mut self) -> Result<Option<Bytes>, ContainersError> {
        loop {
            let output = match timeout(SILENCE, self.streams.output.next()).await {
                Ok(output) => output,
                // The end of the streams may be lost, where the engine is restarted or in trouble.
                Err(_) if self.runs().await? => continue,
                Err(_) => None,
            };
            // It may have said why, and left what it was still to be told.
            let output = output.transpose().unwrap_or_else(|error| {
                self.broken = Some(classify(error));
                None
            });
            match output {
                None => return Ok(None),
                Some(LogOutput::StdErr { message }) => {
                    self.said.extend_from_slice(&message);
                    let beyond = self.said.len().saturating_sub(SAID_MAX);
                    self.said.drain(..beyond);
                    // What it writes comes by another stream, and may come later.
                    if self.work != Work::Read && self.last_line().is_some() {
                        return Ok(None);
                    }
                }
                Some(LogOutput::StdOut { message }) => return Ok(Some(message)),
                Some(LogOutput::StdIn { .. } | LogOutput::Console { .. }) => {}
            }
        }
    }

    /// Its report, if that has come.
    fn last_line(&self) -> Option<Report> {
        let said = String::from_utf8_lossy(self.said.strip_suffix(b"\n")?);
        serde_json::from_str(said.lines().next_back()?).ok()
    }

    async fn runs(&mut self) -> Result<bool, ContainersError> {
        match self.client.inspect_container(&self.id, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(found.state.and_then(|state| state.running) == Some(true)),
            Err(error) if status(&error) == Some(404) => Ok(false),
            Err(error) => Err(classify(error)),
        }
    }

    /// Waits until it is gone, and nothing has the volume.
    async fn gone(&mut self) {
        let condition = "removed".to_owned();
        let mut ends = self.client.wait_container(&self.id, Some(WaitContainerOptions { condition }));
        // How it ended is in its report; that there is none any more is said as an error.
        if timeout(REMOVAL, async { while let Some(Ok(_)) = ends.next().await {} }).await.is_err() {
            remove(&self.client, &self.id).await;
        }
    }

    /// What it had to say.
    async fn report(mut self) -> Result<Found, ContainersError> {
        let report = self.last_line();
        // Whoever has had a volume filled goes on with it at once; others may want to remove it.
        if self.work != Work::Write || !matches!(report, Some(Report::Found(_))) {
            self.gone().await;
        }
        match report {
            Some(report) => report.outcome(),
            None => Err(self.broken.take().unwrap_or_else(|| {
                let said = String::from_utf8_lossy(&self.said);
                ContainersError::Refused(format!("the helper has ended without a report; it said {said:?}"))
            })),
        }
    }
}

impl Docker {
    async fn helper(&self, instance: Uuid, volume: &str, work: Work, format: u32) -> Result<Helper, ContainersError> {
        // A volume that is not there would be made by this.
        if !super::Containers::has_volume(self, volume).await? {
            return Err(ContainersError::Refused(format!("its volume {volume} is gone")));
        }
        let client = self.transfers().await?;
        let image = self.helper_image.get_or_try_init(|| image::of_this_program(&client)).await?;
        let name = format!("haas-helper-{}", Uuid::new_v4().simple());
        let options = CreateContainerOptions { name: Some(name), ..CreateContainerOptions::default() };
        let body = spec::helper(instance, self.settings.installation, volume, image, work, format);
        let made = match client.create_container(Some(options.clone()), body.clone()).await {
            // Somebody has removed the image.
            Err(error) if status(&error) == Some(404) => {
                image::of_this_program(&client).await?;
                client.create_container(Some(options), body).await
            }
            made => made,
        };
        let id = made.map_err(classify)?.id;
        let attach = AttachContainerOptions {
            stdin: work == Work::Write,
            stdout: true,
            stderr: true,
            stream: true,
            ..AttachContainerOptions::default()
        };
        let started = async {
            // Before it runs: nothing of what it says is missed.
            let streams = client.attach_container(&id, Some(attach)).await?;
            client.start_container(&id, None::<StartContainerOptions>).await?;
            Ok(streams)
        };
        match started.await {
            Ok(streams) => Ok(Helper { client, id, work, streams, said: Vec::new(), broken: None }),
            Err(error) => {
                remove(&client, &id).await;
                Err(classify(error))
            }
        }
    }

    pub(super) async fn read_volume(&self, instance: Uuid, volume: &str) -> Result<Reading, ContainersError> {
        let mut helper = self.helper(instance, volume, Work::Read, FORMAT).await?;
        let (pieces, mut taken) = mpsc::channel(DEPTH);
        let (report, second_look) = oneshot::channel();
        tokio::spawn(async move {
            loop {
                match helper.next().await {
                    Ok(Some(piece)) => {
                        if pieces.send(Ok(piece)).await.is_err() {
                            // Nobody reads on.
                            return remove(&helper.client, &helper.id).await;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        let _ = pieces.send(Err(error)).await;
                        return remove(&helper.client, &helper.id).await;
                    }
                }
            }
            match helper.report().await {
                Ok(found) => drop(report.send(found)),
                Err(error) => drop(pieces.send(Err(error)).await),
            }
        });
        let tar: Data = futures_util::stream::poll_fn(move |context| taken.poll_recv(context)).boxed();
        let gone = |_| ContainersError::Refused("the helper has ended without a report".to_owned());
        Ok(Reading { tar, second_look: second_look.map(move |found| found.map_err(gone)).boxed() })
    }

    pub(super) async fn fill_volume(
        &self,
        instance: Uuid,
        volume: &str,
        format: u32,
        mut data: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<Found, ContainersError> {
        let mut helper = self.helper(instance, volume, Work::Write, format).await?;
        let mut input = std::mem::replace(&mut helper.streams.input, Box::pin(tokio::io::sink()));
        let mut feed = std::pin::pin!(async {
            while let Some(piece) = data.next().await {
                let piece = piece.map_err(|error| ContainersError::Refused(error.to_string()))?;
                if input.write_all(&piece).await.is_err() {
                    // It has ended before all of it: it says why.
                    return Ok(());
                }
            }
            drop(input.shutdown().await);
            Ok(())
        });
        let mut sent = false;
        loop {
            let went: Result<bool, ContainersError> = tokio::select! {
                done = &mut feed, if !sent => {
                    sent = true;
                    done.map(|()| true)
                }
                piece = helper.next() => piece.map(|piece| piece.is_some()),
            };
            match went {
                Ok(true) => {}
                // It has ended, whether it wanted all of it or not.
                Ok(false) => break,
                Err(error) => {
                    remove(&helper.client, &helper.id).await;
                    return Err(error);
                }
            }
        }
        helper.report().await
    }

    pub(super) async fn look_at_volume(
        &self,
        instance: Uuid,
        volume: &str,
        format: u32,
    ) -> Result<Found, ContainersError> {
        let mut helper = self.helper(instance, volume, Work::Look, format).await?;
        loop {
            match helper.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return helper.report().await,
                Err(error) => {
                    remove(&helper.client, &helper.id).await;
                    return Err(error);
                }
            }
        }
    }

    /// Removes helpers that a server has left behind: made and never started, or ended and there still.
    /// One that works ends by itself.
    ///
    /// # Errors
    /// [`ContainersError::Unreachable`] when the engine does not answer.
    pub(super) async fn remove_helpers_left_behind(&self, now: DateTime<Utc>) -> Result<(), ContainersError> {
        let client = self.client().await?;
        for summary in self.helpers(None).await? {
            let made = summary.created.and_then(|seconds| DateTime::from_timestamp(seconds, 0)).unwrap_or_default();
            let runs = summary.state.is_some_and(|state| state.to_string() == "running");
            if let Some(id) = summary.id.filter(|_| !runs && now - made >= LEFT_BEHIND) {
                log::info!("a helper's container that was left behind is removed: {id}");
                remove(client, &id).await;
            }
        }
        Ok(())
    }

    /// Removes every helper of this installation, or of one instance, whatever it does.
    ///
    /// # Errors
    /// [`ContainersError::Unreachable`] when the engine does not answer.
    pub async fn remove_helpers(&self, instance: Option<Uuid>) -> Result<(), ContainersError> {
        let client = self.client().await?;
        for helper in self.helpers(instance).await? {
            if let Some(id) = helper.id {
                remove(client, &id).await;
            }
        }
        Ok(())
    }

    async fn helpers(&self, instance: Option<Uuid>) -> Result<Vec<ContainerSummary>, ContainersError> {
        let label = instance.map_or_else(|| LABEL_HELPER.to_owned(), |id| format!("{LABEL_HELPER}={id}"));
        let ours = format!("{LABEL_INSTALLATION}={}", self.settings.installation);
        let filters = HashMap::from([("label".to_owned(), vec![ours, label])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        self.client().await?.list_containers(Some(options)).await.map_err(classify)
    }
}

/// Ends and removes a helper. One that can't be removed now is found later.
async fn remove(client: &bollard::Docker, id: &str) {
    let options = RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() };
    match client.remove_container(id, Some(options)).await {
        Ok(()) => {}
        // It is gone, or just going.
        Err(error) if matches!(status(&error), Some(404 | 409)) => {}
        Err(error) => log::debug!("a helper's container is left: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::DockerSettings;
    use super::*;
    use crate::config::Config;
    use crate::containers::Containers;
    use crate::credentials::InstanceKey;

    #[tokio::test]
    async fn what_a_server_has_left_behind_goes_after_its_time_and_nothing_else() {
        let tenant = Config::load(None, [], BTreeMap::new()).unwrap().tenant;
        let engine = |installation| {
            let key = InstanceKey::new([0; 32]);
            Docker::new(DockerSettings { installation, tenant: tenant.clone(), key })
        };
        let (ours, theirs) = (engine(Uuid::new_v4()), engine(Uuid::new_v4()));
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let client = ours.client().await.unwrap();
        // As a server leaves them that ends before it starts them.
        for (docker, instance) in [(&ours, one), (&ours, other), (&theirs, one)] {
            let image = Image { name: tenant.image.clone(), entrypoint: vec!["node".to_owned()] };
            let volume = format!("haas-test-{}", instance.simple());
            let mut body = spec::helper(instance, docker.settings.installation, &volume, &image, Work::Look, FORMAT);
            body.host_config.as_mut().unwrap().mounts = None;
            client.create_container(None::<CreateContainerOptions>, body).await.unwrap();
        }
        let left = async |docker: &Docker| docker.helpers(None).await.unwrap().len();
        assert_eq!((left(&ours).await, left(&theirs).await), (2, 1));
        assert!(ours.list().await.unwrap().is_empty(), "they are no tenants");
        let now = Utc::now();
        ours.remove_helpers_left_behind(now).await.unwrap();
        assert_eq!(left(&ours).await, 2, "they may be about to be started");
        ours.end_helpers(one).await.unwrap();
        assert_eq!((left(&ours).await, left(&theirs).await), (1, 1));
        ours.remove_helpers_left_behind(now + LEFT_BEHIND + TimeDelta::seconds(5)).await.unwrap();
        assert_eq!((left(&ours).await, left(&theirs).await), (0, 1));
        theirs.remove_helpers(None).await.unwrap();
        assert_eq!(left(&theirs).await, 0);
    }
}
