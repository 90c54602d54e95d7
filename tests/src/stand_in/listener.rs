pub(super) fn main() -> anyhow::Result<std::process::ExitCode> {
    unimplemented!()
}
