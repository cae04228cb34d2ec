#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agentd_fuzz::audit::records(data));
