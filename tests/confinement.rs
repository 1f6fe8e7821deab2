//! What a program of the tenant's own may do to the machine that its container runs on: nothing. Each
//! attempt has a control that shows that it works for whoever may.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;

use support::installation::{Installation, docker, node, run, talk};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn sockets_of_the_host_are_nowhere_in_a_container() {
    let haas = Installation::up().await;
    haas.provision("alice", "notes").await;
    let alice = haas.container("alice", "notes");
    let run_dir = haas.layout.database_url();
    assert!(run_dir.contains("postgresql"), "{run_dir}");
    let mut sockets = vec![
        PathBuf::from("/var/run/docker.sock"),
        haas.layout.master_socket(),
        haas.layout.stats_socket(),
        haas.layout.control_socket(),
    ];
    let postgres = std::fs::read_dir(haas.layout.master_socket().parent().unwrap()).unwrap();
    sockets.extend(
        postgres
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(".s.PGSQL") && path.extension().is_none_or(|e| e != "lock")),
    );
    assert!(sockets.iter().any(|path| path.to_string_lossy().contains("PGSQL")), "{sockets:?}");
    let script = "const n=require('net');const l=JSON.parse(process.argv[1]);Promise.all(l.map(p=>new Promise(d=>{\
        const s=n.connect(p);s.on('connect',()=>{d('open');s.destroy()});s.on('error',e=>d(e.code))}))).then(r=>console.log(JSON.stringify(r)))";
    let list = serde_json::to_string(&sockets).unwrap();
    for socket in &sockets {
        tokio::net::UnixStream::connect(socket).await.unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    }
    let outcome: Vec<String> = serde_json::from_str(&node(&alice, script, &list).await).unwrap();
    assert!(outcome.iter().all(|word| word == "ENOENT"), "{sockets:?}: {outcome:?}");
    // Nor under another name: what it has of the machine's files is one volume, and Docker's three about names.
    let walk = "const f=require('fs');const found=[];const walk=d=>{let e;try{e=f.readdirSync(d,{withFileTypes:true})}catch{return}\
        for(const x of e){const p=(d==='/'?'':d)+'/'+x.name;if(p==='/proc'||p==='/sys')continue;const s=f.lstatSync(p);\
        if(x.isSocket())found.push('socket '+p);if(s.mode&0o6000&&x.isFile())found.push('setuid '+p);\
        if(x.isBlockDevice())found.push('device '+p);\
        if(x.isDirectory()){try{f.accessSync(p,f.constants.W_OK);found.push('writable '+p)}catch{}walk(p)}}};walk('/');\
        console.log(JSON.stringify(found.filter(x=>!x.startsWith('writable /app/data/'))))";
    let found: Vec<String> = serde_json::from_str(&node(&alice, walk, "").await).unwrap();
    // A queue's file holds nothing but messages, and few: RLIMIT_MSGQUEUE.
    assert_eq!(found, ["writable /app/data", "writable /dev/mqueue", "writable /tmp"]);
    let form = "{{range .Mounts}}{{.Type}} {{.Destination}};{{end}}{{.HostConfig.Binds}} {{.HostConfig.Privileged}} \
        {{.HostConfig.PidMode}}|{{.HostConfig.UsernsMode}}|{{.HostConfig.IpcMode}}|{{.HostConfig.Devices}}";
    assert_eq!(docker(&["inspect", &alice, "--format", form]).await, "volume /app/data;[] false ||none|[]");
}

