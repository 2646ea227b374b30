//! Asks the store, and looks at the files for it.

use std::time::{Duration, Instant, SystemTime};

use flannel_core::check::facts::{Certificate, Known, StoreAnswer, StoreFault, Unknown};

use crate::commands::known::held;
use crate::source::options::{EtcdApi, EtcdOptions};
use crate::source::store::Store;
use crate::source::{LeaseSource as _, SourceError, certificates};

/// How long etcd may take for everything.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the store answers, and how many seconds its clock is ahead of ours.
pub(super) async fn ask(
    options: EtcdOptions,
    api: EtcdApi,
) -> (Result<StoreAnswer, StoreFault>, Known<i64>) {
    let store = match Store::connect(options, api).await {
        Ok(store) => store,
        Err(error) => {
            return (Err(fault(error)), Err(Unknown::because("etcd cannot be asked")));
        }
    };
    let listed = async {
        store.config().await?;
        let start = Instant::now();
        let (leases, _) = store.list().await?;
        Ok::<_, SourceError>((start.elapsed(), leases))
    };
    let answer = match tokio::time::timeout(PATIENCE, listed).await {
        Ok(Ok((took, leases))) => Ok(StoreAnswer {
            millis: took.as_millis().try_into().unwrap_or(u64::MAX),
            leases: leases.iter().map(held).collect(),
        }),
        Ok(Err(error)) => Err(fault(error)),
        Err(_) => {
            let why = format!("no answer within {} s", PATIENCE.as_secs());
            Err(StoreFault::Unavailable(Unknown::because(why)))
        }
    };
    let ahead = tokio::time::timeout(PATIENCE, store.clock_ahead()).await.ok().flatten();
    (answer, ahead.ok_or_else(|| Unknown::because("etcd does not tell the time")))
}

fn fault(error: SourceError) -> StoreFault {
    let why = Unknown::because(&error);
    if error.is_of_config() { StoreFault::Config(why) } else { StoreFault::Unavailable(why) }
}

/// The certificates that the options name.
pub(super) async fn certificates(options: &EtcdOptions) -> Vec<Certificate> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let ends = certificates::ends(options).await;
    ends.into_iter()
        .map(|(path, end)| Certificate {
            path,
            seconds_left: end.map(|end| end - now).map_err(Unknown::because),
        })
        .collect()
}
