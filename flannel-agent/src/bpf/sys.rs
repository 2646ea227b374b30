//! Calls of bpf(2) that aya does not offer, or not without CAP_SYS_ADMIN.
#![allow(unsafe_code, reason = "bpf(2) with pointers to our buffers")]

mod elements;
pub(super) mod watcher;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

pub(super) use elements::{
    Token, create_map, lookup_batch, lookup_element, next_element, update_batch, update_element,
};

/// `bpf_cmd` BPF_PROG_QUERY (`linux/bpf.h`).
const BPF_PROG_QUERY: libc::c_long = 16;
/// Programs that a hook can hold (BPF_MPROG_MAX).
const MAX_PROGRAMS: usize = 64;

/// A tcx hook: `bpf_attach_type` BPF_TCX_INGRESS and BPF_TCX_EGRESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(super) enum TcxHook {
    Ingress = 46,
    Egress = 47,
}

impl TcxHook {
    /// Where a link attaches its program, if that is a tcx hook.
    pub(super) fn of(link: &LinkInfo) -> Option<Self> {
        let hooks = [Self::Ingress, Self::Egress];
        hooks.into_iter().find(|hook| link.kind == LINK_TCX && link.attach_type == *hook as u32)
    }
}

/// The `query` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// A program on a tcx hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    /// The program's id.
    pub(super) program: u32,
    /// Id of the link that holds it there; 0 if none does.
    pub(super) link: u32,
}

/// What runs on a tcx hook of an interface of this network namespace. aya's
/// query opens each program, for which the kernel wants CAP_SYS_ADMIN; the ids
/// alone need CAP_NET_ADMIN.
///
/// # Errors
/// EINVAL where the kernel has no tcx (before Linux 6.6), ENODEV if the
/// interface has gone.
pub(super) fn tcx_programs(ifindex: u32, hook: TcxHook) -> io::Result<Vec<Attached>> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut links = [0_u32; MAX_PROGRAMS];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: hook as u32,
        prog_ids: ids.as_mut_ptr() as u64,
        link_ids: links.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        ..QueryAttr::default()
    };
    // SAFETY: both arrays have room for `count` ids and outlive the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    let found = ids.into_iter().zip(links).take(attr.count as usize);
    Ok(found.map(|(program, link)| Attached { program, link }).collect())
}

/// `bpf_cmd` BPF_OBJ_PIN (`linux/bpf.h`).
const BPF_OBJ_PIN: libc::c_long = 6;
/// `bpf_cmd` BPF_LINK_GET_FD_BY_ID.
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
/// `bpf_cmd` BPF_OBJ_GET (`linux/bpf.h`).
const BPF_OBJ_GET: libc::c_long = 7;
/// `bpf_cmd` BPF_PROG_GET_FD_BY_ID.
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
/// `bpf_cmd` BPF_OBJ_GET_INFO_BY_FD.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `bpf_link_type` BPF_LINK_TYPE_XDP.
pub(super) const LINK_XDP: u32 = 6;
/// `bpf_link_type` BPF_LINK_TYPE_TCX.
pub(super) const LINK_TCX: u32 = 11;

/// The first members of `struct bpf_link_info`, with the union as tcx and XDP
/// links have it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// `bpf_link_type`.
    pub(super) kind: u32,
    /// The link's id.
    pub(super) id: u32,
    /// Id of its program.
    pub(super) program: u32,
    padding: u32,
    /// Interface; 0 if the device has gone.
    pub(super) ifindex: u32,
    /// `bpf_attach_type`; not told of XDP.
    pub(super) attach_type: u32,
}

/// What a pinned link is, and where.
///
/// # Errors
/// EINVAL if something else is pinned there; ENOENT if nothing is.
pub(super) fn pinned_link(path: &Path) -> io::Result<LinkInfo> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr { pathname: path.as_ptr() as u64, ..PathAttr::default() };
    // SAFETY: `path` is a string that ends with a zero byte and outlives the call.
    let link = unsafe { bpf_open(BPF_OBJ_GET, &mut attr) }?;
    // Maps and programs are asked by the same call, and answer otherwise.
    let target = fs::read_link(format!("/proc/self/fd/{}", link.as_raw_fd()))?;
    if !target.as_os_str().as_bytes().ends_with(b"link") {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut info = LinkInfo::default();
    // SAFETY: any bytes are a valid `LinkInfo`.
    unsafe { object_info(link.as_fd(), &mut info) }?;
    Ok(info)
}

