//! A forwarder over recvmmsg and sendmmsg, with or without UDP offloads: the alternative to io_uring.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce, UdpGroSegment};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, recvmmsg,
    sendmmsg, setsockopt,
};

use super::baseline::touch;
use super::load::{Meter, Plain, address, spawn};
use super::{Net, PORT, SINK, Sample};

/// Socket buffers as in the relay, bytes.
const SOCKET_BYTES: usize = 8 << 20;

pub(super) fn measure(
    net: &Net,
    core: usize,
    offload: bool,
    frame: usize,
    train: usize,
    time: Duration,
) -> anyhow::Result<Sample> {
    let at = address("0.0.0.0", PORT)?;
    let socket = net.relay.run(move || UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    setsockopt(&socket, RcvBufForce, &SOCKET_BYTES)?;
    setsockopt(&socket, SndBufForce, &SOCKET_BYTES)?;
    setsockopt(&socket, UdpGroSegment, &offload)?;
    let SocketAddr::V4(to) = address(SINK, PORT)? else {
        bail!("the sink of this forwarder has an IPv4 address");
    };
    let meter = Arc::new(Meter::default());
    let counter = Arc::clone(&meter);
    let forwarding = spawn(&net.relay, core, move |stop| {
        forward(&socket, to, offload, &counter, stop)
    })?;
    let sample = Plain::start(net, frame, train)?.watch(time, || Ok(Some(meter.read())));
    forwarding.stop()?;
    sample
}

/// Bytes of a receive, and of each of its datagrams but the last.
type Received = (usize, usize);

fn forward(
    socket: &UdpSocket,
    to: SocketAddrV4,
    offload: bool,
    meter: &Meter,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    // Limited to a core's own cache.
    let (count, size) = if offload { (8, 65_536) } else { (64, 2048) };
    let mut buffers = vec![vec![0; size]; count];
    let addresses = vec![Some(SockaddrIn::from(to)); count];
    while !stop.load(Ordering::Relaxed) {
        let received = receive(socket, &mut buffers, offload)?;
        for ((len, segment), buffer) in received.iter().zip(&mut buffers) {
            touch(&mut buffer[..*len], *segment);
        }
        let mut packets = 0;
        let (mut rest, mut at) = (&received[..], 0);
        // One control message serves a call, so all its messages have the same segment size.
        while let Some((_, segment)) = rest.first() {
            let run = rest.iter().take_while(|(_, other)| other == segment);
            let run: Vec<Received> = run.copied().collect();
            packets += send(socket, &buffers[at..], &run, &addresses, offload)?;
            (rest, at) = (&rest[run.len()..], at + run.len());
        }
        meter.add(packets);
    }
    Ok(())
}

fn receive(
    socket: &UdpSocket,
    buffers: &mut [Vec<u8>],
    offload: bool,
) -> anyhow::Result<Vec<Received>> {
    // Not reusable: the kernel shortens the control buffer to the used length.
    let room = offload.then(|| nix::cmsg_space!(i32));
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(buffers.len(), room);
    let slices = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]);
    let mut slices: Vec<_> = slices.collect();
    let flags = MsgFlags::MSG_WAITFORONE;
    match recvmmsg(
        socket.as_raw_fd(),
        &mut headers,
        slices.iter_mut(),
        flags,
        None,
    ) {
        Ok(messages) => Ok(messages
            .map(|message| (message.bytes, segment(&message)))
            .collect()),
        // Timeout.
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn segment(message: &RecvMsg<'_, '_, SockaddrIn>) -> usize {
    let notes = message.cmsgs().into_iter().flatten();
    let mut segments = notes.map(|note| {
        if let ControlMessageOwned::UdpGroSegments(size) = note {
            usize::try_from(size).ok()
        } else {
            None
        }
    });
    let size = segments.find_map(|size| size);
    size.unwrap_or(message.bytes).max(1)
}

/// Forwards the content of the first buffers; returns the number of sent packets.
fn send(
    socket: &UdpSocket,
    buffers: &[Vec<u8>],
    run: &[Received],
    addresses: &[Option<SockaddrIn>],
    offload: bool,
) -> anyhow::Result<u64> {
    let size = u16::try_from(run.first().map_or(1, |(_, segment)| *segment))?;
    let room = offload.then(|| nix::cmsg_space!(u16));
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(run.len(), room);
    let slices = buffers
        .iter()
        .zip(run)
        .map(|(buffer, (len, _))| [IoSlice::new(&buffer[..*len])]);
    let slices: Vec<_> = slices.collect();
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let control = if offload { &control[..] } else { &[] };
    let (fd, to) = (socket.as_raw_fd(), &addresses[..run.len()]);
    let sent = match sendmmsg(fd, &mut headers, &slices, to, control, MsgFlags::empty()) {
        Ok(sent) => sent.count(),
        // A full queue counts as loss.
        Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => 0,
        Err(error) => return Err(error.into()),
    };
    let packets = run
        .iter()
        .take(sent)
        .map(|(len, segment)| len.div_ceil(*segment) as u64);
    Ok(packets.sum())
}
