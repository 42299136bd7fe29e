//! Covers: a host whose TUN device, addresses, routes or switches are changed under a running node: what the node
//! repairs, what it only reports, how often it does either, and that traffic passes again. Devices that cannot be made
//! at the start are in `failures.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::Command;

use common::mesh::Mesh;
use common::{TIMEOUT, command, eventually, privileged, scrape};
use hyphae::lab::Namespace;
use nix::mount::{MsFlags, mount};

const OFF: &str = "/proc/sys/net/ipv6/conf/hyphae0/disable_ipv6";

/// Whether the host of node `from` gets an answer of the host of node `to`.
fn reaches(mesh: &Mesh, from: usize, to: usize) -> bool {
    let address = mesh.node(to).address().to_string();
    let ping = move || {
        let mut ping = Command::new("ping");
        ping.args(["-6", "-c", "1", "-W", "1", &address]).output()
    };
    mesh.namespaces[from]
        .run(ping)
        .unwrap()
        .unwrap()
        .status
        .success()
}

fn problem(mesh: &Mesh, n: usize) -> Option<String> {
    mesh.node(n).status().unwrap().host_problem
}

/// Waits until the node says that something is wrong, in words that contain these.
fn reported(mesh: &Mesh, n: usize, words: &str) {
    eventually(words, TIMEOUT, || {
        problem(mesh, n).is_some_and(|problem| problem.contains(words))
    });
}

/// Waits until all is well again: as the node says, and as a ping says.
fn recovers(mesh: &Mesh, n: usize, after: &str) {
    let began = std::time::Instant::now();
    eventually(after, TIMEOUT, || {
        problem(mesh, n).is_none() && reaches(mesh, n, 1 - n)
    });
    eprintln!("{after}: {:?}", began.elapsed());
}

fn repairs(inside: &Namespace, part: &str) -> u64 {
    let line = format!("hyphae_host_repairs_total{{part=\"{part}\"}} ");
    let text = scrape(inside);
    let value = text.lines().find_map(|it| it.strip_prefix(line.as_str()));
    value.unwrap().parse().unwrap()
}

/// Changes something on the host of a node, and waits until the node has repaired it.
fn repaired(mesh: &Mesh, n: usize, line: &str, part: &str) {
    let inside = &mesh.namespaces[n];
    let before = repairs(inside, part);
    command(inside, line);
    eventually(line, TIMEOUT, || repairs(inside, part) == before + 1);
    recovers(mesh, n, line);
}

fn switch(inside: &Namespace, path: &'static str, value: &'static str) {
    inside
        .run(move || std::fs::write(path, value))
        .unwrap()
        .unwrap();
}

#[test]
fn what_others_change_on_the_host_is_repaired_and_counted() {
    if !privileged() {
        return;
    }
    let mesh = Mesh::started(2, &[(0, 1)]);
    recovers(&mesh, 0, "start");
    repaired(
        &mesh,
        0,
        "ip -6 addr flush dev hyphae0 scope global",
        "address",
    );
    repaired(&mesh, 0, "ip -6 route del 400::/7", "route");
    repaired(&mesh, 0, "ip -6 route flush proto 96", "route");
    // At mtu 1279 there is no IPv6 on the device.
    repaired(&mesh, 1, "ip link set hyphae0 mtu 1279", "mtu");
    repaired(&mesh, 1, "ip link set hyphae0 mtu 1500", "mtu");
    repaired(&mesh, 1, "ip link del hyphae0", "device");
    let log = mesh.node(1).log();
    assert_eq!(
        log.matches("was deleted; made it again").count(),
        1,
        "{log}"
    );
    assert!(!log.contains("does not pass"), "{log}");
}

#[test]
fn ipv6_that_is_switched_off_is_switched_on_again_at_the_start_too() {
    if !privileged() {
        return;
    }
    let mut mesh = Mesh::new(2, &[(0, 1)]);
    switch(
        &mesh.namespaces[0],
        "/proc/sys/net/ipv6/conf/default/disable_ipv6",
        "1",
    );
    mesh.start(0, &[]);
    mesh.start(1, &[]);
    recovers(&mesh, 0, "off at the start");
    switch(&mesh.namespaces[0], OFF, "1");
    eventually("a repair", TIMEOUT, || {
        repairs(&mesh.namespaces[0], "ipv6") == 1
    });
    recovers(&mesh, 0, "switched off");
}

