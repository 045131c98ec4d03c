//! The command line of expandr.

/// Encoders and language models allocate and free large buffers at a high rate; mimalloc keeps them at hand.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    expandr::cli::main()
}
