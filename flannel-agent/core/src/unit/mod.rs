//! How systemd starts a service, by its unit file, drop-ins and environment files.

pub mod environment;
pub mod glob;
pub mod specifiers;
mod words;

use std::collections::BTreeMap;

use self::specifiers::Specifiers;

/// The variables of a service.
pub type Variables = BTreeMap<String, String>;

/// An `EnvironmentFile=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentFile {
    /// Its path, or a pattern of several ([`glob`]).
    pub path: String,
    /// It may be absent.
    pub optional: bool,
}

/// What says how a service is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// `Environment=`.
    pub variables: Variables,
    /// `EnvironmentFile=`; these go before `variables`.
    pub files: Vec<EnvironmentFile>,
    /// `ExecStart=`.
    pub command: Option<String>,
    /// What `%` and a letter stand for in all of these.
    pub specifiers: Specifiers,
}

impl Start {
    /// Of a unit of which nothing is known yet.
    pub fn of(specifiers: Specifiers) -> Self {
        Self { specifiers, ..Self::default() }
    }

    /// Adds what a unit file says, or a drop-in, which may take back what was said before.
    pub fn add(&mut self, text: &str) {
        let mut of_service = false;
        for line in lines(text) {
            if line.starts_with('[') {
                of_service = line == "[Service]";
            } else if let Some((key, value)) = line.split_once('=').filter(|_| of_service) {
                self.set(key.trim(), value.trim());
            }
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("Environment", "") => self.variables.clear(),
            ("Environment", value) => {
                let words = words::split(value);
                let words: Vec<String> =
                    words.iter().map(|word| self.specifiers.expanded(word)).collect();
                let pairs = words.iter().filter_map(|word| word.split_once('='));
                self.variables.extend(pairs.map(|(a, b)| (a.to_owned(), b.to_owned())));
            }
            ("EnvironmentFile", "") => self.files.clear(),
            ("EnvironmentFile", value) => {
                let path = value.strip_prefix('-').unwrap_or(value);
                let optional = path != value;
                let path = self.specifiers.expanded(path);
                self.files.push(EnvironmentFile { path, optional });
            }
            ("ExecStart", "") => self.command = None,
            ("ExecStart", value) => {
                self.command.get_or_insert(value.to_owned());
            }
            _ => {}
        }
    }

    /// The words of the command, the program first, with these variables. `flanneld-start`
    /// is told as the `flanneld` that it starts.
    pub fn words(&self, variables: &Variables) -> Vec<String> {
        let command = self.command.as_deref().unwrap_or_default();
        let command = command.trim_start_matches(['@', '-', ':', '+', '!']);
        let expanded = |word: &str| self.specifiers.expanded(word);
        let words = words::replaced(command, expanded, variables);
        match words.first() {
            Some(program) if program.ends_with("/flanneld-start") => started(words, variables),
            _ => words,
        }
    }
}

/// What `flanneld-start` starts: it gives names of Fedora's package to the flags.
fn started(words: Vec<String>, variables: &Variables) -> Vec<String> {
    let first = |names: [&str; 2]| {
        let values = names.iter().filter_map(|name| variables.get(*name));
        values.into_iter().find(|value| !value.is_empty())
    };
    let mut words = words.into_iter();
    let mut all: Vec<String> = words.by_ref().take(1).collect();
    let endpoints = first(["FLANNEL_ETCD_ENDPOINTS", "FLANNEL_ETCD"]);
    all.extend(endpoints.map(|value| format!("-etcd-endpoints={value}")));
    let prefix = first(["FLANNEL_ETCD_PREFIX", "FLANNEL_ETCD_KEY"]);
    all.extend(prefix.map(|value| format!("-etcd-prefix={value}")));
    all.extend(words);
    all
}

/// The lines of a unit file. A backslash at the end joins the next one; comments between
/// them do not count.
fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut begun = String::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        begun.push_str(line);
        if begun.ends_with('\\') {
            begun.pop();
            begun.push(' ');
        } else {
            lines.push(std::mem::take(&mut begun));
        }
    }
    lines.push(begun);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_in_adds_and_takes_back() {
        let mut start = Start::default();
        start.add(
            "[Unit]\nEnvironmentFile=/no\n[Service]\nEnvironment=A=b \"C=d e\"\n\
             EnvironmentFile=/a\n# x\nEnvironmentFile=-/b\nExecStart=/x \\\n# y\n  -y\n",
        );
        let file = |path: &str, optional| EnvironmentFile { path: path.to_owned(), optional };
        assert_eq!(start.files, [file("/a", false), file("/b", true)]);
        assert_eq!(start.variables["C"], "d e");
        assert_eq!(start.words(&Variables::new()), ["/x", "-y"]);
        start.add("[Service]\nEnvironmentFile=\nEnvironmentFile=/c\nExecStart=\nExecStart=-/z\n");
        assert_eq!(start.files, [file("/c", false)]);
        assert_eq!(start.words(&Variables::new()), ["/z"]);
    }

    #[test]
    fn specifiers_are_put_in_after_words_are_split() {
        let specifiers = Specifiers::new("flanneld@a\\x20b-c.service", Some("node 1.lan"));
        let mut start = Start::of(specifiers);
        start.add(
            "[Service]\nEnvironment=A=%H \"B=%p\" C=100%%\nEnvironmentFile=-%E/%N.env\n\
             ExecStart=/bin/%p --name=%H -i %I $A ${C} %t/x %S %h %Z %\n",
        );
        let file = "/etc/flanneld@a\\x20b-c.env";
        assert_eq!(start.files, [EnvironmentFile { path: file.to_owned(), optional: true }]);
        assert_eq!([&start.variables["A"], &start.variables["B"]], ["node 1.lan", "flanneld"]);
        let words = start.words(&start.variables);
        let values = ["/bin/flanneld", "--name=node 1.lan", "-i", "a b/c", "node", "1.lan"];
        assert_eq!(words[..6], values);
        assert_eq!(words[6..], ["100%", "/run/x", "/var/lib", "/root", "%Z", "%"]);
    }

    #[test]
    fn the_names_of_fedora_are_those_of_its_script() {
        let start = |command: &str| Start { command: Some(command.to_owned()), ..Start::default() };
        let pairs = [("FLANNEL_ETCD", "http://old"), ("FLANNEL_ETCD_PREFIX", "/x"), ("O", "-a -b")];
        let mut variables: Variables =
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let script = start("/usr/bin/flanneld-start $O");
        let old = "-etcd-endpoints=http://old";
        let told = ["/usr/bin/flanneld-start", old, "-etcd-prefix=/x", "-a", "-b"];
        assert_eq!(script.words(&variables), told);
        variables.insert("FLANNEL_ETCD_ENDPOINTS".into(), "http://new".into());
        assert_eq!(script.words(&variables)[1], "-etcd-endpoints=http://new");
        let agent = start("/usr/bin/flannel-agent $O");
        assert_eq!(agent.words(&variables), ["/usr/bin/flannel-agent", "-a", "-b"]);
    }
}
