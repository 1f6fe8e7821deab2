//! The helper's image: this program, and the libraries that it runs with.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bollard::query_parameters::{CreateImageOptions, ListImagesOptions, RemoveImageOptions};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use super::super::{ContainersError, classify, status};

const REPOSITORY: &str = "haas/helper";
/// The program of this process, also when its file was replaced by a newer one.
const SELF: &str = "/proc/self/exe";
const PROGRAM: &str = "haas";
const LIBRARIES: &str = "lib";
/// What the kernel says of a file that has no name any more.
const REPLACED: &str = " (deleted)";
/// Images of other versions that are older than this go when a new one is made; who needs one makes it
/// anew.
const KEPT_SECONDS: i64 = 7 * 86_400;

/// An image with this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::containers) struct Image {
    /// Its name and tag.
    pub name: String,
    /// What starts the program.
    pub entrypoint: Vec<String>,
}

/// The files that this process runs.
struct Program {
    /// By their names, where they are.
    libraries: BTreeMap<String, PathBuf>,
    /// The library that loads the others (ld.so(8)); none in a program that needs none.
    loader: Option<String>,
}

impl Program {
    fn running() -> io::Result<Self> {
        let own = fs::read_link(SELF)?;
        let mut program = Self { libraries: BTreeMap::new(), loader: None };
        for path in fs::read_to_string("/proc/self/maps")?.lines().filter_map(mapped) {
            let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
            if path == own {
                continue;
            }
            if name.ends_with(REPLACED) {
                // The new one would not fit the others.
                let why = format!("{} was replaced since this process began: restart Haas", path.display());
                return Err(io::Error::other(why));
            }
            if name.starts_with("ld-") {
                program.loader = Some(name.clone());
            }
            program.libraries.insert(name, path);
        }
        Ok(program)
    }

    fn files(&self) -> impl Iterator<Item = (String, &Path)> {
        let libraries = self.libraries.iter().map(|(name, path)| (format!("{LIBRARIES}/{name}"), path.as_path()));
        libraries.chain([(PROGRAM.to_owned(), Path::new(SELF))])
    }

    /// Tells it from every other version.
    fn tag(&self) -> io::Result<String> {
        let mut hasher = Sha256::new();
        let mut piece = vec![0; 1024 * 1024];
        for (name, path) in self.files() {
            hasher.update(name.as_bytes());
            let mut file = File::open(path)?;
            hasher.update(file.metadata()?.len().to_be_bytes());
            loop {
                match file.read(&mut piece)? {
                    0 => break,
                    length => hasher.update(&piece[..length]),
                }
            }
        }
        Ok(hex::encode(hasher.finalize())[..16].to_owned())
    }

    fn tar(&self) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, path) in self.files() {
            let file = File::open(path)?;
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_size(file.metadata()?.len());
            tar.append_data(&mut header, name, file)?;
        }
        tar.into_inner()
    }

    fn entrypoint(&self) -> Vec<String> {
        let program = format!("/{PROGRAM}");
        let Some(loader) = &self.loader else { return vec![program] };
        vec![format!("/{LIBRARIES}/{loader}"), "--library-path".to_owned(), format!("/{LIBRARIES}"), program]
    }
}

/// The file of a mapping with code in it (proc(5), `/proc/pid/maps`).
fn mapped(line: &str) -> Option<PathBuf> {
    let mut words = line.split_ascii_whitespace();
    let code = words.nth(1)?.contains('x');
    let path = line.get(line.find('/')?..)?;
    code.then(|| PathBuf::from(path))
}

