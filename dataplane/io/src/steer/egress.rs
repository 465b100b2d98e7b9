//! The program where the kernel's frames leave a governed NIC.
//!
//! From Linux 6.6 it hangs on tcx, through a pinned link like every other program. Before, it is a tc filter under the queueing
//! discipline `clsact`: that stays on the device by itself, so what is pinned is the program, as a note of the name. The filter has a
//! fixed place (priority and handle), where the next agent finds it and exchanges its program in one step.

use std::fs;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle,
    qdisc_add_clsact,
};

use super::{Steer, SteerError};

const PROGRAM: &str = "uplink_egress";
/// The filter's place, unlikely to be anyone else's.
const PRIORITY: u16 = 0x6d67;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// How an egress program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EgressMode {
    /// By a link of its own, from Linux 6.6.
    Tcx,
    /// As a filter under `clsact`.
    Filter,
}

impl EgressMode {
    /// Returns the name used in the pin directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Filter => "filter",
        }
    }
}

/// Loads the egress program.
pub(super) fn load(programs: &mut Ebpf) -> Result<(), SteerError> {
    let failed = |e| SteerError::Attach {
        program: PROGRAM,
        name: "loading".to_owned(),
        ifindex: 0,
        source: Box::new(e),
    };
    program(programs)?.load().map_err(failed)
}

fn program(programs: &mut Ebpf) -> Result<&mut SchedClassifier, SteerError> {
    let program = programs.program_mut(PROGRAM).ok_or(SteerError::Missing(PROGRAM))?;
    program.try_into().map_err(|_| SteerError::Missing(PROGRAM))
}

/// Removes the filter that the pin at `path` stands for. One that is gone already, with its device or without, is no matter.
pub(super) fn remove_filter(path: &Path) {
    let ifindex = path.file_name().and_then(|f| f.to_str()?.rsplit_once('@')?.1.parse().ok());
    if let Some(filter) = ifindex.and_then(device_name).and_then(|device| our_filter(&device)) {
        // Dropping it removes it.
        drop(filter);
    }
}

fn our_filter(device: &str) -> Option<SchedClassifierLink> {
    SchedClassifierLink::attached(device, TcAttachType::Egress, PRIORITY, HANDLE, None).ok()
}

fn device_name(ifindex: u32) -> Option<String> {
    nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()
}

impl Steer {
    /// Has the kernel's own IP frames that leave `uplink` take the host port instead (out of `kernel_end`, in at `our_end`) while the
    /// owner of queue 0 of `our_end` is alive. The program is attached in the first of `modes` that the kernel knows, and pinned under
    /// `name`; one of that name that stands there already is exchanged in one step.
    ///
    /// Errors: no such device; a kernel without tcx and `clsact`; no permission.
    pub fn govern(
        &mut self,
        uplink: u32,
        kernel_end: u32,
        our_end: u32,
        name: &str,
        modes: &[EgressMode],
    ) -> Result<EgressMode, SteerError> {
        self.check_name(name)?;
        self.governed
            .insert(uplink, [kernel_end, our_end], 0)
            .map_err(|e| SteerError::Map { map: "governed", source: Box::new(e) })?;
        let mut refused = Vec::new();
        let file = format!("{name}@{uplink}");
        for mode in modes {
            let path = self.directory.join(mode.as_str()).join(&file);
            let tried = match mode {
                EgressMode::Tcx => self.attach_tcx(uplink, &path),
                EgressMode::Filter => self.attach_filter(uplink, &path),
            };
            match tried {
                Ok(()) => {
                    // What stands under that name on other devices, or in the other way, ends now that this one stands.
                    for (pinned, folder, other) in self.pins(&super::EGRESS_FOLDERS) {
                        if pinned == name && other != path {
                            if folder == EgressMode::Filter.as_str() {
                                remove_filter(&other);
                            }
                            // A pin that is gone already is as good.
                            let _ = fs::remove_file(other);
                        }
                    }
                    return Ok(*mode);
                }
                Err(why) => refused.push(format!("{}: {why}", mode.as_str())),
            }
        }
        let _ = self.governed.remove(&uplink);
        Err(SteerError::Egress { name: name.to_owned(), ifindex: uplink, why: refused.join("; ") })
    }

    /// Ends what [`Steer::govern`] began: from now on the kernel's frames leave by the NIC again. Returns whether anything stood there.
    pub fn ungovern(&mut self, uplink: u32, name: &str) -> bool {
        // First the map, which takes effect at once; the kernel detaches a link a moment after its pin is gone.
        let _ = self.governed.remove(&uplink);
        self.unpin(name, &super::EGRESS_FOLDERS)
    }

    fn attach_tcx(&mut self, ifindex: u32, path: &Path) -> Result<(), String> {
        let program = program(&mut self.programs).map_err(|e| e.to_string())?;
        if path.exists() {
            let exchanged = PinnedLink::from_pin(path)
                .ok()
                .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)).ok())
                .and_then(|link| program.attach_to_link(link).ok())
                .and_then(|id| program.take_link(id).ok());
            if exchanged.is_some() {
                // Closed here; the pin keeps the link.
                return Ok(());
            }
            fs::remove_file(path).map_err(|e| e.to_string())?;
        }
        let device = device_name(ifindex).ok_or("no such device")?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(&device, TcAttachType::Egress, options)
            .map_err(|e| super::chain(&e))?;
        let link: FdLink = program
            .take_link(id)
            .map_err(|e| e.to_string())?
            .try_into()
            .map_err(|_| "the kernel gave no link".to_owned())?;
        link.pin(path).map(drop).map_err(|e| super::chain(&e))
    }

    fn attach_filter(&mut self, ifindex: u32, path: &Path) -> Result<(), String> {
        let program = program(&mut self.programs).map_err(|e| e.to_string())?;
        let device = device_name(ifindex).ok_or("no such device")?;
        // It may stand there already, ours or another's: whether it does shows when the filter is added.
        let _ = qdisc_add_clsact(&device);
        if path.exists() {
            fs::remove_file(path).map_err(|e| e.to_string())?;
        }
        // The note comes first: a filter without one would be nobody's.
        program.pin(path).map_err(|e| super::chain(&e))?;
        let exchanged = our_filter(&device).and_then(|filter| program.attach_to_link(filter).ok());
        let attached = match exchanged {
            Some(id) => Ok(id),
            None => {
                let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
                program.attach_with_options(&device, TcAttachType::Egress, TcAttachOptions::Netlink(options))
            }
        };
        let link = attached.and_then(|id| program.take_link(id));
        match link {
            Ok(link) => {
                // Dropping it would remove the filter, which is to outlive us.
                std::mem::forget(link);
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(path);
                Err(super::chain(&error))
            }
        }
    }
}