/// Pins a link that runs somewhere.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENOENT if there is no such link, or no such directory.
pub(super) fn pin_link(id: u32, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ByIdAttr { id, ..ByIdAttr::default() };
    // SAFETY: there is no pointer in it.
    let link = unsafe { bpf_open(BPF_LINK_GET_FD_BY_ID, &mut attr) }?;
    let bpf_fd = link.as_raw_fd() as u32;
    let mut attr = PathAttr { pathname: path.as_ptr() as u64, bpf_fd, ..PathAttr::default() };
    // SAFETY: `path` is a string that ends with a zero byte and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Name of a loaded program, 15 characters of it.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENOENT if there is no such program.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    let mut attr = ByIdAttr { id, ..ByIdAttr::default() };
    // SAFETY: there is no pointer in it.
    let program = unsafe { bpf_open(BPF_PROG_GET_FD_BY_ID, &mut attr) }?;
    let mut info = ProgramInfo::default();
    // SAFETY: any bytes are a valid `ProgramInfo`; zero stands for no buffer in
    // the members before the name.
    unsafe { object_info(program.as_fd(), &mut info) }?;
    let length = info.name.iter().position(|&byte| byte == 0).unwrap_or(info.name.len());
    Ok(String::from_utf8_lossy(&info.name[..length]).into_owned())
}

/// Maps that a program can use (MAX_USED_MAPS).
const MAX_MAPS: usize = 64;

/// Ids of the maps that a program uses. aya's way opens the program anew by its id, for
/// which the kernel wants CAP_SYS_ADMIN.
///
/// # Errors
/// The kernel's.
pub(super) fn program_maps(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MAX_MAPS];
    let mut info = ProgramInfo {
        nr_map_ids: MAX_MAPS as u32,
        map_ids: ids.as_mut_ptr() as u64,
        ..ProgramInfo::default()
    };
    // SAFETY: any bytes are a valid `ProgramInfo`; `ids` has room for `nr_map_ids` ids and
    // outlives the call.
    unsafe { object_info(program, &mut info) }?;
    ids.truncate(info.nr_map_ids as usize);
    Ok(ids)
}

/// The members of `struct bpf_prog_info` as far as the functions.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    before: [u64; 6],
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
    between: [u64; 6],
    btf_id: u32,
    func_info_rec_size: u32,
    func_info: u64,
    nr_func_info: u32,
    nr_line_info: u32,
}

/// The members for BPF_OBJ_* of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct PathAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The members for BPF_*_GET_FD_BY_ID.
#[repr(C)]
#[derive(Default)]
struct ByIdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The `info` member of `union bpf_attr`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Fills `info` with what the kernel tells of a link or program.
///
/// # Safety
/// Any bytes are a valid `T`, and there is room where it has pointers.
unsafe fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = InfoAttr {
        bpf_fd: object.as_raw_fd() as u32,
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: `attr` is of this command. `info` has `info_len` bytes, outlives the call, and by
    // the caller's promise may hold what the kernel writes, as may what it points to.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// A number that this network namespace keeps and no other ever has.
///
/// # Errors
/// ENOPROTOOPT before Linux 5.14.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has `length` bytes, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Calls bpf(2) for a command that answers with a descriptor.
///
/// # Safety
/// As for [`bpf`], and the command answers with a new descriptor.
unsafe fn bpf_open<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller promises that `attr` and its pointers are of this command.
    let descriptor = unsafe { bpf(command, attr) }?;
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us, by the caller's promise about the command;
    // nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` is a prefix of `union bpf_attr` for this command; the pointers in it
/// are valid for what the kernel reads and writes there.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: `attr` has as many bytes as are told, and outlives the call. The caller promises
    // that they are of this command, and that its pointers are valid.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}
