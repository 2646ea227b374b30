//! `%` and a letter in units: names of the unit, of the node, and of folders of the system.

/// Of a unit of the system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Specifiers {
    /// Its name with the suffix.
    unit: String,
    /// The node's name, where it is known.
    host: Option<String>,
}

impl Specifiers {
    /// Of the unit with this name, on the node with that one.
    pub fn new(unit: &str, host: Option<&str>) -> Self {
        Self { unit: unit.to_owned(), host: host.map(str::to_owned) }
    }

    /// A text with the values of its specifiers. Those that are not known stay, as with
    /// systemd: a `%` at the end, or before another letter.
    pub fn expanded(&self, text: &str) -> String {
        let (mut expanded, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once('%') {
            expanded.push_str(before);
            let mut letters = after.chars();
            let letter = letters.next();
            match letter.and_then(|letter| self.value(letter)) {
                Some(value) => {
                    expanded.push_str(&value);
                    rest = letters.as_str();
                }
                None => {
                    expanded.push('%');
                    expanded.extend(letter);
                    rest = letters.as_str();
                }
            }
        }
        expanded + rest
    }

    fn value(&self, letter: char) -> Option<String> {
        let name = self.unit.rsplit_once('.').map_or(self.unit.as_str(), |(name, _)| name);
        let (prefix, instance) = name.split_once('@').unwrap_or((name, ""));
        let host = self.host.as_deref();
        let value = match letter {
            '%' => "%",
            'n' => &self.unit,
            'N' => name,
            'p' => prefix,
            'P' => return Some(unescaped(prefix)),
            'i' => instance,
            'I' => return Some(unescaped(instance)),
            'j' => last_part(prefix),
            'J' => return Some(unescaped(last_part(prefix))),
            'H' => host?,
            'l' => host?.split('.').next()?,
            // Of the system's manager, which runs as root.
            'h' => "/root",
            'u' | 'g' => "root",
            'U' | 'G' => "0",
            't' => "/run",
            'S' => "/var/lib",
            'C' => "/var/cache",
            'L' => "/var/log",
            'E' => "/etc",
            'T' => "/tmp",
            'V' => "/var/tmp",
            _ => return None,
        };
        Some(value.to_owned())
    }
}

/// What follows the last dash.
fn last_part(prefix: &str) -> &str {
    prefix.rsplit_once('-').map_or(prefix, |(_, last)| last)
}

/// A name without the escapes of `systemd-escape`.
fn unescaped(name: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), name.as_bytes());
    while let [first, after @ ..] = rest {
        let code = after.strip_prefix(b"x").and_then(|after| after.get(..2));
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match (first, code.and_then(|code| u8::from_str_radix(code, 16).ok())) {
            (b'\\', Some(code)) => {
                bytes.push(code);
                rest = &after[3..];
            }
            (b'-', _) => {
                bytes.push(b'/');
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_for_names_and_folders() {
        let agent = Specifiers::new("flannel-agent.service", Some("node1.lan"));
        let all = "%n %N %p %P %i|%I %j %J %H %l %h %u%U %g%G %t %S %C %L %E %T %V %%n";
        assert_eq!(
            agent.expanded(all),
            "flannel-agent.service flannel-agent flannel-agent flannel/agent | agent agent \
             node1.lan node1 /root root0 root0 /run /var/lib /var/cache /var/log /etc /tmp \
             /var/tmp %n"
        );
        let of_template = Specifiers::new("flanneld@a\\x2db-c.service", None);
        assert_eq!(
            of_template.expanded("%p %i %I %n"),
            "flanneld a\\x2db-c a-b/c flanneld@a\\x2db-c.service"
        );
        assert_eq!(of_template.expanded("%H %Z \u{e4}%\u{e4} %"), "%H %Z \u{e4}%\u{e4} %");
    }
}
