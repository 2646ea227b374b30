//! One fault: what happens, what it may cost, and how long its traces may stay.

use std::thread;
use std::time::{Duration, Instant};

use flannel_core::health::Subject;
use flannel_core::status::Status;
use flannel_ebpf::abi::Outcome;
use flannel_tests::told::Outcomes;
use flannel_tests::wait;

use super::cluster::{Cluster, HEALTH};

/// What looking from outside costs on a busy machine, in milliseconds.
const LOOKING: u64 = 700;
/// How long status may take to tell.
const TOLD: Duration = Duration::from_secs(3);

/// What is done to the cluster.
#[derive(Clone, Copy)]
pub(super) enum Act {
    /// Nothing.
    Nothing,
    /// A shell script on the node; its words are in [`Cluster::shell`].
    Sh(&'static str),
    /// Anything else.
    Do(fn(&mut Cluster)),
    /// Anything else that a fault before it may keep from happening.
    Try(fn(&mut Cluster) -> Result<(), String>),
}

impl Act {
    fn perform(self, cluster: &mut Cluster) -> Result<(), String> {
        match self {
            Self::Nothing => {}
            Self::Sh(script) => cluster.shell(script)?,
            Self::Do(act) => act(cluster),
            Self::Try(act) => act(cluster)?,
        }
        Ok(())
    }
}

/// A row of the table of faults.
#[derive(Clone, Copy)]
pub(super) struct Fault {
    /// What happens.
    pub(super) name: &'static str,
    /// It begins.
    pub(super) begin: Act,
    /// How long it lasts, in milliseconds; 0: it has happened, and is over.
    pub(super) lasts: u64,
    /// It ends.
    pub(super) end: Act,
    /// Datagrams, one each millisecond, that may be lost from its beginning on.
    pub(super) loss: u32,
    /// After its end (after its beginning, if it has none) everything is as it was
    /// within this many milliseconds.
    pub(super) restored: u64,
    /// What status calls not well while it lasts.
    pub(super) told: Option<Subject>,
    /// Needs the programs.
    pub(super) programs: bool,
    /// Takes too long for each run.
    pub(super) long: bool,
    /// It writes or removes our lease.
    pub(super) rewrites: bool,
    /// It demands something that another one may prevent meanwhile.
    pub(super) alone: bool,
}

impl Fault {
    /// Something that somebody does once, and the agent puts right.
    pub(super) const fn once(name: &'static str, script: &'static str, loss: u32) -> Self {
        Self {
            name,
            begin: Act::Sh(script),
            lasts: 0,
            end: Act::Nothing,
            loss,
            restored: 1000,
            told: None,
            programs: false,
            long: false,
            rewrites: false,
            alone: false,
        }
    }

    /// Something that lasts, and costs nothing while it does.
    pub(super) const fn lasting(name: &'static str, begin: Act, lasts: u64, end: Act) -> Self {
        Self { begin, lasts, end, ..Self::once(name, "", 0) }
    }

    /// Whose end shows after so many milliseconds.
    pub(super) const fn restored(self, restored: u64) -> Self {
        Self { restored, ..self }
    }

    /// Which may cost so many datagrams.
    pub(super) const fn loss(self, loss: u32) -> Self {
        Self { loss, ..self }
    }

    /// Of which status says that this is not well.
    pub(super) const fn told(self, told: Subject) -> Self {
        Self { told: Some(told), ..self }
    }

    /// Which is nothing without the programs.
    pub(super) const fn programs(self) -> Self {
        Self { programs: true, ..self }
    }

    /// Which an agent that meets it often takes for another node's doing.
    pub(super) const fn rewrites(self) -> Self {
        Self { rewrites: true, ..self }
    }

