//! Waiting on the bus for another agent, as the kit's agents do that run while agentd is restarted.

use std::time::Duration;

use agentd_bus::client::{Client, ClientError};
use agentd_bus::topic::PEERS_TOPIC;

/// Without news of the others the call is made again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Calls until the other agent is there: after a restart of agentd it may come back later than this one.
///
/// # Errors
///
/// The call's, where it says neither that agentd is between two lives nor anything about the other agent; and when the
/// client can't hear of comings.
pub fn until_there<T>(
    client: &Client,
    mut call: impl FnMut() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    // Before the first try, so that no coming falls between.
    let peers = client.subscribe(PEERS_TOPIC)?;
    loop {
        match call() {
            Ok(done) => return Ok(done),
            Err(error) if error.is_retryable() => {}
            Err(error) if error.status().is_some() => {
                peers.next(LOOK_AGAIN);
            }
            Err(error) => return Err(error),
        }
    }
}
