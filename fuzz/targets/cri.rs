//! What a client of the CRI may ask for: arbitrary bytes as requests, through all checks and up to the runtime spec.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| vaina_cri_server::fuzzing::request(input));
