//! What an operator should look at after a failed call of etcd.

/// What an operator should look at after `cause`.
pub(super) fn hint(cause: &str) -> &'static str {
    const HINTS: [(&[&str], &str); 16] = [
        (&["restart the agent"], "see --etcd-endpoints"),
        (
            &["closed the connection at the TLS handshake"],
            "does it want http:// instead of https://, or another --etcd-certfile?",
        ),
        (&["does not answer by TLS"], "is it http:// instead of https:// in --etcd-endpoints?"),
        (&["it answers by TLS"], "does it want https:// instead of http:// in --etcd-endpoints?"),
        (
            &["to gRPC"],
            "does it want https:// instead of http://, or is it another server than etcd with the v3 API?",
        ),
        (
            &["CertificateRequired", "certificate required"],
            "etcd asks for a client certificate it trusts: see --etcd-certfile and --etcd-keyfile",
        ),
        (
            &["HandshakeFailure"],
            "etcd has no certificate of a kind that is supported here (RSA, ECDSA P-256 or P-384, Ed25519), or wants a client certificate: see --etcd-certfile",
        ),
        (
            &["received fatal alert"],
            "etcd refused the TLS handshake: see --etcd-certfile and --etcd-keyfile",
        ),
        (
            &["invalid peer certificate", "UnknownIssuer", "certificate"],
            "etcd's certificate is not trusted: see --etcd-cafile and the names in the certificate",
        ),
        (
            &["authentication failed", "user name is empty", "invalid auth token"],
            "see --etcd-username, --etcd-password-file and --etcd-password",
        ),
        (
            &["Insufficient credentials"],
            "see --etcd-username and --etcd-password, and the user's rights below --etcd-prefix",
        ),
        (&["v2 API is off"], "start etcd with --enable-v2, or use its v3 API: see --etcd-api"),
        (&["permission denied"], "grant the etcd user read and write below --etcd-prefix"),
        (&["database space exceeded"], "etcd is full: compact, defragment, and disarm the alarm"),
        (&["no leader", "request timed out"], "etcd has no quorum"),
        (
            &["unknown service", "Unimplemented"],
            "is it an etcd with the v3 API that listens there?",
        ),
    ];
    let closed = ["connection closed", "reset by peer", "roken pipe"];
    if closed.iter().any(|word| cause.contains(word)) {
        return if cause.contains("https://") {
            // TLS 1.3 refuses a client's certificate only after the handshake.
            "etcd closed the TLS connection: see --etcd-certfile and --etcd-keyfile"
        } else {
            "is etcd running, and does it want https:// instead of http://?"
        };
    }
    HINTS
        .iter()
        .find(|(words, _)| words.iter().any(|word| cause.contains(word)))
        .map_or("is etcd running and reachable at --etcd-endpoints?", |(_, hint)| hint)
}
