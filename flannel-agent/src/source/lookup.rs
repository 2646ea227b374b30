//! Names of hosts, looked up. The system may take many seconds for one: a name server that
//! is away costs five. Nobody has to wait for that. A lookup goes on behind who asked for
//! it, and whoever asks next has its answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// So long an answer is of use that nobody waited for.
const FRESH: Duration = Duration::from_secs(30);

/// The addresses with the port 0, or why there are none. An IPv6 address of a link has
/// that with it.
type Found = Result<Vec<SocketAddr>, String>;

/// A lookup that nobody has taken the answer of.
#[derive(Clone)]
struct Lookup {
    began: Instant,
    /// The answer, and when it came.
    found: watch::Receiver<Option<(Instant, Found)>>,
}

/// By name. One name has one lookup, whoever asks: the system has one resolver.
static UNDER_WAY: Mutex<BTreeMap<String, Lookup>> = Mutex::new(BTreeMap::new());

/// The addresses of a host, if they are known within `limit` after their lookup began.
///
/// # Errors
/// Why not, in words.
pub(super) async fn addresses(host: &str, limit: Duration) -> Found {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, 0).into()]);
    }
    within(host, limit, system(host.to_owned())).await
}

async fn system(host: String) -> Found {
    match tokio::net::lookup_host((host.as_str(), 0)).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(format!("{host} cannot be resolved: {error}")),
    }
}

/// The answer of the lookup that is under way, or of `new`.
async fn within(
    host: &str,
    limit: Duration,
    new: impl Future<Output = Found> + Send + 'static,
) -> Found {
    let Lookup { began, mut found } = join(host, new);
    let left = limit.saturating_sub(began.elapsed());
    let answer = match timeout(left, found.wait_for(Option::is_some)).await {
        Ok(Ok(answer)) => answer.as_ref().map(|(_, answer)| answer.clone()),
        Ok(Err(_)) => None,
        Err(_) => {
            let seconds = limit.as_secs();
            return Err(format!("{host} cannot be resolved: no answer within {seconds} s"));
        }
    };
    under_way().remove(host);
    answer.unwrap_or_else(|| Err(format!("{host} cannot be resolved: the lookup ended")))
}

/// Joins the lookup of this host; begins one if there is none whose answer is of use.
fn join(host: &str, new: impl Future<Output = Found> + Send + 'static) -> Lookup {
    let mut all = under_way();
    if let Some(lookup) = all.get(host).filter(|lookup| lookup.is_of_use()) {
        return lookup.clone();
    }
    let (tell, found) = watch::channel(None);
    tokio::spawn(async move {
        let answer = new.await;
        let _ = tell.send(Some((Instant::now(), answer)));
    });
    let lookup = Lookup { began: Instant::now(), found };
    all.insert(host.to_owned(), lookup.clone());
    lookup
}

impl Lookup {
    fn is_of_use(&self) -> bool {
        match &*self.found.borrow() {
            Some((came, _)) => came.elapsed() < FRESH,
            None => self.found.has_changed().is_ok(),
        }
    }
}

fn under_way() -> MutexGuard<'static, BTreeMap<String, Lookup>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A lookup that takes so many seconds, and finds an address that ends so.
    async fn slow(seconds: u32, end: u8) -> Found {
        sleep(SECOND * seconds).await;
        Ok(vec![(Ipv4Addr::new(192, 0, 2, end), 0).into()])
    }

    fn address(found: Found) -> String {
        found.map_or_else(|why| why, |all| all[0].ip().to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_waits_no_longer_than_the_limit_and_who_asks_next_has_the_answer() {
        let host = "slow.example";
        let none = "slow.example cannot be resolved: no answer within 1 s";
        let began = Instant::now();
        assert_eq!(address(within(host, SECOND, slow(6, 1)).await), none);
        assert_eq!(began.elapsed(), SECOND);
        // It has had its second.
        assert_eq!(address(within(host, SECOND, slow(6, 2)).await), none);
        assert_eq!(began.elapsed(), SECOND);
        sleep(SECOND * 6).await;
        assert_eq!(address(within(host, SECOND, slow(6, 3)).await), "192.0.2.1");
        assert_eq!(address(within(host, SECOND, slow(0, 4)).await), "192.0.2.4");
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_answer_is_not_taken() {
        let host = "old.example";
        assert!(within(host, SECOND, slow(2, 1)).await.is_err());
        sleep(SECOND * 60).await;
        assert_eq!(address(within(host, SECOND, slow(0, 2)).await), "192.0.2.2");
    }

    #[tokio::test]
    async fn a_lookup_that_ended_with_its_runtime_is_begun_anew() {
        let host = "gone.example";
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let asked = within(host, Duration::ZERO, slow(600, 1));
            assert!(runtime.unwrap().block_on(asked).is_err());
        })
        .join()
        .unwrap();
        assert_eq!(address(within(host, SECOND, slow(0, 2)).await), "192.0.2.2");
    }

    #[tokio::test]
    async fn addresses_are_not_looked_up() {
        assert_eq!(address(addresses("192.0.2.7", Duration::ZERO).await), "192.0.2.7");
        assert_eq!(address(addresses("fd00::7", Duration::ZERO).await), "fd00::7");
        let of_link = addresses("fe80::7%lo", SECOND).await.unwrap();
        assert_eq!(of_link[0].to_string(), "[fe80::7%1]:0", "lo is the first of all");
    }
}