/// The image with this program; made, if it is not there.
pub(super) async fn of_this_program(client: &bollard::Docker) -> Result<Image, ContainersError> {
    let failed = |error: io::Error| ContainersError::Refused(format!("making the helper's image: {error}"));
    let described = blocking(|| {
        let program = Program::running()?;
        Ok((program.tag()?, program.entrypoint()))
    });
    let (tag, entrypoint) = described.await.map_err(failed)?;
    let image = Image { name: format!("{REPOSITORY}:{tag}"), entrypoint };
    match client.inspect_image(&image.name).await {
        Ok(_) => return Ok(image),
        Err(error) if status(&error) == Some(404) => {}
        Err(error) => return Err(classify(error)),
    }
    let tar = blocking(|| Program::running()?.tar()).await.map_err(failed)?;
    let options = CreateImageOptions {
        from_src: Some("-".to_owned()),
        repo: Some(REPOSITORY.to_owned()),
        tag: Some(tag),
        ..CreateImageOptions::default()
    };
    let mut made = client.create_image(Some(options), Some(bollard::body_full(tar.into())), None);
    while let Some(step) = made.next().await {
        step.map_err(classify)?;
    }
    log::info!("made {}: this program, for what only root may do with a volume", image.name);
    remove_older(client, REPOSITORY, &image.name, Utc::now()).await;
    Ok(image)
}

async fn remove_older(client: &bollard::Docker, repository: &str, current: &str, now: DateTime<Utc>) {
    let filters = [("reference".to_owned(), vec![repository.to_owned()])].into();
    let options = ListImagesOptions { filters: Some(filters), ..ListImagesOptions::default() };
    let oldest = now.timestamp() - KEPT_SECONDS;
    for image in client.list_images(Some(options)).await.unwrap_or_default() {
        let old = image.created < oldest;
        for name in image.repo_tags.iter().filter(|name| old && *name != current) {
            // One that works keeps its image.
            let removed = client.remove_image(name, None::<RemoveImageOptions>, None).await;
            log::debug!("{name}, of another version: {:?}", removed.map(|_| "removed"));
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|gone| Err(io::Error::other(gone)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_with_code_names_its_file() {
        let line = |flags: &str, rest: &str| format!("7f0000000000-7f0000001000 {flags} 00000000 fe:00 1234 {rest}");
        assert_eq!(mapped(&line("r-xp", "   /usr/lib/libc.so.6")), Some(PathBuf::from("/usr/lib/libc.so.6")));
        assert_eq!(mapped(&line("r-xp", "   /a b/libc.so.6")), Some(PathBuf::from("/a b/libc.so.6")));
        for (flags, rest) in [("r--p", "   /usr/lib/libc.so.6"), ("r-xp", "   [vdso]"), ("r-xp", "")] {
            assert_eq!(mapped(&line(flags, rest)), None, "{flags} {rest}");
        }
    }

    #[tokio::test]
    async fn images_of_other_versions_go_after_a_week() {
        let client = bollard::Docker::connect_with_defaults().unwrap();
        let repository = format!("haas-test/{}", uuid::Uuid::new_v4().simple());
        for tag in ["old", "new"] {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            tar.append_data(&mut header, "version", tag.as_bytes()).unwrap();
            let options = CreateImageOptions {
                from_src: Some("-".to_owned()),
                repo: Some(repository.clone()),
                tag: Some(tag.to_owned()),
                ..CreateImageOptions::default()
            };
            let body = bollard::body_full(tar.into_inner().unwrap().into());
            let mut made = client.create_image(Some(options), Some(body), None);
            while let Some(step) = made.next().await {
                step.unwrap();
            }
        }
        let (old, new) = (format!("{repository}:old"), format!("{repository}:new"));
        let there = async |name: &str| client.inspect_image(name).await.is_ok();
        remove_older(&client, &repository, &new, Utc::now()).await;
        assert!(there(&old).await && there(&new).await);
        remove_older(&client, &repository, &new, Utc::now() + chrono::TimeDelta::days(8)).await;
        let left = (there(&old).await, there(&new).await);
        client.remove_image(&new, None::<RemoveImageOptions>, None).await.unwrap();
        assert_eq!(left, (false, true));
    }

    #[test]
    fn what_this_process_runs_with_runs_alone() {
        let program = Program::running().unwrap();
        let folder = tempfile::tempdir().unwrap();
        tar::Archive::new(program.tar().unwrap().as_slice()).unpack(folder.path()).unwrap();
        let inside = |path: &str| folder.path().join(path.trim_start_matches('/'));
        let words = program.entrypoint();
        let mut command = std::process::Command::new(inside(&words[0]));
        for word in &words[1..] {
            command.arg(if word.starts_with('/') { inside(word).into_os_string() } else { word.into() });
        }
        let output = command.arg("--list").env_clear().output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
