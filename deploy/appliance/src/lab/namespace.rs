//! A network namespace, held by a thread inside it.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc;

use anyhow::{Context, anyhow};
use rtnetlink::{LinkUnspec, LinkVeth, new_connection};

type Job = Box<dyn FnOnce() + Send>;

/// An anonymous network namespace. The kernel removes it when this is dropped and its processes have ended.
#[derive(Debug)]
pub struct Namespace {
    jobs: mpsc::Sender<Job>,
    fd: OwnedFd,
}

impl Namespace {
    /// Creates a namespace with loopback up.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn new() -> anyhow::Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (made, result) = mpsc::channel();
        std::thread::Builder::new()
            .name("namespace".to_owned())
            .spawn(move || {
                let fd = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                    .map_err(std::io::Error::from)
                    .and_then(|()| std::fs::File::open("/proc/thread-self/ns/net"));
                // The receiver waits below.
                let _ = made.send(fd.map(OwnedFd::from));
                todo.into_iter().for_each(|job| job());
            })?;
        let fd = result
            .recv()?
            .context("creating a network namespace (needs root)")?;
        let namespace = Self { jobs, fd };
        namespace.netlink(|handle| async move {
            let index = index_of("lo")?;
            Ok(handle
                .link()
                .set(LinkUnspec::new_with_index(index).up().build())
                .execute()
                .await?)
        })?;
        Ok(namespace)
    }

    /// Runs a function inside the namespace and waits for it. Processes and threads that it starts are inside, too.
    ///
    /// # Errors
    /// When the namespace's thread has ended.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || {
            // The receiver waits below.
            let _ = done.send(job());
        });
        self.jobs
            .send(job)
            .map_err(|_| anyhow!("the namespace's thread has ended"))?;
        result.recv().context("a job in the namespace has panicked")
    }

    /// Connects two namespaces by a veth pair with these addresses, up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(
        &self,
        name: &str,
        address: (IpAddr, u8),
        other: &Self,
        other_name: &str,
        other_address: (IpAddr, u8),
    ) -> anyhow::Result<()> {
        let (remote, target) = (other_name.to_owned(), other.fd.as_fd().as_raw_fd());
        let local = name.to_owned();
        self.netlink(move |handle| async move {
            handle
                .link()
                .add(LinkVeth::new(&local, &remote).build())
                .execute()
                .await?;
            let peer = index_of(&remote)?;
            let moved = LinkUnspec::new_with_index(peer).setns_by_fd(target).build();
            Ok(handle.link().set(moved).execute().await?)
        })?;
        self.set_up(name, address)?;
        other.set_up(other_name, other_address)
    }

    /// Sets the MTU of a device.
    ///
    /// # Errors
    /// When the device does not exist or does not support the MTU.
    pub fn set_mtu(&self, name: &str, bytes: u32) -> anyhow::Result<()> {
        let name = name.to_owned();
        self.netlink(move |handle| async move {
            let device = LinkUnspec::new_with_index(index_of(&name)?);
            let device = device.mtu(bytes).build();
            Ok(handle.link().set(device).execute().await?)
        })
    }

    fn set_up(&self, name: &str, (address, bits): (IpAddr, u8)) -> anyhow::Result<()> {
        let name = name.to_owned();
        self.netlink(move |handle| async move {
            let index = index_of(&name)?;
            handle.address().add(index, address, bits).execute().await?;
            Ok(handle
                .link()
                .set(LinkUnspec::new_with_index(index).up().build())
                .execute()
                .await?)
        })
    }

    fn netlink<F>(
        &self,
        work: impl FnOnce(rtnetlink::Handle) -> F + Send + 'static,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        self.run(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async {
                    let (connection, handle, _) = new_connection()?;
                    tokio::spawn(connection);
                    work(handle).await
                })
        })?
    }
}

fn index_of(name: &str) -> anyhow::Result<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    netdevice::name_to_index(&any, name).with_context(|| format!("device {name}"))
}
