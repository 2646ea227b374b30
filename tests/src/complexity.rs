//! What the programs cost the verifier, in a table that is kept with the
//! object.
//!
//! A row is a program: its name, its instructions, and for each kernel how many
//! instructions that kernel's verifier went through (`verified_insns` of
//! `bpf_prog_info`, since Linux 5.16). The first follows from the object, the
//! second also from the kernel: its limit is a million.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::Map;
use aya::programs::{SchedClassifier, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use aya_obj::Object;
use flannel_agent::bpf::monitor::{self, Monitor};
use flannel_agent::bpf::unless_interrupted;
use flannel_ebpf::abi::{map, program};
use flannel_ebpf::monitor::{HOOKS, Settings, watcher};

/// Path of the committed object.
pub const OBJECT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../flannel-ebpf/prebuilt/flannel-ebpf.bpf.o");
/// Path of the monitor's committed object.
pub const MONITOR: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../flannel-ebpf/prebuilt/flannel-monitor.bpf.o");
/// Path of the committed table.
pub const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../flannel-ebpf/prebuilt/COMPLEXITY");

/// The two words of a table's first column that are no program.
const HEAD: [&str; 2] = ["program", "instructions"];

/// What one program costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Instructions, with those of the functions that it calls.
    pub instructions: usize,
    /// Instructions that the verifier went through, by kernel release ("6.1").
    pub verified: BTreeMap<String, u32>,
}

/// Costs by program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(pub BTreeMap<String, Cost>);

impl Table {
    /// Reads a table as [`fmt::Display`] writes it, or several, one behind
    /// another.
    ///
    /// # Errors
    /// A line has another form.
    pub fn parse(text: &str) -> Result<Self> {
        let mut table = Self::default();
        let mut kernels: Option<Vec<&str>> = None;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<_> = line.split_whitespace().collect();
            if let Some(names) = words.strip_prefix(&HEAD) {
                kernels = Some(names.to_vec());
                continue;
            }
            let Some(kernels) = &kernels else { bail!("no head: {line:?}") };
            let [name, instructions, verified @ ..] = &words[..] else { bail!("{line:?}") };
            let mut cost = Cost { instructions: instructions.parse()?, ..Cost::default() };
            for (kernel, count) in kernels.iter().zip(verified) {
                if *count != "-" {
                    cost.verified
                        .insert((*kernel).to_owned(), count.parse().context(line.to_owned())?);
                }
            }
            table.merge(Self(BTreeMap::from([((*name).to_owned(), cost)])));
        }
        if kernels.is_none() {
            bail!("no head");
        }
        Ok(table)
    }

    /// Takes over what `other` knows; of the verifier's counts, those of
    /// kernels that are not in `other` stay.
    pub fn merge(&mut self, other: Table) {
        for (name, cost) in other.0 {
            let known = self.0.entry(name).or_default();
            known.instructions = cost.instructions;
            known.verified.extend(cost.verified);
        }
    }

    fn kernels(&self) -> Vec<&str> {
        let all: BTreeSet<&str> =
            self.0.values().flat_map(|cost| cost.verified.keys().map(String::as_str)).collect();
        let mut all: Vec<_> = all.into_iter().collect();
        let number = |text: &str| text.parse::<u32>().unwrap_or(0);
        all.sort_by_key(|name| name.split('.').map(number).collect::<Vec<_>>());
        all
    }

    /// What differs between this, the committed table, and what was measured
    /// on the kernel `release`; `margin` is the part (0..=1) by which the
    /// verifier's counts may differ. One line each.
    pub fn differences(&self, measured: &Table, release: &str, margin: f64) -> Vec<String> {
        let mut found = Vec::new();
        for name in self.0.keys().filter(|name| !measured.0.contains_key(*name)) {
            found.push(format!("{name}: the object has no such program"));
        }
        for (name, now) in &measured.0 {
            let Some(known) = self.0.get(name) else {
                found.push(format!("{name}: not in the table"));
                continue;
            };
            if known.instructions != now.instructions {
                found.push(format!(
                    "{name}: {} instructions in the table, {} in the object",
                    known.instructions, now.instructions
                ));
            }
            let (Some(was), Some(is)) = (known.verified.get(release), now.verified.get(release))
            else {
                continue;
            };
            let share = f64::from(is.abs_diff(*was)) / f64::from(*was).max(1.0);
            if share > margin {
                found.push(format!(
                    "{name}: Linux {release} verified {was} instructions when the table was made, \
                     now {is} ({:.1} % apart, {:.1} % allowed)",
                    share * 100.0,
                    margin * 100.0
                ));
            }
        }
        found
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernels = self.kernels();
        writeln!(formatter, "# Instructions of each program, and how many the verifiers of these")?;
        writeln!(formatter, "# kernels go through. Written by `cargo xtask complexity`.")?;
        let row = |formatter: &mut fmt::Formatter<'_>, name: &str, cells: &[String]| {
            write!(formatter, "{name:<16}")?;
            cells.iter().try_for_each(|cell| write!(formatter, "{cell:>14}"))?;
            writeln!(formatter)
        };
        let head = [HEAD[1]].into_iter().chain(kernels.iter().copied()).map(str::to_owned);
        row(formatter, HEAD[0], &head.collect::<Vec<_>>())?;
        for (name, cost) in &self.0 {
            let verified = kernels.iter().map(|kernel| {
                cost.verified.get(*kernel).map_or_else(|| "-".to_owned(), u32::to_string)
            });
            let cells: Vec<_> =
                [cost.instructions.to_string()].into_iter().chain(verified).collect();
            row(formatter, name, &cells)?;
        }
        Ok(())
    }
}

