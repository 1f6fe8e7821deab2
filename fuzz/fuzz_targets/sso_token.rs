#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| haas::fuzzing::run("sso_token", data));
