//! Compiles the programs under `kernel/` with clang. They need no header of the system, so clang is the only tool.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=kernel");
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        fail("OUT_DIR is not set; build with cargo");
    };
    let status = Command::new(&clang)
        .args([
            "-O2",
            "-g",
            "-target",
            "bpf",
            "-mcpu=v2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-c",
            "kernel/ports.c",
            "-o",
        ])
        .arg(out.join("ports.o"))
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => {
            fail(&format!("`{clang}` could not compile kernel/ports.c ({status}); its messages are above"))
        }
        Err(error) => fail(&format!(
            "cannot run `{clang}`: {error}. The XDP programs are written in C: install clang 11 or newer with its BPF back end \
             (Debian, Ubuntu: apt-get install clang), or name it in the environment variable CLANG"
        )),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("margay-io: {message}");
    std::process::exit(1);
}
