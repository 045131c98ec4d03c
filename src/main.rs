//! The command line of expandr.

/// jemalloc: encoders and language models allocate and free large buffers at a high rate, from many threads, and whole
/// models come and go while the service runs. Few arenas keep what is freed together, so that it goes back to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings: an arena a CPU instead of four, and freed pages are given back by a thread of its own after a
/// second. `_RJEM_MALLOC_CONF` in the environment overrides them.
// SAFETY: jemalloc reads the symbol of this name as a `const char *`; the first word of a slice reference is that
// pointer, and the text ends with a zero byte.
#[allow(unsafe_code)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8] =
    b"background_thread:true,narenas_ratio:1,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> std::process::ExitCode {
    expandr::cli::main()
}
