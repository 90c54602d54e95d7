//! What a person at the command line asks of the store.

use crate::error::StoreError;
use crate::http::{Connection, decode};
use reqwest::Method;
use reqwest::header::{ACCEPT, ETAG, IF_MATCH, IF_NONE_MATCH};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A person with a token.
#[derive(Clone, Debug)]
pub struct OperatorClient {
    connection: Connection,
    token: SecretString,
}

impl OperatorClient {
    /// A person with a token.
    pub const fn new(connection: Connection, token: SecretString) -> Self {
        Self { connection, token }
    }

    /// Reads something: `policies`, `policies/x/versions`.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, StoreError> {
        let request = self.request(Method::GET, path).query(query);
        decode(&self.connection.send(request).await?.body)
    }

    /// Reads something with its version, as `ETag`.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn get_versioned<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<(T, Option<String>), StoreError> {
        let reply = self.connection.send(self.request(Method::GET, path)).await?;
        let tag = reply.headers.get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        Ok((decode(&reply.body)?, tag))
    }

    /// Reads text of a type.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn get_text(
        &self,
        path: &str,
        accept: &str,
        query: &[(&str, String)],
    ) -> Result<String, StoreError> {
        let request = self.request(Method::GET, path).header(ACCEPT, accept).query(query);
        let body = self.connection.send(request).await?.body;
        String::from_utf8(body).map_err(|error| StoreError::NotUnderstood(error.to_string()))
    }

    /// Sends JSON.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: &impl Serialize,
    ) -> Result<T, StoreError> {
        let request = self.request(Method::POST, path).query(query).json(body);
        decode(&self.connection.send(request).await?.body)
    }

    /// Writes JSON over what is there.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, StoreError> {
        let request = self.request(Method::PUT, path).json(body);
        decode(&self.connection.send(request).await?.body)
    }

    /// Asks for something to be done, of which there is nothing to tell.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn post_empty(&self, path: &str) -> Result<(), StoreError> {
        self.connection.send(self.request(Method::POST, path)).await.map(drop)
    }

    /// Sends text.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn post_text<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: Vec<u8>,
    ) -> Result<T, StoreError> {
        let request = self.request(Method::POST, path).query(query).body(body);
        decode(&self.connection.send(request).await?.body)
    }

    /// Writes text over the version that was read: `Some(tag)`, or over nothing: `None`.
    ///
    /// # Errors
    /// When somebody else wrote meanwhile, the store refuses otherwise or can't be reached.
    pub async fn put_text<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: Vec<u8>,
        tag: Option<&str>,
    ) -> Result<T, StoreError> {
        let request = self.request(Method::PUT, path).query(query).body(body);
        let request = match tag {
            Some(tag) => request.header(IF_MATCH, tag),
            None => request.header(IF_NONE_MATCH, "*"),
        };
        decode(&self.connection.send(request).await?.body)
    }

    /// Removes something.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn delete(&self, path: &str, query: &[(&str, String)]) -> Result<(), StoreError> {
        let request = self.request(Method::DELETE, path).query(query);
        self.connection.send(request).await.map(drop)
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.connection.request(method, path).bearer_auth(self.token.expose_secret())
    }
}
