//! What a tenant's container is made of: everything that it may, and nothing more.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, MountVolumeOptions, NetworkCreateRequest,
    PortBinding, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum, VolumeCreateRequest,
};
use uuid::Uuid;

use super::docker::{HelperImage, Work};
use super::{LABEL_GENERATION, LABEL_HELPER, LABEL_INSTALLATION, LABEL_INSTANCE, LABEL_SPEC, LABEL_VOLUME};
use crate::credentials::InstanceKey;
use crate::instance::Instance;
use crate::instance::spec::{Egress, Spec};

/// Where the image keeps its data; see hoodie/Dockerfile.
pub(super) const DATA: &str = "/app/data";
/// Where the image's Hoodie listens.
const PORT: &str = "80/tcp";
/// Docker's option for a bridge's name.
pub(super) const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Docker's resolver passes on what it does not know itself, be it from the engine's own network, where
/// no rule of ours sees it. A resolver that is set like this it asks from within the container, where
/// nobody listens: no packet leaves.
const NO_RESOLVER: &str = "127.0.0.1";
/// Docker's resolver then gives no answer at all: one second of that is enough (resolv.conf(5)).
const ASK_ONCE: [&str; 2] = ["timeout:1", "attempts:1"];
const MIB: i64 = 1024 * 1024;
/// When the machine itself is out of memory, the kernel ends a tenant sooner than Postgres, HAProxy or us
/// (proc(5), `oom_score_adj`).
const OOM_SCORE_ADJ: i64 = 500;
/// A quarter of what others have by default (`cpu.shares`): where all want the CPU at once, the parts that
/// serve everybody come first. Among tenants nothing changes.
const CPU_SHARES: i64 = 256;
/// Files that one process may have open. Docker's own default is a million, and the kernel's table is everybody's.
const OPEN_FILES: i64 = 16_384;

/// What a Hoodie knows its admin by.
pub(super) struct Admin {
    pub password: String,
    /// The same at each start, so that its sessions go on; see hoodie/admin-sessions.js.
    pub session_salt: String,
}

impl Admin {
    pub fn of(instance: &Instance, key: &InstanceKey) -> Self {
        let Instance { id, generation, .. } = *instance;
        Self { password: key.admin_password(id, generation), session_salt: key.session_salt(id, generation) }
    }
}

/// The network that an installation's tenants share without seeing each other.
pub(super) fn network_name(installation: Uuid) -> String {
    format!("haas-{}", installation.simple())
}

/// The name of the bridge under a new network: known before there is one, so that rules for it can be
/// put in first. The kernel takes 15 bytes.
#[must_use]
pub fn bridge_name(installation: Uuid) -> String {
    format!("haas-{}", &installation.simple().to_string()[..10])
}

/// See [`network_name`].
pub(super) fn network(installation: Uuid) -> NetworkCreateRequest {
    NetworkCreateRequest {
        name: network_name(installation),
        driver: Some("bridge".to_owned()),
        // Whatever the engine's own default is.
        enable_ipv6: Some(false),
        options: Some(HashMap::from([
            (BRIDGE_NAME.to_owned(), bridge_name(installation)),
            // Tenants can't reach each other (Docker's bridge driver options).
            ("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned()),
        ])),
        labels: Some(HashMap::from([(LABEL_INSTALLATION.to_owned(), installation.to_string())])),
        ..NetworkCreateRequest::default()
    }
}

fn labels(instance: &Instance, installation: Uuid) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_INSTALLATION.to_owned(), installation.to_string()),
        (LABEL_INSTANCE.to_owned(), instance.id.to_string()),
        (LABEL_GENERATION.to_owned(), instance.generation.to_string()),
    ])
}

/// The volume with an instance's data.
pub(super) fn volume(instance: &Instance, installation: Uuid) -> VolumeCreateRequest {
    VolumeCreateRequest {
        name: Some(instance.volume()),
        labels: Some(labels(instance, installation)),
        ..VolumeCreateRequest::default()
    }
}