#[tokio::test]
async fn a_program_of_the_tenants_own_may_nothing() {
    let haas = Installation::up().await;
    haas.provision("alice", "notes").await;
    let alice = haas.container("alice", "notes");
    let program = haas.dir.path().join("grab");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/confinement/grab.c");
    run("cc", &["-O1", "-static", "-o", program.to_str().unwrap(), source]).await;
    let mut victim = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
    let pid = victim.id().unwrap().to_string();

    // The control: as root, with some privileges, each of these works.
    let image = docker(&["inspect", &alice, "--format", "{{.Config.Image}}"]).await;
    let mount = format!("{}:/grab:ro", program.display());
    let mut arguments = vec!["run", "--rm", "--user", "0", "--pid", "host", "--tmpfs", "/tmp:exec,dev", "-v", &mount];
    for capability in ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_NICE"] {
        arguments.extend(["--cap-add", capability]);
    }
    for option in ["seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"] {
        arguments.extend(["--security-opt", option]);
    }
    arguments.extend(["--entrypoint", "/grab", &image, &pid]);
    let control = docker(&arguments).await;
    assert!(control.lines().count() > 15 && control.lines().all(|line| line.ends_with(" ok")), "{control}");

    // She brings it herself, into the one place where programs may run, and runs it.
    let bring = "const f=require('fs');f.writeFileSync('/app/data/grab',f.readFileSync(0),{mode:0o4755});";
    let (mut bringing, mut stdin, _) = talk(&alice, bring, "");
    stdin.write_all(&std::fs::read(&program).unwrap()).await.unwrap();
    drop(stdin);
    assert!(bringing.wait().await.unwrap().success());
    let outcome = docker(&["exec", &alice, "/app/data/grab", &pid]).await;
    let names = |text: &str| text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&outcome), names(&control), "all were tried");
    assert!(!outcome.contains(" ok"), "{outcome}");
    victim.kill().await.unwrap();

    // What the kernel itself says of her processes, Hoodie's own and one that was put in beside it.
    let status = "const f=require('fs');for(const p of [process.argv[1],'self'])console.log(f.readFileSync('/proc/'+p+'/status','utf8'))";
    let hoodie = node(&alice, "const f=require('fs');console.log(f.readdirSync('/proc').find(p=>/^\\d+$/.test(p)&&f.readFileSync('/proc/'+p+'/cmdline','utf8').startsWith('node\\0start.js')))", "").await;
    let said = node(&alice, status, &hoodie).await;
    let lines: BTreeSet<&str> = said
        .lines()
        .filter(|line| ["Cap", "NoNew", "Seccomp:", "Uid"].iter().any(|word| line.starts_with(word)))
        .collect();
    let none = "0000000000000000";
    let sets = ["CapAmb", "CapBnd", "CapEff", "CapInh", "CapPrm"].map(|set| format!("{set}:\t{none}"));
    let mut wanted: BTreeSet<&str> = sets.iter().map(String::as_str).collect();
    wanted.extend(["NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t1000\t1000\t1000\t1000"]);
    assert_eq!(lines, wanted);

    // Nothing can be written but her data, and a little in memory.
    let write = "const f=require('fs');for(const p of JSON.parse(process.argv[1])){let w='ok';try{f.writeFileSync(p,'x')}catch(e){w=e.code}console.log(p,w)}";
    let paths = [
        "/app/data/mine",
        "/tmp/mine",
        "/mine",
        "/app/start.js",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/usr/bin/node",
        "/dev/mine",
        "/dev/shm/mine",
        "/dev/mqueue/mine",
        "/proc/sys/kernel/core_pattern",
        "/proc/self/oom_score_adj",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/kernel/uevent_helper",
    ];
    let written = node(&alice, write, &serde_json::to_string(&paths).unwrap()).await;
    let allowed: Vec<&str> = written.lines().filter(|line| line.ends_with(" ok")).collect();
    assert_eq!(allowed, ["/app/data/mine ok", "/tmp/mine ok"], "{written}");
    // Not even run from /tmp.
    let from_tmp = "const f=require('fs');f.copyFileSync('/app/data/grab','/tmp/grab');f.chmodSync('/tmp/grab',0o755);\
        console.log(require('child_process').spawnSync('/tmp/grab',['1']).error.code)";
    assert_eq!(node(&alice, from_tmp, "").await, "EACCES");
}
