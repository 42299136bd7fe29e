//! Reading and writing a TCP connection: by io_uring or by plain tokio.
//!
//! Connections are opened and accepted by tokio either way. A dropped read is not a lost one: it
//! is only dropped when the connection ends.

use std::io;
use std::net::Shutdown;
use std::time::Duration;

use bytes::BytesMut;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio_uring::buf::BoundedBuf;

/// First keepalive of an idle connection: NATs forget about connections after minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;
/// Data that the other end has not acknowledged for this long ends the connection.
const USER_TIMEOUT_MS: u32 = 20_000;

/// One connection.
pub(crate) trait Socket: Sized + 'static {
    /// Takes a connection over.
    fn new(stream: TcpStream) -> io::Result<Self>;

    /// Reads into the free room of `buffer`; 0 at the end of the stream.
    async fn read(&self, buffer: BytesMut) -> (io::Result<usize>, BytesMut);

    /// Writes all of `buffer`.
    async fn write(&self, buffer: BytesMut) -> (io::Result<()>, BytesMut);

    /// Ends the connection both ways; reads and writes in flight return.
    fn close(&self);
}

/// By io_uring: a read or write is one entry of the ring, and the buffer is the kernel's meanwhile.
pub(crate) struct Uring(tokio_uring::net::TcpStream);

/// By readiness and system calls.
pub(crate) struct Plain(TcpStream);

impl Socket for Uring {
    fn new(stream: TcpStream) -> io::Result<Self> {
        configure(&stream)?;
        let stream = stream.into_std()?;
        // Else the ring's operations would fail instead of waiting.
        stream.set_nonblocking(false)?;
        Ok(Self(tokio_uring::net::TcpStream::from_std(stream)))
    }

    async fn read(&self, buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        let filled = buffer.len();
        let (result, slice) = self.0.read(buffer.slice(filled..)).await;
        (result, slice.into_inner())
    }

    async fn write(&self, buffer: BytesMut) -> (io::Result<()>, BytesMut) {
        self.0.write_all(buffer).await
    }

    fn close(&self) {
        // It may be closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Socket for Plain {
    fn new(stream: TcpStream) -> io::Result<Self> {
        configure(&stream)?;
        Ok(Self(stream))
    }

    async fn read(&self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        loop {
            if let Err(error) = self.0.readable().await {
                return (Err(error), buffer);
            }
            match self.0.try_read_buf(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return (result, buffer),
            }
        }
    }

    async fn write(&self, buffer: BytesMut) -> (io::Result<()>, BytesMut) {
        let mut at = 0;
        while at < buffer.len() {
            if let Err(error) = self.0.writable().await {
                return (Err(error), buffer);
            }
            match self.0.try_write(&buffer[at..]) {
                Ok(written) => at += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    fn close(&self) {
        // It may be closed already.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// Frames leave at once, and a dead connection is noticed.
fn configure(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
    Ok(())
}