    /// Beside which nothing else lasts.
    pub(super) const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Which is left to the long form.
    pub(super) const fn long(self) -> Self {
        Self { long: true, ..self }
    }
}

/// Lets faults happen, all at once, and judges what comes of them. Those that last end
/// one after the other, each at its time.
///
/// # Errors
/// What does not hold.
pub(super) fn happen(cluster: &mut Cluster, faults: &[Fault]) -> Result<String, String> {
    let (first, began) = (cluster.streams.now(), Instant::now());
    let mut begun: Vec<&Fault> = Vec::new();
    for fault in faults {
        match fault.begin.perform(cluster) {
            Ok(()) => begun.push(fault),
            // One before may have taken away what this one is about.
            Err(why) if !begun.is_empty() => println!("{} cannot happen: {why}", fault.name),
            Err(why) => return Err(why),
        }
    }
    for fault in &begun {
        if let Some(subject) = fault.told {
            tells(cluster, subject).map_err(|why| format!("{}: {why}", fault.name))?;
        }
    }
    // What passes nothing does so while status is asked about others, too.
    let asked = began.elapsed();
    begun.sort_by_key(|fault| fault.lasts);
    for fault in &begun {
        thread::sleep(Duration::from_millis(fault.lasts).saturating_sub(began.elapsed()));
        fault.end.perform(cluster)?;
    }
    let limit = Duration::from_millis(restored(faults) + LOOKING) * wait::patience();
    let (ended, mut took) = (Instant::now(), Duration::ZERO);
    loop {
        let mut wrong = cluster.before.differences(&cluster.tables());
        if wrong.is_empty() {
            wrong = against_leases(cluster);
        }
        if wrong.is_empty() {
            return judge(cluster, faults, asked, first, took);
        }
        took = ended.elapsed();
        if took > limit {
            return Err(format!("not as before within {limit:?}:{wrong}"));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// In how many milliseconds all is as it was: what lasts may have to wait for another
/// that does.
fn restored(faults: &[Fault]) -> u64 {
    let of = |fault: &Fault| fault.restored;
    let lasting: u64 = faults.iter().filter(|fault| fault.lasts > 0).map(of).sum();
    faults.iter().map(of).max().unwrap_or(0).max(lasting)
}

fn against_leases(cluster: &Cluster) -> String {
    let (left, etcd) = (&cluster.pair.left, &cluster.pair.etcd);
    cluster.before.against(left, etcd, cluster.program)
}

/// Streams and status after a fault.
fn judge(
    cluster: &mut Cluster,
    faults: &[Fault],
    asked: Duration,
    first: u32,
    took: Duration,
) -> Result<String, String> {
    thread::sleep(Duration::from_millis(200));
    let lost = cluster.streams.lost(first..cluster.streams.now());
    let mut may: u32 = faults.iter().map(|fault| fault.loss).sum();
    if may > 0 && faults.len() > 1 {
        may += u32::try_from(asked.as_millis()).unwrap_or(u32::MAX);
    }
    let words = cluster.streams.words().ok_or("the TCP connection has ended")?;
    // TCP waits for up to twice as long as the packets were away.
    let limit = Duration::from_millis(u64::from(3000 + 2 * may));
    let talks = || cluster.streams.words().is_some_and(|now| now > words + 5);
    if !soon(limit, talks) {
        return Err(format!("TCP stands still, {lost} datagrams lost"));
    }
    let mut why = String::new();
    // The client of etcd may wait before it tries again.
    let well = soon(TOLD + Duration::from_millis(restored(faults)), || {
        why = cluster.is_well();
        why.is_empty()
    });
    if !well {
        return Err(format!("it is over, but {why}"));
    }
    if cluster.program {
        let fast = || cluster.pair.left.try_status().map_or(0, carried);
        let before = fast();
        if !soon(Duration::from_secs(8), || fast() > before + 100) {
            return Err("the fast path carries nothing any more".to_owned());
        }
    }
    if lost > may * wait::patience() {
        return Err(format!("{lost} datagrams lost, {may} may be"));
    }
    Ok(format!("as before after {} ms, {lost} datagrams lost", took.as_millis()))
}

/// Waits until status names a subject, and `/readyz` does not hide it. Without the device
/// the node is not ready.
fn tells(cluster: &Cluster, subject: Subject) -> Result<(), String> {
    let mut said = String::new();
    let told = soon(TOLD, || {
        let health = cluster.pair.left.try_status().unwrap_or_default().health;
        let named = health.iter().any(|line| line.subject == subject);
        said = format!("{health:?}");
        let ready = cluster.pair.left.get(HEALTH, "/readyz");
        let whole = subject != Subject::Device;
        named
            && ready
                .is_some_and(|(code, text)| text.contains(subject.text()) && (whole || code == 503))
    });
    if told { Ok(()) } else { Err(format!("status does not name {subject}: {said}")) }
}

/// Packets that the fast path has carried.
fn carried(status: Status) -> u64 {
    let outcomes = Outcomes::from(status);
    outcomes.get(Outcome::FastEncap) + outcomes.get(Outcome::FastDecap)
}

fn soon(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit * wait::patience() {
        if holds() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    holds()
}
