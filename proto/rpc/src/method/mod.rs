//! Types of parameters and results, one file per group of methods. The table is [`crate::METHODS`].
//!
//! Order of fields is part of the contract: parameters may be given by position.

mod admin;
mod message;
mod node;
mod topic;

pub use admin::{BusCallParams, PatternsParams, PubkeyParams};
pub use message::{
    AttachedMessage, Destination, ExtendMessagesParams, InboxList, IncomingMessage, LeaseResult,
    ListMessagesParams, ListedMessage, MessageIdParams, MessageInfo, MessageState, OutgoingMessage,
    PopMessageParams, PopMessagesParams, PushMessageParams, PushMessageReplyParams,
    PushMessageResult, PushMessagesParams, PushMessagesResult, TokensParams,
};
pub use node::{
    ConfigChange, Dataplane, DrainParams, DuplicateKey, EndpointParams, Info, IpParams, PacketStat,
    PacketStatistics, Peer, PeerEndpoint, PingParams, Pong, QueriedSubnet, ReloadParams,
    ReloadResult, Route, RouteParams, StaticRoute, Status, TraceHop, TraceOutcome, TraceParams,
    Worker,
};
pub use topic::{
    AcceptParams, ForwardSocketParams, OutboundSocket, OutboundSocketParams, TopicParams,
    TopicPubkeyParams, TopicSettings, TopicSubnetParams,
};
