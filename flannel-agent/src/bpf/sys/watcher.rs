//! Programs that watch another program (BPF_PROG_TYPE_TRACING at a program): aya loads
//! such for functions of the kernel only.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use aya::programs::ProgramError;
use aya_obj::VerifierLog;
use aya_obj::generated::bpf_insn;

use super::{ProgramInfo, bpf_open, object_info};

/// `bpf_cmd` BPF_PROG_LOAD (`linux/bpf.h`).
const BPF_PROG_LOAD: libc::c_long = 5;
/// `bpf_cmd` BPF_LINK_CREATE.
const BPF_LINK_CREATE: libc::c_long = 28;
/// `bpf_prog_type` BPF_PROG_TYPE_TRACING.
const TRACING: u32 = 26;
/// Room for the verifier's log in bytes: before Linux 6.4 one that is longer takes the
/// place of the reason.
const LOG_SIZE: usize = 1 << 24;

/// When a watcher runs: `bpf_attach_type` BPF_TRACE_FENTRY and BPF_TRACE_FEXIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(in crate::bpf) enum End {
    Entry = 24,
    Exit = 25,
}

/// A watcher that is not loaded yet.
#[derive(Clone, Copy)]
pub(in crate::bpf) struct Watcher<'a> {
    /// Its name, of which the kernel keeps 15 characters.
    pub(in crate::bpf) name: &'a str,
    /// Its instructions, with the descriptors of maps in them.
    pub(in crate::bpf) instructions: &'a [bpf_insn],
    /// Its licence.
    pub(in crate::bpf) license: &'a CStr,
    /// When it runs.
    pub(in crate::bpf) end: End,
}

/// `struct bpf_func_info`.
#[repr(C)]
#[derive(Default)]
struct FunctionInfo {
    instruction: u32,
    type_id: u32,
}

/// The BTF type of a program's first function, by which others may watch it.
///
/// # Errors
/// ENOENT if the program was loaded without BTF.
pub(in crate::bpf) fn first_function(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut function = FunctionInfo::default();
    let mut info = ProgramInfo {
        func_info_rec_size: size_of::<FunctionInfo>() as u32,
        func_info: std::ptr::from_mut(&mut function) as u64,
        nr_func_info: 1,
        ..ProgramInfo::default()
    };
    // SAFETY: any bytes are a valid `ProgramInfo`; there is room for one function.
    unsafe { object_info(program, &mut info) }?;
    match (info.btf_id, info.nr_func_info) {
        (0, _) | (_, 0) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        _ => Ok(function.type_id),
    }
}

/// The members for BPF_PROG_LOAD of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_prog_fd: u32,
    padding: u32,
}

/// Loads a watcher for the program `target`, whose function [`first_function`] told.
///
/// # Errors
/// The kernel or its verifier refuses it: with the log.
pub(in crate::bpf) fn load(
    watcher: Watcher<'_>,
    target: BorrowedFd<'_>,
    function: u32,
) -> Result<OwnedFd, ProgramError> {
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().take(15).zip(watcher.name.bytes()) {
        *to = from;
    }
    let mut attr = LoadAttr {
        prog_type: TRACING,
        insn_cnt: u32::try_from(watcher.instructions.len()).unwrap_or(u32::MAX),
        insns: watcher.instructions.as_ptr() as u64,
        license: watcher.license.as_ptr() as u64,
        prog_name,
        expected_attach_type: watcher.end as u32,
        attach_btf_id: function,
        attach_prog_fd: target.as_raw_fd() as u32,
        ..LoadAttr::default()
    };
    // SAFETY: instructions and licence outlive the call.
    if let Ok(loaded) = unsafe { bpf_open(BPF_PROG_LOAD, &mut attr) } {
        return Ok(loaded);
    }
    // A log costs time: only where there is something to tell.
    let mut log = vec![0_u8; LOG_SIZE];
    attr.log_level = 1;
    attr.log_size = LOG_SIZE as u32;
    attr.log_buf = log.as_mut_ptr() as u64;
    // SAFETY: as above; the log has room for `log_size` bytes.
    let loaded = unsafe { bpf_open(BPF_PROG_LOAD, &mut attr) };
    loaded.map_err(|io_error| {
        let length = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        let text = String::from_utf8_lossy(&log[..length]).into_owned();
        ProgramError::LoadError { io_error, verifier_log: VerifierLog::new(text) }
    })
}

/// The members for BPF_LINK_CREATE of a tracing program. Its target is the one that it
/// was loaded for.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    target_btf_id: u32,
    padding: u32,
    cookie: u64,
}

/// Lets a loaded watcher run, as long as the descriptor is open.
///
/// # Errors
/// EINVAL before Linux 5.19, which has no cookies; EOPNOTSUPP where programs are not
/// compiled to the machine's code.
pub(in crate::bpf) fn attach(watcher: &OwnedFd, end: End, cookie: u64) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: watcher.as_raw_fd() as u32,
        attach_type: end as u32,
        cookie,
        ..LinkAttr::default()
    };
    // SAFETY: there is no pointer in it.
    unsafe { bpf_open(BPF_LINK_CREATE, &mut attr) }
}
