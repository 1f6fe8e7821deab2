//! Every input that the fuzzer has kept, and the seeds that it began with, once more through its targets:
//! what was found stays found where no fuzzer runs.
#![cfg(feature = "fuzzing")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use haas::fuzzing::{TARGETS, run};

/// Each input of a target, with a word for where it is.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut inputs = Vec::new();
    for entry in fs::read_dir(fuzz.join("seeds").join(target)).unwrap() {
        let path = entry.unwrap().path();
        inputs.push((path.display().to_string(), fs::read(&path).unwrap()));
    }
    let kept = fs::File::open(fuzz.join("kept").join(format!("{target}.tar.zst"))).unwrap();
    for entry in tar::Archive::new(zstd::Decoder::new(kept).unwrap()).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let name = format!("{target}: {}", entry.path().unwrap().display());
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            inputs.push((name, data));
        }
    }
    inputs
}

#[test]
fn what_the_fuzzer_kept_passes() {
    for (target, _) in TARGETS {
        let inputs = inputs(target);
        assert!(inputs.len() > 100, "{target}: {} inputs", inputs.len());
        for (name, data) in inputs {
            let outcome = std::panic::catch_unwind(|| run(target, &data));
            assert!(outcome.is_ok(), "{name}: {:?}", String::from_utf8_lossy(&data));
        }
    }
}

#[test]
fn each_target_is_one_of_the_fuzzers_too() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> = files.map(|file| file.trim_end_matches(".rs").to_owned()).collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, targets);
    let manifest = include_str!("../fuzz/Cargo.toml");
    assert!(targets.iter().all(|target| manifest.contains(&format!("name = \"{target}\""))));
}
