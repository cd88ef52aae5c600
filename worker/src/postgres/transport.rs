//! The byte stream under a connection: TCP with keepalives, or TLS over it. SQL sessions and the replication
//! connection use the same one, so both find the same hosts and fail in the same words.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256, Sha384, Sha512};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5912;

use super::endpoint::Endpoint;
use super::error::ConnectError;
use super::tls::client_config;

/// A whole connect, from DNS to the answer to the password.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection is probed after this long, then every [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// Sent bytes that stay unacknowledged this long end the connection. The kernel counts a peer that does not
/// read as well, so it must be longer than a COPY may wait for a lock.
const USER_TIMEOUT: Duration = Duration::from_mins(2);

/// The byte stream under a connection.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(TcpStream),
    Encrypted { stream: Box<tokio_rustls::client::TlsStream<TcpStream>>, binding: Option<Vec<u8>> },
}

impl Transport {
    /// Opens the stream up to and with the TLS handshake; the startup message has not been sent.
    pub(super) async fn open(endpoint: &Endpoint) -> Result<Self, ConnectError> {
        let config = client_config(endpoint).await?;
        let tcp = open_tcp(endpoint).await?;
        match config {
            None => Ok(Self::Plain(tcp)),
            Some(config) => encrypt(endpoint, config, tcp).await,
        }
    }

    /// The hash that binds SCRAM to this TLS channel (RFC 5929, `tls-server-end-point`), if there is one.
    pub(super) fn binding(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Encrypted { binding, .. } => binding.as_deref(),
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted { .. })
    }
}

async fn open_tcp(endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    let host = endpoint.connection.host.as_str();
    let addresses: Vec<_> = lookup_host((host, endpoint.connection.port))
        .await
        .map_err(|error| ConnectError::HostUnknown(error.to_string()))?
        .collect();
    let tries = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = ConnectError::HostUnknown("the name has no address".into());
    for address in addresses {
        match timeout(CONNECT_TIMEOUT / tries, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                configure(&stream).map_err(|error| ConnectError::Unreachable(error.to_string()))?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = ConnectError::Unreachable(error.to_string()),
            Err(_) => last = ConnectError::TimedOut,
        }
    }
    Err(last)
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

async fn encrypt(
    endpoint: &Endpoint,
    config: ClientConfig,
    mut tcp: TcpStream,
) -> Result<Transport, ConnectError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    tcp.write_all(&request).await.map_err(|error| ConnectError::from_io(&error))?;
    match tcp.read_u8().await.map_err(|error| ConnectError::from_io(&error))? {
        b'S' => {}
        b'N' => return Err(ConnectError::TlsNotOffered),
        other => {
            return Err(ConnectError::Protocol(format!("it answered {other:#04x} to a request for TLS")));
        }
    }
    let name = ServerName::try_from(endpoint.connection.host.clone())
        .map_err(|_| ConnectError::Tls("the host is neither a DNS name nor an address".into()))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| ConnectError::from_io(&error))?;
    let binding =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(|leaf| binding(leaf));
    Ok(Transport::Encrypted { stream: Box::new(stream), binding })
}

/// RFC 5929, section 4.1: the certificate hashed with its signature's hash function, MD5 and SHA-1 replaced by
/// SHA-256. Signatures without a hash function of their own (Ed25519) have no such binding.
fn binding(certificate: &[u8]) -> Option<Vec<u8>> {
    const SHA256: [ObjectIdentifier; 3] = [
        rfc5912::SHA_1_WITH_RSA_ENCRYPTION,
        rfc5912::SHA_256_WITH_RSA_ENCRYPTION,
        rfc5912::ECDSA_WITH_SHA_256,
    ];
    const SHA384: [ObjectIdentifier; 2] = [rfc5912::SHA_384_WITH_RSA_ENCRYPTION, rfc5912::ECDSA_WITH_SHA_384];
    const SHA512: [ObjectIdentifier; 2] = [rfc5912::SHA_512_WITH_RSA_ENCRYPTION, rfc5912::ECDSA_WITH_SHA_512];
    let algorithm = Certificate::from_der(certificate).ok()?.signature_algorithm.oid;
    if SHA256.contains(&algorithm) {
        Some(Sha256::digest(certificate).to_vec())
    } else if SHA384.contains(&algorithm) {
        Some(Sha384::digest(certificate).to_vec())
    } else if SHA512.contains(&algorithm) {
        Some(Sha512::digest(certificate).to_vec())
    } else {
        None
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Encrypted { stream, .. } => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Encrypted { stream, .. } => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Encrypted { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Encrypted { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl TlsStream for Transport {
    fn channel_binding(&self) -> ChannelBinding {
        self.binding()
            .map_or_else(ChannelBinding::none, |hash| ChannelBinding::tls_server_end_point(hash.to_vec()))
    }
}

/// Hands a finished [`Transport`] to `tokio-postgres` where it asks for a TLS handshake.
pub(super) struct Finished;

impl TlsConnect<Transport> for Finished {
    type Stream = Transport;
    type Error = io::Error;
    type Future = Ready<io::Result<Transport>>;

    fn connect(self, stream: Transport) -> Self::Future {
        ready(Ok(stream))
    }
}
