//! The `palisade` command.

use std::process::ExitCode;

/// Measured: requests are many small allocations on few threads, of which it makes less work than glibc's, and what a
/// burst has left it gives back to the system by itself.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    palisade::cli::main()
}