/// The container of an instance.
pub(super) fn container(
    instance: &Instance,
    port: u16,
    installation: Uuid,
    spec: &Spec,
    admin: &Admin,
) -> ContainerCreateBody {
    let memory = i64::from(spec.memory_mib) * MIB;
    let no_names = spec.egress == Egress::None;
    let host = HostConfig {
        // Node as PID 1 would not be reaped of its children; see docs/decisions.
        init: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(true),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), "rw,noexec,nosuid,nodev,size=16m".to_owned())])),
        memory: Some(memory),
        // The same figure: no swap.
        memory_swap: Some(memory),
        nano_cpus: Some(i64::from(spec.millicpus) * 1_000_000),
        cpu_shares: Some(CPU_SHARES),
        pids_limit: Some(i64::from(spec.pids)),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        ulimits: Some(vec![ResourcesUlimits {
            name: Some("nofile".to_owned()),
            soft: Some(OPEN_FILES),
            hard: Some(OPEN_FILES),
        }]),
        // A Hoodie that crashes, or a machine that reboots, needs none of us to come back.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
            maximum_retry_count: None,
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), format!("{}m", spec.log_mib)),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
        // No /dev/shm, which would be one more place to write to.
        ipc_mode: Some("none".to_owned()),
        dns: no_names.then(|| vec![NO_RESOLVER.to_owned()]),
        dns_options: no_names.then(|| ASK_ONCE.map(str::to_owned).to_vec()),
        network_mode: Some(network_name(installation)),
        port_bindings: Some(HashMap::from([(
            PORT.to_owned(),
            Some(vec![PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: Some(port.to_string()) }]),
        )])),
        mounts: Some(vec![Mount {
            target: Some(DATA.to_owned()),
            source: Some(instance.volume()),
            typ: Some(MountType::VOLUME),
            // One that has data has its own root: the engine would give it the image's, at each creation.
            volume_options: instance
                .expects_data()
                .then(|| MountVolumeOptions { no_copy: Some(true), ..MountVolumeOptions::default() }),
            ..Mount::default()
        }]),
        ..HostConfig::default()
    };
    let mut labels = labels(instance, installation);
    labels.insert(LABEL_SPEC.to_owned(), spec.digest());
    labels.insert(LABEL_VOLUME.to_owned(), instance.volume());
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        env: Some(vec![
            format!("hoodie_adminPassword={}", admin.password),
            format!("HAAS_ADMIN_SESSION_SALT={}", admin.session_salt),
        ]),
        labels: Some(labels),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// Where a helper has the volume.
const VOLUME: &str = "/volume";
/// What a helper's lists of names may take, and the kernel's cache of the files that it writes.
const HELPER_MEMORY: i64 = 512 * MIB;
/// Docker's own profile lets in more, the more capabilities there are: with these, other files of the file
/// system by their handles, and mounts. None of that is needed.
const HELPER_SYSCALLS: &str = include_str!("docker/helper/seccomp.json");
/// To read any inode, and to see all of its attributes (capabilities(7)).
const READING: [&str; 2] = ["DAC_READ_SEARCH", "SYS_ADMIN"];
/// And to make any.
const WRITING: [&str; 8] =
    ["CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "MKNOD", "SETFCAP", "SYS_ADMIN"];

/// A container in which this program works on a volume; see docker/helper.rs.
pub(super) fn helper(
    instance: Uuid,
    installation: Uuid,
    volume: &str,
    image: &HelperImage,
    work: Work,
    format: u32,
) -> ContainerCreateBody {
    let writes = work == Work::Write;
    let capabilities = if writes { WRITING.as_slice() } else { &READING };
    let host = HostConfig {
        auto_remove: Some(true),
        network_mode: Some("none".to_owned()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(capabilities.iter().map(|&name| name.to_owned()).collect()),
        security_opt: Some(vec!["no-new-privileges".to_owned(), format!("seccomp={HELPER_SYSCALLS}")]),
        readonly_rootfs: Some(true),
        memory: Some(HELPER_MEMORY),
        memory_swap: Some(HELPER_MEMORY),
        cpu_shares: Some(CPU_SHARES),
        pids_limit: Some(64),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        // The data goes by standard output, and is nobody's log.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        ipc_mode: Some("none".to_owned()),
        mounts: Some(vec![Mount {
            target: Some(VOLUME.to_owned()),
            source: Some(volume.to_owned()),
            typ: Some(MountType::VOLUME),
            read_only: Some(!writes),
            volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..MountVolumeOptions::default() }),
            ..Mount::default()
        }]),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(image.name.clone()),
        entrypoint: Some(image.entrypoint.clone()),
        cmd: Some(["volume", work.word(), VOLUME, "--format", &format.to_string()].map(str::to_owned).to_vec()),
        user: Some("0:0".to_owned()),
        attach_stdin: Some(writes),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(writes),
        stdin_once: Some(true),
        labels: Some(HashMap::from([
            (LABEL_INSTALLATION.to_owned(), installation.to_string()),
            (LABEL_HELPER.to_owned(), instance.to_string()),
        ])),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}
