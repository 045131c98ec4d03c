//! What becomes of a bundle that answers no more: its last requests end, its index is closed, its memory comes back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use expandr_index::Index;

use crate::bundle::Bundle;

/// Between two looks at who still holds it.
const LOOK: Duration = Duration::from_millis(5);

/// Waits for the last request of `old`, closes its index unless that is `kept`, and drops everything. After `timeout` it is
/// left to its last holder.
pub(super) async fn retire(old: Arc<Bundle>, kept: &Arc<Index>, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    let id = old.id.clone();
    let Some(bundle) = alone(old, deadline).await else {
        tracing::warn!(bundle = %id, "a request still holds the old bundle; its memory comes back with that one's end");
        return;
    };
    let Bundle { index, encoder, expander, .. } = bundle;
    // Their threads end with their last holder; dropping may block.
    let dropping = tokio::task::spawn_blocking(move || drop((encoder, expander)));
    if let Err(error) = dropping.await {
        tracing::error!(%error, "dropping the old models broke");
    }
    if Arc::ptr_eq(&index, kept) {
        return;
    }
    let Some(index) = alone(index, deadline).await else {
        tracing::warn!(bundle = %id, "somebody still reads the old index; it is closed with that one's end");
        return;
    };
    match tokio::task::spawn_blocking(move || index.close()).await {
        Ok(Ok(())) => tracing::debug!(bundle = %id, "the old bundle is gone"),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the old index is closed, and its next opening will take longer")
        }
        Err(error) => tracing::error!(%error, "closing the old index broke"),
    }
}

/// The value, once nobody else holds it; none after `deadline`.
async fn alone<T>(mut value: Arc<T>, deadline: Instant) -> Option<T> {
    loop {
        match Arc::try_unwrap(value) {
            Ok(alone) => return Some(alone),
            Err(shared) if Instant::now() < deadline => value = shared,
            Err(_) => return None,
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_for_the_last_holder_and_no_longer_than_it_may() {
        let value = Arc::new(1);
        let held = value.clone();
        let holder = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            drop(held);
        });
        assert_eq!(alone(value, Instant::now() + Duration::from_secs(5)).await, Some(1));
        holder.await.unwrap();
        let value = Arc::new(2);
        let _held = value.clone();
        assert_eq!(alone(value, Instant::now() + Duration::from_millis(20)).await, None);
    }
}