#[test]
fn a_switch_that_the_node_may_not_write_is_reported_until_others_write_it() {
    if !privileged() {
        return;
    }
    let mut mesh = Mesh::new(2, &[(0, 1)]);
    // As ProtectKernelTunables= does it, for this node and what this test runs in its namespace.
    let protect = || -> nix::Result<()> {
        let none: Option<&str> = None;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        let sys = "/proc/sys";
        mount(Some(sys), sys, none, MsFlags::MS_BIND, none)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, sys, none, flags, none)
    };
    mesh.namespaces[0].run(protect).unwrap().unwrap();
    mesh.start(0, &[]);
    mesh.start(1, &[]);
    recovers(&mesh, 0, "start");
    let pid = mesh.node(0).status().unwrap().pid.to_string();
    let outside = |value: &str| {
        let line = format!("echo {value} > {OFF}");
        let status = Command::new("nsenter")
            .args(["-t", &pid, "-n", "sh", "-c", &line])
            .status();
        assert!(status.unwrap().success());
    };
    for _ in 0..3 {
        outside("1");
        reported(&mesh, 0, "sysctl -w net.ipv6.conf.hyphae0.disable_ipv6=0");
        outside("0");
        recovers(&mesh, 0, "switched on by others");
    }
}

#[test]
fn a_device_that_is_set_down_is_reported_and_works_again_when_it_is_up() {
    if !privileged() {
        return;
    }
    let mesh = Mesh::started(2, &[(0, 1)]);
    recovers(&mesh, 0, "start");
    command(&mesh.namespaces[0], "ip link set hyphae0 down");
    reported(&mesh, 0, "was set down");
    assert!(scrape(&mesh.namespaces[0]).contains("hyphae_host_up 0"));
    // It is left alone, whatever else happens to it.
    command(&mesh.namespaces[0], "ip link set hyphae0 mtu 1300");
    command(&mesh.namespaces[0], "ip link set hyphae0 alias poked");
    let link = command(&mesh.namespaces[0], "ip link show hyphae0");
    assert!(
        link.contains("state DOWN") && link.contains("mtu 1300"),
        "{link}"
    );
    command(&mesh.namespaces[0], "ip link set hyphae0 up");
    recovers(&mesh, 0, "up again");
    let link = command(&mesh.namespaces[0], "ip link show hyphae0");
    assert!(link.contains("mtu 1340"), "{link}");
    assert!(scrape(&mesh.namespaces[0]).contains("hyphae_host_up 1"));
    let log = mesh.node(0).log();
    assert_eq!(log.matches("was set down").count(), 1, "logged once: {log}");
}

#[test]
fn a_device_in_another_namespace_is_reported_and_works_again_when_it_is_back() {
    if !privileged() {
        return;
    }
    let mesh = Mesh::started(2, &[(0, 1)]);
    recovers(&mesh, 0, "start");
    let elsewhere = Namespace::new().unwrap();
    let thread = elsewhere
        .run(|| rustix::thread::gettid().as_raw_nonzero())
        .unwrap();
    command(
        &mesh.namespaces[0],
        &format!("ip link set hyphae0 netns {thread}"),
    );
    reported(&mesh, 0, "another network namespace");
    let node = mesh.node(0).status().unwrap().pid;
    command(&elsewhere, &format!("ip link set hyphae0 netns {node}"));
    recovers(&mesh, 0, "back again");
}

#[test]
fn something_that_changes_the_device_again_and_again_is_reported_and_not_fought() {
    if !privileged() {
        return;
    }
    let mesh = Mesh::started(2, &[(0, 1)]);
    recovers(&mesh, 0, "start");
    for _ in 0..3 {
        repaired(
            &mesh,
            0,
            "ip -6 addr flush dev hyphae0 scope global",
            "address",
        );
    }
    // Three a minute.
    command(
        &mesh.namespaces[0],
        "ip -6 addr flush dev hyphae0 scope global",
    );
    reported(&mesh, 0, "again and again");
    assert_eq!(repairs(&mesh.namespaces[0], "address"), 3);
    recovers(&mesh, 0, "the pause is over");
}
