//! The matrix as people read it.

use comfy_table::{Table, presets};
use flannel_core::connectivity::{Matrix, Reach, WayKind};
use flannel_core::probe::Answer;

use crate::commands::terminal::{self, Colour};

pub(super) fn table(matrix: &Matrix) -> String {
    render(matrix, terminal::colours())
}

fn render(matrix: &Matrix, colours: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "STATE",
        "SUBNET",
        "PUBLIC IP",
        "WAY",
        "ICMP",
        "UDP",
        "TCP",
    ]);
    for peer in &matrix.peers {
        let answer =
            |answer: &Option<Answer>| answer.as_ref().map_or("-".to_owned(), ToString::to_string);
        let kind = match peer.way.kind {
            WayKind::Tunnel => "tunnel",
            WayKind::Direct => "direct",
            WayKind::None => "no route",
        };
        let way = match &peer.way.device {
            Some(device) => format!("{kind} by {device}"),
            None => kind.to_owned(),
        };
        table.add_row([
            word(peer.state).to_owned(),
            peer.subnet.to_string(),
            peer.public_ip.to_string(),
            way,
            peer.icmp.to_string(),
            answer(&peer.udp),
            answer(&peer.tcp),
        ]);
    }
    let words =
        [("reached", Colour::Green), ("partly", Colour::Yellow), ("unreached", Colour::Red)];
    let mut lines: Vec<String> =
        table.lines().map(|line| terminal::painted(line.trim_end(), &words, colours)).collect();
    lines.push(summary(matrix));
    if matrix.responders == 0 && !matrix.peers.is_empty() {
        lines.push(
            "no responder answered: only ICMP tells which peers are reached; start their \
             daemons with --connectivity-port for UDP and TCP"
                .to_owned(),
        );
    }
    if !matrix.daemon {
        lines.push("no daemon answered: the peers are those of the store".to_owned());
    }
    lines.join("\n")
}

fn summary(matrix: &Matrix) -> String {
    if matrix.known == 0 {
        return "no peer is known: no other node has a lease, or this one waits for its own"
            .to_owned();
    }
    format!(
        "{} of {} peers reached, {} partly, {} not; {} of {} known were tried",
        matrix.count(Reach::Reached),
        matrix.peers.len(),
        matrix.count(Reach::Partly),
        matrix.count(Reach::Unreached),
        matrix.peers.len(),
        matrix.known
    )
}

fn word(state: Reach) -> &'static str {
    match state {
        Reach::Reached => "reached",
        Reach::Partly => "partly",
        Reach::Unreached => "unreached",
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::connectivity::{PeerResult, Way};

    use super::*;

    #[test]
    fn the_table_says_what_was_tested() {
        let peer = PeerResult {
            subnet: "10.5.7.0/24".parse().unwrap(),
            public_ip: [192, 0, 2, 7].into(),
            address: [10, 5, 7, 0].into(),
            way: Way { device: Some("flannel.1".into()), kind: WayKind::Tunnel },
            icmp: Answer::Came { micros: 412 },
            udp: Some(Answer::Silent),
            tcp: None,
            state: Reach::Reached,
        };
        let text = render(&Matrix::new(false, 5, vec![peer]), false);
        for part in ["10.5.7.0/24", "tunnel by flannel.1", "0.412 ms", "no answer", "1 of 5 known"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.contains("only ICMP tells") && text.contains("no daemon"), "{text}");
    }
}