/// The running kernel's release: "6.1" for 6.1.0-56-cloud-amd64.
///
/// # Errors
/// The kernel does not say.
pub fn release() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut parts = text.trim().split(['.', '-']);
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else { bail!("{text:?}") };
    Ok(format!("{major}.{minor}"))
}

/// Instructions of the object's programs, with those of the functions that they call.
fn instructions(bytes: &[u8]) -> Result<BTreeMap<String, usize>> {
    let mut object = Object::parse(bytes)?;
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&text)?;
    let count = |(name, program): (&String, &aya_obj::Program)| {
        let function = object.functions.get(&program.function_key()).context(name.clone())?;
        Ok((name.clone(), function.instructions.len()))
    };
    object.programs.iter().map(count).collect()
}

/// Loads the committed objects on the running kernel, attaches nothing to a device, and
/// asks what they cost. Watchers cost nothing where the kernel takes none.
///
/// # Errors
/// An object is missing or refused, or we are not root.
pub fn measure() -> Result<Table> {
    let bytes = std::fs::read(OBJECT).context(OBJECT)?;
    let release = release()?;
    let sizes = instructions(&bytes)?;
    let mut ebpf = EbpfLoader::new().load(&bytes)?;
    let mut table = BTreeMap::new();
    for name in program::ALL.into_iter().chain([program::FROM_WIRE]) {
        let instructions = *sizes.get(name).context(name)?;
        let loaded = ebpf.program_mut(name).context(name)?;
        if name == program::FROM_WIRE {
            let loaded: &mut Xdp = loaded.try_into()?;
            unless_interrupted(|| loaded.load()).with_context(|| format!("load {name}"))?;
        } else {
            let loaded: &mut SchedClassifier = loaded.try_into()?;
            loaded.load().with_context(|| format!("load {name}"))?;
        }
        let verified = loaded.info()?.verified_instruction_count();
        let verified = verified.map(|count| (release.clone(), count)).into_iter().collect();
        table.insert(name.to_owned(), Cost { instructions, verified });
    }
    let costs = match monitor::possible() {
        Ok(()) => watchers(&mut ebpf)?,
        Err(_) => BTreeMap::new(),
    };
    for (name, instructions) in instructions(&std::fs::read(MONITOR).context(MONITOR)?)? {
        let count = costs.get(&name).map(|count| (release.clone(), *count));
        table.insert(name, Cost { instructions, verified: count.into_iter().collect() });
    }
    Ok(Table(table))
}

