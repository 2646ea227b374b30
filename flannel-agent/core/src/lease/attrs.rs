//! The value under a lease's key, byte for byte as flannel writes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::backend::vxlan::VxlanData;
use crate::backend::{Misfit, Published, Told};
use crate::go_json::{Fields, Text};
use crate::mac::MacAddr;

/// What a node publishes about itself (flannel's `lease.LeaseAttrs`).
///
/// The order of the fields is the order of flannel's JSON.
/// It is read as Go reads it, keys in any case.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseAttrs {
    /// Underlay address.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// IPv6 underlay address; `null` when there is none, absent before v0.15.
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// Empty for the backends without one (udp, alloc).
    #[serde(rename = "BackendType", skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    /// Backend-specific, passed through as it is.
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<Box<RawValue>>,
    /// Backend-specific for IPv6, passed through as it is.
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<Box<RawValue>>,
    /// A question to the holder, by a node that was started with the same
    /// PublicIP: who lives writes the lease anew without it. Not flannel's,
    /// which ignores it.
    #[serde(rename = "AskedBy", skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
}

impl<'de> Deserialize<'de> for LeaseAttrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Fields::deserialize(deserializer)?;
        let raw = |field| fields.raw(field).map(ToOwned::to_owned);
        let public_ip = fields.read("PublicIP")?;
        let public_ip = public_ip.ok_or_else(|| D::Error::missing_field("PublicIP"))?;
        let backend_type = fields.read("BackendType")?.map(|Text(text)| text);
        Ok(Self {
            public_ip: ipv4(public_ip).map_err(D::Error::custom)?,
            public_ipv6: fields.read("PublicIPv6")?.map(ipv6),
            backend_type: backend_type.unwrap_or_default(),
            backend_data: raw("BackendData"),
            backend_v6_data: raw("BackendV6Data"),
            // flannel ignores this key: whatever else stands there is no question.
            asked_by: fields.read::<_, D::Error>("AskedBy").ok().flatten(),
        })
    }
}

/// An address as flannel's IPv4 type takes it: mapped to IPv6, too.
fn ipv4(address: IpAddr) -> Result<Ipv4Addr, String> {
    match address.to_canonical() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(format!("PublicIP: {address} is no IPv4 address")),
    }
}

/// An address as flannel's IPv6 type takes it: IPv4, too.
fn ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

impl PartialEq for LeaseAttrs {
    fn eq(&self, other: &Self) -> bool {
        fn text(raw: &Option<Box<RawValue>>) -> Option<&str> {
            raw.as_deref().map(RawValue::get)
        }
        self.public_ip == other.public_ip
            && self.public_ipv6 == other.public_ipv6
            && self.backend_type == other.backend_type
            && text(&self.backend_data) == text(&other.backend_data)
            && text(&self.backend_v6_data) == text(&other.backend_v6_data)
            && self.asked_by == other.asked_by
    }
}

