//! Keys and URLs as people write them, by both APIs.

use super::*;

async fn at(etcd: &Etcd, api: EtcdApi, url: &str, prefix: &str) -> Store {
    let url = url.replace("127.0.0.1:0", etcd.url().trim_start_matches("http://"));
    let options = EtcdOptions { prefix: prefix.to_owned(), ..options(&url) };
    Store::connect(options, api).await.unwrap()
}

#[tokio::test]
async fn prefixes_and_schemes_are_read_as_go_reads_them() {
    for api in APIS {
        let etcd = Etcd::start().await;
        Keys::by(api, &etcd).put(&format!("{PREFIX}/config"), CONFIG).await;
        for (url, prefix) in [
            ("HTTP://127.0.0.1:0", "//coreos.com//network"),
            ("Http://127.0.0.1:0/", "/coreos.com/./network/"),
            ("127.0.0.1:0", "/coreos.com/other/../network"),
        ] {
            let store = at(&etcd, api, url, prefix).await;
            let config = store.config().await.unwrap();
            store.acquire(&config, &claim(11)).await.unwrap();
        }
        assert_eq!(Keys::by(api, &etcd).subnets().await.len(), 1, "always under the same key");
    }
}

#[tokio::test]
async fn what_is_there_in_place_of_a_config_is_named() {
    let etcd = Etcd::start().await;
    let told = async |api, prefix: &str| {
        let store = at(&etcd, api, "http://127.0.0.1:0", prefix).await;
        store.config().await.unwrap_err().to_string()
    };
    let client = etcd.client().await;
    for key in ["coreos.com/network/config", "/with/slash/config"] {
        client.kv_client().put(key, CONFIG, None).await.unwrap();
    }
    let text = told(EtcdApi::V3, PREFIX).await;
    assert!(text.contains("there is a key coreos.com/network/config"), "{text}");
    let text = told(EtcdApi::V3, "with/slash").await;
    assert!(text.contains("there is a key /with/slash/config"), "{text}");
    let text = told(EtcdApi::V3, "/with/slash/config").await;
    let hint = "a value at /with/slash/config itself: --etcd-prefix is without /config";
    assert!(text.contains(hint), "{text}");
    // v2 has no keys without.
    Keys::by(EtcdApi::V2, &etcd).put("/plain/config", CONFIG).await;
    at(&etcd, EtcdApi::V2, "http://127.0.0.1:0", "plain").await.config().await.unwrap();

    Keys::by(EtcdApi::V2, &etcd).put("/directory/config/Network", "10.5.0.0/16").await;
    let text = told(EtcdApi::V2, "/directory").await;
    assert!(text.contains("it is a directory"), "{text}");

    for api in APIS {
        for network in ["blue", "red"] {
            Keys::by(api, &etcd).put(&format!("/many/{network}/config"), CONFIG).await;
            let lease = format!("/many/{network}/subnets/10.5.1.0-24");
            Keys::by(api, &etcd).put(&lease, &value(1)).await;
        }
        let text = told(api, "/many").await;
        assert!(text.contains("-networks") && text.contains("/many/blue, /many/red"), "{text}");
    }
}
