use crate::egress::target::*;
use portcullis_common::event::Feature;
#[derive(Debug)]
pub struct KernelProbe {
    pub features: Vec<Feature>,
    pub owner: OwnerMode,
    pub support: KernelSupport,
}
pub fn probe_kernel() -> KernelProbe {
    KernelProbe {
        features: vec![],
        owner: OwnerMode::OwnerPersist,
        support: KernelSupport { netdev_egress: true, element_update: true },
    }
}
#[derive(Debug)]
pub struct Change {
    pub process: Option<(u32, String)>,
}
impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("change")
    }
}
#[derive(Debug)]
pub struct ChangeWatcher;
impl ChangeWatcher {
    pub fn start(
        _n: std::os::fd::OwnedFd,
        _p: u32,
        _f: impl FnMut(Change) + Send + 'static,
    ) -> std::io::Result<Self> {
        Ok(Self)
    }
}
pub fn remove_orphan(
    _n: std::os::fd::BorrowedFd<'_>,
    _t: &TableName,
) -> Result<(), super::InstallError> {
    Ok(())
}
