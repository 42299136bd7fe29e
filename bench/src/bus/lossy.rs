//! A UDP relay between two nodes that drops packets.

use std::net::{SocketAddr, UdpSocket};

use anyhow::Context;

/// Relays packets between `far` and the sender to the returned address, until this program ends. Drops one packet in
/// `one_in` per direction, none for 0.
pub(super) fn start(far: SocketAddr, one_in: u32) -> anyhow::Result<SocketAddr> {
    let near = UdpSocket::bind("127.0.0.1:0")?;
    let beyond = UdpSocket::bind("127.0.0.1:0")?;
    beyond.connect(far)?;
    for socket in [&near, &beyond] {
        // Large enough for a burst of a whole window: no other loss than this relay's.
        rustix::net::sockopt::set_socket_recv_buffer_size(socket, 4 << 20)?;
    }
    let place = near.local_addr()?;
    let (near_back, beyond_back) = (near.try_clone()?, beyond.try_clone()?);
    let (announce, return_to) = std::sync::mpsc::channel();
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("forward")
        .spawn(move || {
            let (mut buffer, mut loss, mut known) = (vec![0; 65_536], Loss(1), None);
            while let Ok((len, from)) = near.recv_from(&mut buffer) {
                if known != Some(from) {
                    known = Some(from);
                    if announce.send(from).is_err() {
                        return;
                    }
                }
                if !loss.drops(one_in) {
                    // The destination may not listen yet.
                    let _ = beyond.send(&buffer[..len]);
                }
            }
        })
        .context("a thread")?;
    thread("return")
        .spawn(move || {
            let (mut buffer, mut loss) = (vec![0; 65_536], Loss(2));
            let Ok(mut to) = return_to.recv() else { return };
            loop {
                // ECONNREFUSED until the destination listens.
                let Ok(len) = beyond_back.recv(&mut buffer) else {
                    continue;
                };
                if let Some(newer) = return_to.try_iter().last() {
                    to = newer;
                }
                if !loss.drops(one_in) {
                    let _ = near_back.send_to(&buffer[..len], to);
                }
            }
        })
        .context("a thread")?;
    Ok(place)
}

/// Deterministic losses.
struct Loss(u64);

impl Loss {
    fn drops(&mut self, one_in: u32) -> bool {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        one_in > 0 && (mixed ^ (mixed >> 31)).is_multiple_of(u64::from(one_in))
    }
}
