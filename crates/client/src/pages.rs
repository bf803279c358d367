//! Listings, page by page.

use std::collections::VecDeque;

use anchorhold_proto::v1;

use crate::{Client, ClientError};

/// A listing of anchors that fetches its pages as they are needed.
#[derive(Debug)]
pub struct AnchorPages {
    client: Client,
    request: v1::ListAnchorsRequest,
    page: VecDeque<v1::Anchor>,
    is_at_end: bool,
}

impl AnchorPages {
    pub(crate) fn new(client: Client, request: v1::ListAnchorsRequest) -> Self {
        Self { client, request, page: VecDeque::new(), is_at_end: false }
    }

    /// The next anchor; `None` after the last. After an error it can be called again and goes on
    /// where it stopped.
    ///
    /// # Errors
    /// As [`Client::list_anchors`].
    pub async fn next(&mut self) -> Result<Option<v1::Anchor>, ClientError> {
        while self.page.is_empty() && !self.is_at_end {
            self.page = self.next_page().await?.into();
        }
        Ok(self.page.pop_front())
    }

    /// The rest of the page, or else the next one; empty only after the last, or when none of a
    /// page's anchors passed the filter (see [`AnchorPages::is_at_end`]).
    ///
    /// # Errors
    /// As [`Client::list_anchors`].
    pub async fn next_page(&mut self) -> Result<Vec<v1::Anchor>, ClientError> {
        if !self.page.is_empty() || self.is_at_end {
            return Ok(std::mem::take(&mut self.page).into());
        }
        let reply = self.client.list_anchors(self.request.clone()).await?;
        self.is_at_end = reply.next_page_token.is_empty();
        self.request.page_token = reply.next_page_token;
        Ok(reply.anchors)
    }

    /// Whether no further page can be fetched.
    pub fn is_at_end(&self) -> bool {
        self.is_at_end
    }
}