/// The value under a lease's key cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("its value is no lease: {0}")]
pub struct NoLease(#[from] serde_json::Error);

impl LeaseAttrs {
    /// Reads the value under a lease's key.
    ///
    /// # Errors
    /// It is not JSON, or lacks an IPv4 address as PublicIP.
    pub fn parse(value: &str) -> Result<Self, NoLease> {
        Ok(serde_json::from_str(value)?)
    }

    /// What a node publishes with this PublicIP and what its backend tells.
    pub fn new(public_ip: Ipv4Addr, published: Published) -> Self {
        Self {
            public_ip,
            public_ipv6: None,
            backend_type: published.backend_type,
            backend_data: published.data,
            backend_v6_data: None,
            asked_by: None,
        }
    }

    /// What a node with the VXLAN backend publishes.
    pub fn vxlan(public_ip: Ipv4Addr, vni: u32, vtep_mac: MacAddr) -> Self {
        Self::new(public_ip, VxlanData { vni, vtep_mac }.published())
    }

    /// What it says of the backend.
    pub fn told(&self) -> Told<'_> {
        Told { backend_type: &self.backend_type, data: self.backend_data.as_deref() }
    }

    /// The same without a question.
    pub fn unasked(&self) -> Self {
        Self { asked_by: None, ..self.clone() }
    }

    /// The VTEP that a VXLAN lease tells of.
    ///
    /// # Errors
    /// When it is another backend's lease, or `BackendData` is unusable.
    pub fn vtep(&self) -> Result<VxlanData, Misfit> {
        VxlanData::read(self.told())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    const VXLAN_VALUE: &str = r#"{"PublicIP":"10.99.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"72:35:2e:f2:e7:c9"}}"#;
    const DUAL_VALUE: &str = r#"{"PublicIP":"10.99.0.11","PublicIPv6":"fd99::11","BackendType":"vxlan","BackendData":{"VNI":77,"VtepMAC":"36:35:a1:58:5e:eb"},"BackendV6Data":{"VNI":77,"VtepMAC":"42:78:20:21:b9:92"}}"#;
    const HOST_GW_VALUE: &str =
        r#"{"PublicIP":"10.99.0.11","PublicIPv6":null,"BackendType":"host-gw"}"#;
    const UDP_VALUE: &str = r#"{"PublicIP":"10.99.0.11","PublicIPv6":null}"#;
    const V0_11_VALUE: &str = r#"{"PublicIP":"10.99.0.21","BackendType":"vxlan","BackendData":{"VtepMAC":"86:19:70:bb:1f:c5"}}"#;

    fn mac(text: &str) -> MacAddr {
        text.parse().unwrap()
    }

    fn attrs(text: &str) -> LeaseAttrs {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_vxlan_lease_is_written_as_flannel_writes_it() {
        let ours = LeaseAttrs::vxlan(Ipv4Addr::new(10, 99, 0, 11), 1, mac("72:35:2e:f2:e7:c9"));
        assert_eq!(serde_json::to_string(&ours).unwrap(), VXLAN_VALUE);
        assert_eq!(attrs(VXLAN_VALUE), ours);
    }

    #[test]
    fn the_other_backends_leases_are_written_as_flannel_writes_them() {
        let public_ip = Ipv4Addr::new(10, 99, 0, 11);
        let text = |attrs: &LeaseAttrs| serde_json::to_string(attrs).unwrap();
        let host_gw = Backend::HostGw.facts().publishes(MacAddr::default());
        assert_eq!(text(&LeaseAttrs::new(public_ip, host_gw)), HOST_GW_VALUE);
        assert_eq!(text(&LeaseAttrs::new(public_ip, Published::default())), UDP_VALUE);
    }

    #[test]
    fn values_read_are_written_back_unchanged() {
        for text in [VXLAN_VALUE, DUAL_VALUE, HOST_GW_VALUE, UDP_VALUE] {
            assert_eq!(serde_json::to_string(&attrs(text)).unwrap(), text);
        }
    }

    #[test]
    fn the_form_of_v0_11_is_read() {
        let old = attrs(V0_11_VALUE);
        assert_eq!(old.public_ip, Ipv4Addr::new(10, 99, 0, 21));
        assert_eq!(old.public_ipv6, None);
        let vtep = old.vtep().unwrap();
        assert_eq!(vtep, VxlanData { vni: 0, vtep_mac: mac("86:19:70:bb:1f:c5") });
    }

    #[test]
    fn keys_are_read_in_any_case_and_the_last_counts() {
        let text = r#"{"publicip":"10.99.0.9","PUBLICIP":"10.99.0.11","backendtype":"vxlan",
            "BackendDATA":{"vni":1,"vtepmac":"7235.2ef2.e7c9"},"publicIP":null}"#;
        let read = attrs(text);
        assert_eq!(read.public_ip, Ipv4Addr::new(10, 99, 0, 11));
        assert_eq!(read.vtep().unwrap(), attrs(VXLAN_VALUE).vtep().unwrap());
        let error = serde_json::from_str::<LeaseAttrs>("{}").unwrap_err().to_string();
        assert!(error.contains("missing field `PublicIP`"), "{error}");
        let error = serde_json::from_str::<LeaseAttrs>(r#"{"PublicIP":7}"#).unwrap_err();
        assert!(error.to_string().contains("PublicIP"), "{error}");
        let error = LeaseAttrs::parse("").unwrap_err().to_string();
        assert!(error.starts_with("its value is no lease: EOF while parsing"), "{error}");
    }

    #[test]
    fn unknown_fields_do_no_harm() {
        for more in [r#""Later":[1,{"x":2}]"#, r#""\ud800":"\udc00""#, r#""AskedBy":{"x":5}"#] {
            let text = VXLAN_VALUE.replacen('{', &format!("{{{more},"), 1);
            assert_eq!(attrs(&text), attrs(VXLAN_VALUE), "{more}");
        }
    }

    #[test]
    fn addresses_are_read_as_gos_net_package_does() {
        let mapped = VXLAN_VALUE.replace("10.99.0.11", "::ffff:10.99.0.11");
        assert_eq!(attrs(&mapped), attrs(VXLAN_VALUE));
        let v6 = attrs(&UDP_VALUE.replace("null", r#""10.99.0.12""#)).public_ipv6;
        assert_eq!(v6, Some("::ffff:10.99.0.12".parse().unwrap()));
        for wrong in ["fd00::1", "10.99.0.011", " 10.99.0.11", "10.99.0.11/24", "::1%eth0", ""] {
            let text = UDP_VALUE.replace("10.99.0.11", wrong);
            let error = LeaseAttrs::parse(&text).unwrap_err().to_string();
            assert!(error.contains("PublicIP: "), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_vtep_of_the_dual_form_is_the_ipv4_one() {
        let vtep = attrs(DUAL_VALUE).vtep().unwrap();
        assert_eq!(vtep, VxlanData { vni: 77, vtep_mac: mac("36:35:a1:58:5e:eb") });
    }

    #[test]
    fn what_is_no_vtep_is_refused_with_its_cause() {
        let of = |backend: &str| format!(r#"{{"PublicIP":"10.99.0.11",{backend}}}"#);
        let cases = [
            (HOST_GW_VALUE.to_owned(), "BackendType is `host-gw`"),
            (UDP_VALUE.to_owned(), "BackendType is missing"),
            (of(r#""BackendType":"vxlan""#), "BackendData is missing"),
            (of(r#""BackendType":"vxlan","BackendData":{}"#), "missing field `VtepMAC`"),
            (of(r#""BackendType":"vxlan","BackendData":7"#), "`7` is not a VTEP"),
            (
                of(r#""BackendType":"vxlan","BackendData":{"VtepMAC":"nope"}"#),
                "`nope` is not a MAC address",
            ),
        ];
        for (text, cause) in cases {
            let error = attrs(&text).vtep().unwrap_err().to_string();
            assert!(error.contains(cause), "{text}: {error}");
        }
    }
}