/// What the monitor's programs cost at most, by their name, where they watch these.
fn watchers(ebpf: &mut Ebpf) -> Result<BTreeMap<String, u32>> {
    let mut taken = |name| match ebpf.take_map(name) {
        Some(Map::Array(data) | Map::PerCpuArray(data)) => Ok(data),
        _ => bail!("no map {name}"),
    };
    let (config, stats) = (taken(map::CFG)?, taken(map::STATS)?);
    let mut watching = Monitor::of(&config, stats, Settings::default())?;
    let watched = watching.attach().map_err(|error| {
        anyhow!("{error}\n{}", error.verifier_log.as_deref().unwrap_or_default())
    })?;
    if watched != HOOKS.len() {
        bail!("{watched} programs are watched");
    }
    let mut costs = BTreeMap::new();
    for found in loaded_programs().filter_map(Result::ok) {
        let count = found.verified_instruction_count();
        if let (Some(name @ (watcher::ENTERED | watcher::LEFT)), Some(count)) =
            (found.name_as_str(), count)
        {
            let most = costs.entry(name.to_owned()).or_insert(0);
            *most = count.max(*most);
        }
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# words\nprogram instructions 6.1 6.18\na 100 1000 900\nb 50 500 -\n";

    #[test]
    fn what_is_written_is_what_is_read() {
        let table = Table::parse(TEXT).unwrap();
        assert_eq!(Table::parse(&table.to_string()).unwrap(), table);
        assert_eq!(table.0["b"].verified.len(), 1);
        assert!(Table::parse("a 1 2\n").is_err());
        assert!(Table::parse("").is_err());
    }

    #[test]
    fn kernels_are_in_the_order_of_their_numbers() {
        let text = "program instructions 6.18 5.4 6.1\na 1 2 3 4\n";
        assert_eq!(Table::parse(text).unwrap().kernels(), ["5.4", "6.1", "6.18"]);
    }

    #[test]
    fn tables_behind_each_other_are_one() {
        let other = "program instructions 6.12\na 100 800\nb 50 400\n";
        let table = Table::parse(&format!("{TEXT}{other}")).unwrap();
        assert_eq!(table.kernels(), ["6.1", "6.12", "6.18"]);
        assert_eq!((table.0["b"].verified["6.1"], table.0["b"].verified["6.12"]), (500, 400));
    }

    #[test]
    fn differences_are_named() {
        let committed = Table::parse(TEXT).unwrap();
        let measured =
            |text: &str| Table::parse(&format!("program instructions 6.1\n{text}")).unwrap();
        let found = |text: &str| committed.differences(&measured(text), "6.1", 0.1);
        assert_eq!(found("a 100 1099\nb 50 450\n"), Vec::<String>::new());
        assert!(found("a 100 1101\nb 50 500\n")[0].contains("10.1 % apart"));
        assert!(found("a 101 1000\nb 50 500\n")[0].contains("100 instructions in the table, 101"));
        assert_eq!(found("a 100 1000\n"), ["b: the object has no such program"]);
        assert_eq!(found("a 100 1000\nb 50 500\nc 1 1\n"), ["c: not in the table"]);
        // A kernel that the table does not know has only instructions to compare.
        assert!(committed.differences(&committed, "5.4", 0.0).is_empty());
    }

    #[test]
    fn other_kernels_counts_stay() {
        let mut table = Table::parse(TEXT).unwrap();
        table.merge(Table::parse("program instructions 6.1\na 101 1010\n").unwrap());
        assert_eq!(table.0["a"].instructions, 101);
        assert_eq!((table.0["a"].verified["6.1"], table.0["a"].verified["6.18"]), (1010, 900));
    }
}
