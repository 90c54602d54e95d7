//! Compiles the BPF programs with clang. They are CO-RE: what is compiled here runs on every kernel that is supported.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// One object a file `programs/NAME.bpf.c`.
const PROGRAMS: [&str; 3] = ["lifecycle", "network", "syscalls"];

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=programs");
    println!("cargo:rerun-if-env-changed=CLANG");
    println!("cargo:rerun-if-env-changed=LLVM_STRIP");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let strip = env::var("LLVM_STRIP").unwrap_or_else(|_| "llvm-strip".to_owned());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in PROGRAMS {
        let object = out.join(format!("{name}.bpf.o"));
        if let Err(problem) = compile(&clang, name, &object) {
            // Cargo shows a build script's standard error.
            let text = format!(
                "error: the BPF program {name} could not be compiled: {problem}\nhint: install clang and the C library's headers (Debian, Ubuntu: apt-get install clang libc6-dev), or name a clang of version 12 or newer in the variable CLANG\n"
            );
            let _ = std::io::stderr().write_all(text.as_bytes());
            return ExitCode::FAILURE;
        }
        // What remains is the BTF that libbpf needs; without the tool the object is three times as large and as good.
        let _ = Command::new(&strip).arg("-g").arg(&object).status();
    }
    link_what_libelf_needs();
    ExitCode::SUCCESS
}

fn compile(clang: &str, name: &str, object: &Path) -> Result<(), String> {
    let headers =
        env::var_os("DEP_BPF_INCLUDE").ok_or("libbpf-sys did not say where its headers are")?;
    let architecture = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => "-D__TARGET_ARCH_x86",
        Ok("aarch64") => "-D__TARGET_ARCH_arm64",
        other => return Err(format!("the architecture {other:?} is not supported")),
    };
    let output = Command::new(clang)
        .args(["-g", "-O2", "-Wall", "-Werror", "-target", "bpf", architecture])
        .args(["-Iprograms/include", "-Iprograms", "-I"])
        .arg(headers)
        .arg("-c")
        .arg(format!("programs/{name}.bpf.c"))
        .arg("-o")
        .arg(object)
        .output()
        .map_err(|error| format!("`{clang}` can't be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{clang}` failed:\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// A libelf of 2023 or newer can read sections compressed with zstd, and its static library then needs that one too; that of
/// elfutils 0.192 lacks two functions.
fn link_what_libelf_needs() {
    const GAPS: &str = "libelf_search_tree.c";
    println!("cargo:rerun-if-changed={GAPS}");
    // Whole: nothing has asked for the functions yet when the linker comes to them.
    cc::Build::new().file(GAPS).link_lib_modifier("+whole-archive").compile("elf_search_tree");
    // The variable that libbpf-sys asks, too: a cross build has a pkg-config of the target's libraries.
    println!("cargo:rerun-if-env-changed=PKG_CONFIG");
    let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let asked = Command::new(program).args(["--print-requires-private", "libelf"]).output();
    let Ok(answer) = asked else { return };
    if String::from_utf8_lossy(&answer.stdout).contains("zstd") {
        println!("cargo:rustc-link-lib=zstd");
    }
}
