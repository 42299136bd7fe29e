//! A stretch of network between two nodes that loses packets.

use std::net::{SocketAddr, UdpSocket};

use anyhow::Context;

/// Passes packets between `far` and whoever sends to the address returned, for as long as this program
/// runs. One of `one_in` is lost each way; none for 0.
pub(super) fn stretch(far: SocketAddr, one_in: u32) -> anyhow::Result<SocketAddr> {
    let near = UdpSocket::bind("127.0.0.1:0")?;
    let beyond = UdpSocket::bind("127.0.0.1:0")?;
    beyond.connect(far)?;
    for socket in [&near, &beyond] {
        // Bursts of a whole window have to fit: what is lost is decided here.
        rustix::net::sockopt::set_socket_recv_buffer_size(socket, 4 << 20)?;
    }
    let place = near.local_addr()?;
    let (near_back, beyond_back) = (near.try_clone()?, beyond.try_clone()?);
    let (told, back_to) = std::sync::mpsc::channel();
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("there")
        .spawn(move || {
            let (mut buffer, mut dice, mut known) = (vec![0; 65_536], Dice(1), None);
            while let Ok((len, from)) = near.recv_from(&mut buffer) {
                if known != Some(from) {
                    known = Some(from);
                    if told.send(from).is_err() {
                        return;
                    }
                }
                if !dice.hits(one_in) {
                    // The other side may just be starting.
                    let _ = beyond.send(&buffer[..len]);
                }
            }
        })
        .context("a thread")?;
    thread("back")
        .spawn(move || {
            let (mut buffer, mut dice) = (vec![0; 65_536], Dice(2));
            let Ok(mut to) = back_to.recv() else { return };
            loop {
                // Refused as long as nobody listens there.
                let Ok(len) = beyond_back.recv(&mut buffer) else {
                    continue;
                };
                if let Some(newer) = back_to.try_iter().last() {
                    to = newer;
                }
                if !dice.hits(one_in) {
                    let _ = near_back.send_to(&buffer[..len], to);
                }
            }
        })
        .context("a thread")?;
    Ok(place)
}

/// The same losses in every run.
struct Dice(u64);

impl Dice {
    fn hits(&mut self, one_in: u32) -> bool {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        one_in > 0 && (mixed ^ (mixed >> 31)).is_multiple_of(u64::from(one_in))
    }
}
